"""`--device-map` of all five commands: with a part on the disk they answer the same, and what is wrong is one sentence.

accelerate fetches what is on the disk for the time of a layer's call: its hooks and empty weights are those of a GPU.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_ds.entry import exit_status
from bridge_ds.errors import BridgeError, ConfigError
from bridge_ds.evaluation.__main__ import main as evaluation
from bridge_ds.frozen.device_map import read_device_map, read_max_memory
from bridge_ds.generate.__main__ import main as generate
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.serve.__main__ import main as serve
from tests.made import make_run
from tests.serve.served import served
from tools.doctor import main as doctor

SPLIT = {"": "cpu", "model.embed_tokens": "disk", "lm_head": "disk", "model.layers.1": "disk", "encoder": "disk"}
TEXT = "wug dax"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The testbed's two models (the LLM's head is its table of embeddings) and a bridge that nobody trained."""
    return make_run(tmp_path_factory.mktemp("device_map") / "run", ["evaluation.null_scores=true"])


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("device_map") / "map.json"
    path.write_text(json.dumps(SPLIT))
    return str(path)


def test_evaluation(run: Path, split: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = []
    for name, more in (("whole", []), ("split", ["--device-map", split])):
        folder = shutil.copytree(run, tmp_path / name)
        chosen = ["--tasks", "testbed_reviews", "--languages", "en,qab", "--limit", "5", "--batch", "3"]
        assert evaluation(["--run", str(folder), *chosen, *more]) == 0
        lines = {p.relative_to(folder): p.read_text() for p in (folder / "evaluation").rglob("*.jsonl")}
        found.append((lines, json.loads((folder / "evaluation.json").read_text())))
        placed = [line for line in caplog.messages if line.startswith("encoder on ")]
        caplog.clear()
        assert len(placed) == bool(more) and all("encoder on disk (" in line for line in placed)
    assert found[0] == found[1] and len(found[0][0]) == 4


def test_generate(run: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for more in ([], ["--device-map", split], ["--device-map", "auto", "--max-memory", "cpu=3MB"]):
        assert generate(["--run", str(run), "--prompt", TEXT, "--temperature", "3", *more]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2] and texts[0].strip()


def test_serve(run: Path, split: str) -> None:
    texts = []
    for device_map in (None, split):
        with served(Pipeline.load(str(run), GenerateOptions(), device_map=device_map)) as (client, _):
            status, _, answer = client.complete([TEXT, "dax"], max_tokens=12)
            assert status == 200
            texts.append([choice["text"] for choice in answer["choices"]])
    assert texts[0] == texts[1] and any(texts[0])


def test_doctor(run: Path, split: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for more in ([], ["--device-map", split]):
        assert doctor([str(run), "--samples", "8", "--json", *more]) == 1, "nobody has trained it"
        found.append(json.loads(capsys.readouterr().out))
    assert found[0] == found[1] and found[0]["measurements"]["differing_weights"] == []
    assert found[0]["example"]["written"]


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_harness(run: Path, split: str) -> None:
    from lm_eval.api.instance import Instance

    from bridge_ds.harness.model import BridgeLM

    asked = [Instance("loglikelihood", {}, (TEXT, word), k, ("t", 0, 1)) for k, word in enumerate([" wet", " dog"])]
    written = [Instance("generate_until", {}, (TEXT, {"until": ["\n"], "max_gen_toks": 8}), 0, ("t", 0, 1))]
    found = []
    # As lm_eval does, which always gives a device.
    for more in ({}, {"device_map": split}, {"device_map": "auto", "max_memory": "cpu=3MB;disk=1GB"}):
        lm = BridgeLM(run=str(run), batch_size=2, device="cuda:0", **more)  # type: ignore[arg-type]
        placed = getattr(lm.answerer.generator.model.llm.model, "hf_device_map", {"": "cpu"})
        assert set(placed.values()) == ({"cpu", "disk"} if more else {"cpu"})
        found.append((lm.loglikelihood(asked, disable_tqdm=True), lm.generate_until(written, disable_tqdm=True)))
    assert found[0] == found[1] == found[2]
    with pytest.raises(ConfigError, match="the device map is nowhere, which is no device"):
        BridgeLM(run=str(run), device_map="nowhere")


WRONG = [
    ("nowhere", "the device map is nowhere, which is no device; expected auto, balanced, balanced_low_0, sequential"),
    ("cuda:77", "the device map is cuda:77, which this machine does not have; expected cpu"),
    ("77", "the device map is 77, which this machine does not have; expected cpu"),
    ("disk", "the device map is disk; expected auto"),
    ("nowhere.json", "the device map 'nowhere.json' cannot be read"),
    ('{"": "cpu"', "cannot be read"),
    ('{"": 1.5}', "is no object of names and devices"),
    ('{"lm_head": 77, "": "cpu"}', "the device map puts 'lm_head' on 77, which this machine does not have"),
    ('{"encoder": "cpu"}', "the device map names no module of the LLM"),
    ('{"": "cpu", "model.layer.1": "disk"}', "'model.layer.1', which is no module of the LLM; expected names such as "
     "model.embed_tokens, model.layers, model.norm, model.rotary_emb, lm_head; did you mean 'model.layers.1'?"),
    ('{"model.embed_tokens": "cpu", "lm_head": "cpu"}', "weights of the LLM, such as model.layers.0.self_attn.q_proj"),
    ('{"": "cpu", "lm_head": "disk"}', "lm_head.weight on disk and model.embed_tokens.weight on cpu, which are one"),
    ('{"": "cpu", "encoder.block.0": "disk"}', "'block.0', which is no module of the encoder"),
    ('{"": "cpu", "encoder.shared": "disk"}', "weights of the encoder, such as encoder."),
]  # fmt: skip


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def ends(main: Callable[[list[str]], int], *arguments: object) -> str:
        assert exit_status(lambda: main([*map(str, arguments)])) == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        return line

    return ends


@pytest.mark.parametrize(("given", "words"), WRONG)
def test_what_is_wrong_is_one_sentence(run: Path, given: str, words: str, refused: Callable[..., str]) -> None:
    assert words in refused(evaluation, "--run", run, "--tasks", "testbed_reviews", "--device-map", given)


def test_every_command_says_it_alike(run: Path, refused: Callable[..., str]) -> None:
    wrong = ["--device-map", WRONG[0][0]]
    lines = {
        refused(evaluation, "--run", run, *wrong),
        refused(generate, "--run", run, "--prompt", TEXT, *wrong),
        refused(serve, "--run", run, "--port", 0, *wrong),
        refused(doctor, run, *wrong),
    }
    assert len(lines) == 1 and WRONG[0][1] in lines.pop()
    assert "both --device and --device-map" in refused(doctor, run, "--device", "cpu", *wrong)


def test_memory_is_read_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_max_memory("cpu=60GiB, disk=1GB", "auto") == {"cpu": 60 << 30, "disk": 10**9}
    assert read_max_memory({"cpu": 5}, "balanced") == {"cpu": 5} and read_max_memory(None, "cpu") is None
    for given, device_map, words in (
        ("cpu=1GB", "cpu", "max_memory is given, which only a strategy uses"),
        ("cpu=1GB", None, "only a strategy uses"),
        ("cpu=much", "auto", "max_memory has cpu=much; expected a GPU's number, cpu or disk, and a size such as 20GiB"),
        ("cpu", "auto", "max_memory has cpu=;"),
        ("gpu=1GB", "auto", "max_memory has gpu=1GB"),
        ("77=1GB", "auto", "memory of 77, which this machine does not have"),
    ):
        with pytest.raises(ConfigError, match=words):
            read_max_memory(given, device_map)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BridgeError, match="needs accelerate, which is not installed"):
        read_device_map("auto")
