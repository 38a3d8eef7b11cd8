"""One text has one prompt and, greedily, one answer: in evaluation, generate, serve, the harness and transformers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.generate.__main__ import main as generate
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.inference.load import load_trained
from bridge_ds.tasks.base import Example
from tests.evaluation.fakes import FakeTask
from tests.made import make_run, on_bases
from tests.serve.served import served
from tests.test_doors import models  # noqa: F401  (a fixture)

TOKENS = 6
POSITIONS = 128
"""Of the tiny LLM."""
SHORT, LONG = "a dog on the mat", " ".join(f"the cat {n} sat on one of two banks" for n in range(9))
TEXTS = [SHORT, LONG, LONG * 5]
"""The second is longer than data.max_source_tokens of most runs here, the third than the LLM's positions."""
RUNS = {
    "truncated": ["data.max_source_tokens=30", "data.max_prompt_tokens=20", "data.augment_prompt=true"],
    "positions": ["data.max_source_tokens=900", "data.max_prompt_tokens=900", "data.augment_prompt=true"],
    "chat": ["data.max_source_tokens=30", "data.chat_template=true", "data.system_prompt=be brief"],
    "chat positions": ["data.max_source_tokens=900", "data.chat_template=true", "data.truncation_side=left"],
}
Ids = tuple[list[int], list[int], list[int]]
"""Before the soft prompt, of the source, after the soft prompt."""


@pytest.fixture(scope="module", params=RUNS)
def run(
    request: pytest.FixtureRequest,
    models: dict[str, Path],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "run", on_bases(models, *RUNS[request.param]))


def by_evaluation(run: Path) -> list[str]:
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, "cpu")
    scorer = Scorer(model, tokenizers, config.data, torch.device("cpu"), bridge=True, max_new_tokens=TOKENS)
    examples = [Example(text, "7", -1, "en", text) for text in TEXTS]
    return [found.text for found in scorer(examples, FakeTask(kind="number")).predictions]


def by_generate(run: Path) -> list[str]:
    source, output = run.parent / "texts.jsonl", run.parent / "answers.jsonl"
    source.write_text("".join(json.dumps({"source": text}) + "\n" for text in TEXTS))
    generate(["--run", str(run), "--input", str(source), "--output", str(output), "--max-new-tokens", str(TOKENS)])
    return [json.loads(line)["answer"] for line in output.read_text().splitlines()]


def by_serve(run: Path) -> list[str]:
    with served(Pipeline.load(str(run), GenerateOptions())) as (client, _):
        _, _, whole = client.complete(TEXTS, max_tokens=TOKENS)
        streamed = [client.events("/v1/completions", {"prompt": text, "max_tokens": TOKENS}) for text in TEXTS]
    found = [choice["text"] for choice in whole["choices"]]
    assert ["".join(event["choices"][0]["text"] for event in events) for events in streamed] == found
    return found


def by_harness(run: Path) -> list[str]:
    pytest.importorskip("lm_eval")
    from lm_eval.api.instance import Instance

    from bridge_ds.harness.model import BridgeLM

    options = {"until": [], "max_gen_toks": TOKENS}
    lm = BridgeLM(run=str(run), batch_size=2)
    return lm.generate_until(
        [Instance("generate_until", {}, (text, options), n, metadata=("any", n, 1)) for n, text in enumerate(TEXTS)]
    )


def by_transformers(run: Path) -> list[str]:
    model, processor = BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)
    return processor.batch_decode(
        model.generate(**processor(TEXTS, max_new_tokens=TOKENS), max_new_tokens=TOKENS, do_sample=False)
    )


DOORS: dict[str, Callable[[Path], list[str]]] = {
    "evaluation": by_evaluation, "generate": by_generate, "serve": by_serve, "harness": by_harness,
    "transformers": by_transformers,
}  # fmt: skip


def test_one_text_has_one_prompt_and_one_answer(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[Any]] = {}
    spliced = BridgeModel.spliced
    door = ""

    def watched(model: BridgeModel, batch: Batch, side: str = "right") -> Any:
        for row in range(len(batch.source_ids)):
            parts = (
                (batch.head_ids, batch.head_mask),
                (batch.source_ids, batch.source_mask),
                (batch.prompt_ids, batch.prompt_mask),
            )
            seen.setdefault(door, set()).add(tuple(tuple(ids[row][mask[row].bool()].tolist()) for ids, mask in parts))  # type: ignore[index]
        return spliced(model, batch, side)

    monkeypatch.setattr(BridgeModel, "spliced", watched)
    answers = {}
    for door, ask in DOORS.items():
        answers[door] = [text.strip() for text in ask(run)]
    assert any(answers["evaluation"]), "something is written"
    for name in DOORS:
        assert seen[name] == seen["evaluation"], name
        assert answers[name] == answers["evaluation"], name
    lengths = sorted(len(head) + len(source) + 1 + len(prompt) for head, source, prompt in seen["evaluation"])
    assert len(lengths) == 3 or len(lengths) == 2
    assert lengths[-1] + TOKENS <= POSITIONS
    if "max_source_tokens: 900" in (run / "config.yaml").read_text():
        assert lengths[-1] + TOKENS == POSITIONS, "all that fits is read"
