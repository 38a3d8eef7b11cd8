"""What the LLM is shown in place of a text, a sample's `prompt`: the same ids in training, in files and in requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge_ds import BridgeProcessor
from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.entry import exit_status
from bridge_ds.generate.__main__ import main as generate
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from tests.made import make_run, on_bases
from tests.samples import tokenize_sample
from tests.serve.served import served
from tests.test_doors import models  # noqa: F401  (a fixture)

SAMPLES: list[dict[str, Any]] = [
    {"source": "le chat", "prompt": "Question: the cat sat on the mat Answer:"},
    {"source": "a dog on the mat"},
    {"source": "two banks", "prompt": ""},
    {"source": "a dog", "prompt": "the cat sat on the mat and looked at the dog " * 5},  # more than half of what fits
]
SETTINGS = {
    "beside": ["data.augment_prompt=true"],
    "in a chat": ["data.augment_prompt=true", "data.chat_template=true"],
    "soft prompt alone": [],
}
POSITIONS = 128
"""Of the tiny LLM."""
Ids = tuple[tuple[int, ...], tuple[int, ...]]
"""Of what the encoder reads, and of what the LLM reads after the soft prompt."""


@pytest.fixture(scope="module", params=SETTINGS)
def run(
    request: pytest.FixtureRequest,
    models: dict[str, Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return make_run(tmp_path_factory.mktemp("shown") / "run", on_bases(models, *SETTINGS[request.param]))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> set[Ids]:
    """What the models have read."""
    found: set[Ids] = set()
    spliced = BridgeModel.spliced

    def watched(model: BridgeModel, batch: Batch, side: str = "right") -> Any:
        parts = (batch.source_ids, batch.source_mask), (batch.prompt_ids, batch.prompt_mask)
        for row in range(len(batch.source_ids)):
            source, prompt = (tuple(ids[row][mask[row].bool()].tolist()) for ids, mask in parts)
            found.add((source, prompt))
        return spliced(model, batch, side)

    monkeypatch.setattr(BridgeModel, "spliced", watched)
    return found


def write(path: Path, samples: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def test_files_requests_and_the_processor_show_what_training_shows(run: Path, seen: set[Ids], tmp_path: Path) -> None:
    config = load_run_config(run)
    tokenizers = load_tokenizers(config.model, data=config.data)
    rows = [tokenize_sample(sample | {"target": "b"}, tokenizers, config.data) for sample in SAMPLES]
    expected = {(tuple(row.source), tuple(row.prompt)) for row in rows}
    assert all(not row.truncated for row in rows)
    assert not config.data.augment_prompt or max(len(row.prompt) for row in rows) > POSITIONS // 2
    questions, output = write(tmp_path / "in.jsonl", SAMPLES), tmp_path / "out.jsonl"
    generate(["--run", str(run), "--input", str(questions), "--output", str(output), "--max-new-tokens", "6"])
    assert seen == expected
    answers = [json.loads(line)["answer"] for line in output.read_text().splitlines()]
    seen.clear()
    texts, shown = [sample["source"] for sample in SAMPLES], [sample.get("prompt", "") for sample in SAMPLES]
    with served(Pipeline.load(str(run), GenerateOptions())) as (client, _):
        _, _, reply = client.complete(texts, llm_prompt=shown, max_tokens=6)
        assert seen == expected and [choice["text"] for choice in reply["choices"]] == answers
        status, _, refused = client.complete(texts, llm_prompt="one", max_tokens=6)
        assert (status, refused["error"]["param"]) == (400, "llm_prompt")
        assert refused["error"]["message"] == "llm_prompt holds 1 texts; expected 4, one for each input."
    features = BridgeProcessor.from_pretrained(run)(texts[0], prompt=shown[0], return_tensors=None)
    assert (tuple(features["input_ids"][0]), tuple(features["suffix_ids"][0])) in expected


@pytest.mark.parametrize("run", ["beside"], indirect=True)
def test_a_chat_has_its_prompt_too(run: Path, seen: set[Ids], tmp_path: Path) -> None:
    questions = write(tmp_path / "in.jsonl", SAMPLES[:1])
    generate(["--run", str(run), "--input", str(questions), "--output", str(tmp_path / "out.jsonl"), "--chat",
              "--max-new-tokens", "6"])  # fmt: skip
    of_file = set(seen)
    seen.clear()
    with served(Pipeline.load(str(run), GenerateOptions())) as (client, _):
        messages = [{"role": "user", "content": SAMPLES[0]["source"]}]
        assert client.chat(messages, llm_prompt=SAMPLES[0]["prompt"], max_tokens=6)[0] == 200
    tokenizer = BridgeProcessor.from_pretrained(run).tokenizer
    ((_, ids),) = of_file
    assert seen == of_file and tokenizer.decode(ids).startswith(SAMPLES[0]["prompt"])


def test_a_prompt_that_is_no_text_is_told_where_it_would_be_read(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = write(tmp_path / "in.jsonl", [{"source": "a", "prompt": {"a": 1}}])
    more = ["--output", str(tmp_path / "out.jsonl"), "--max-new-tokens", "2"]
    status = exit_status(lambda: generate(["--run", str(run), "--input", str(questions), *more]))
    told = "in.jsonl line 1: its prompt is \"{'a': 1}\"; expected a text" in capsys.readouterr().err
    read = load_run_config(run).data.augment_prompt
    assert (status, told) == ((2, True) if read else (0, False))


@pytest.mark.parametrize("run", ["beside"], indirect=True)
def test_a_prompt_that_is_the_text_itself(run: Path, seen: set[Ids], tmp_path: Path) -> None:
    questions = write(tmp_path / "in.jsonl", [{"prompt": [{"role": "user", "content": "a dog"}]}])
    generate(["--run", str(run), "--input", str(questions), "--output", str(tmp_path / "out.jsonl"), "--chat",
              "--field", "prompt", "--max-new-tokens", "2"])  # fmt: skip
    tokenizer = BridgeProcessor.from_pretrained(run).tokenizer
    assert [tokenizer.decode(ids).startswith("a dog") for _, ids in seen] == [True]
