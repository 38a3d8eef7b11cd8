"""The command: help without torch, a dry run that names every key, and run folders that the other commands read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_run_config
from bridge_ds.config.names import resolve
from bridge_ds.convert import SOURCES
from tests.convert import peers, saved
from tools.convert import main

ROOT = Path(__file__).parents[2]


def test_help_teaches_and_imports_no_torch() -> None:
    code = (
        "import sys, runpy; sys.argv = ['convert.py', *sys.argv[1:]]\n"
        "try: runpy.run_path('tools/convert.py', run_name='__main__')\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    for name, source in SOURCES.items():
        out = subprocess.run([sys.executable, "-c", code, name, "--help"], cwd=ROOT, capture_output=True, text=True)
        assert out.stdout.endswith("False\n"), out.stderr
        assert source.help in out.stdout


def test_dry_run_names_every_key_and_writes_nothing(
    roomy: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = peers.LangBridgeModel(roomy["encoder"], roomy["llm"], "ffn")
    old = {"lb.lm.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}  # as older transformers saved it
    trained = {"lb.enc.encoder.final_layer_norm.weight": torch.full((24,), 2.0)}
    state = dict(peer.state_dict()) | old | trained
    checkpoint = saved.whole(state, tmp_path / "peer")
    models = ["--encoder", str(roomy["encoder"]), "--llm", str(roomy["llm"])]
    main(["langbridge", str(checkpoint), *models, "--output", str(tmp_path / "run"), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    assert all(sum(line.startswith(f"{key} ") for line in lines) == 1 for key in state)
    assert "lb.alignment.ffn.2.weight (32, 48) -> mapping.project.2.weight (32, 48)" in lines
    assert "lb.enc.encoder.final_layer_norm.weight (24,) -> encoder encoder.final_layer_norm.weight (differs)" in lines
    assert any(line.startswith(next(iter(old))) and "not read" in line for line in lines)
    assert any(line.startswith("encoder: ") and "1 of them differ" in line and "8 tokens" in line for line in lines)
    assert any(line.startswith("llm: ") and "all equal" in line for line in lines)
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def testbed_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A MindMerger mapping between the testbed's own models, as its seed makes it."""
    root = tmp_path_factory.mktemp("testbed")
    torch.manual_seed(0)
    peer = peers.MindMerger(Path(resolve("testbed/encoder")), Path(resolve("testbed/llm")))
    with torch.no_grad():
        for parameter in peer.mapping.parameters():
            parameter.mul_(0.3)
    checkpoint = saved.wrapped(peer.mapping.state_dict(), root / "peer")
    (root / "run").mkdir()
    (root / "run" / ".DS_Store").write_bytes(b"")  # macOS's: the folder counts as empty
    main([
        "mindmerger", str(checkpoint), "--encoder", "testbed/encoder", "--llm", "testbed/llm",
        "--output", str(root / "run"), "--set", "model.dtype=float32", "--set", "evaluation.batch=8",
    ])  # fmt: skip
    return root / "run"


def test_the_evaluation_scores_it(testbed_run: Path) -> None:
    from bridge_ds.evaluation.__main__ import main as evaluate

    assert load_run_config(testbed_run).model.encoder == "testbed/encoder"
    evaluate(["--run", str(testbed_run), "--tasks", "testbed_news", "--languages", "en,qaa", "--limit", "4"])
    results = json.loads((testbed_run / "evaluation.json").read_text())
    assert results["bridge"]["testbed_news"]["qaa"]["n"] == 4


def test_the_doctor_and_the_harness_read_it(testbed_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bridge_ds.harness.answerer import Answerer, Options
    from bridge_ds.harness.requests import Context, Continuation
    from tests.convert.test_logits import loaded
    from tools.doctor import main as doctor

    assert doctor([str(testbed_run), "--samples", "4", "--json"]) in (0, 1)
    found = json.loads(capsys.readouterr().out)
    assert found["checkpoint"] == "step-00000000"
    codes = {finding["code"] for finding in found["findings"]}
    assert not codes & {"mapping_untrained", "llm_changed", "encoder_changed", "llm_weights", "encoder_weights"}

    model, tokenizers, config = loaded(testbed_run)
    answerer = Answerer(model, tokenizers, "cpu", Options(prompt=config.data.augment_prompt))
    (((score, _),),) = answerer.score([Context("the cat sat")], [[Continuation(" down")]])
    assert score < 0


def test_nobody_continues_to_train_it_unawares(testbed_run: Path) -> None:
    from bridge_ds.checkpoint.load import find, refuse_other_run
    from bridge_ds.errors import CheckpointError

    checkpoint = find("auto", testbed_run / "checkpoints")
    assert checkpoint is not None
    with pytest.raises(CheckpointError, match="global_batch 'converted from MindMerger"):
        refuse_other_run(checkpoint, {"seed": 0, "global_batch": 128}, {})
