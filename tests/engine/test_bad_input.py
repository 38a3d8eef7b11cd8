"""What a user can get wrong: one clear sentence, exit status 2, no traceback, and no rank that waits forever."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_ds.config.names import resolve
from bridge_ds.plan.shapes import LLMS, find_shape
from tests import launch, tiny

ROOT = Path(__file__).parents[2]


def settings(**keys: object) -> list[str]:
    return [part for key, value in keys.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def torn(shards: Path, folder: Path, change: Callable[[Path], None]) -> Path:
    """A copy of the shards with one thing wrong."""
    shutil.copytree(shards, folder)
    change(folder)
    return folder


def spoil_one(folder: Path) -> None:
    """One sample of 150: a single rank meets it, in the middle of the run."""
    tar = sorted(folder.glob("*.tar"))[0]
    content = tar.read_bytes()
    tar.write_bytes(content.replace(b'"target":', b'"target";', 1))


def fails(outcome: launch.Outcome, *words: str) -> None:
    assert set(outcome.codes) == {2}, outcome.text[-5000:]
    assert "Traceback" not in outcome.text
    said = [line for line in outcome.outputs[0].splitlines() if line.startswith("error: ")]
    assert len(said) == 1, outcome.text[-5000:]
    for word in words:
        assert word in said[0]


# Found before anything heavy is imported: one process each, a second or two.
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (settings(fusion__name="transfomer_softmax"), "did you mean 'transformer_softmax'"),
        (settings(train__global_batch=9, train__micro_batch=2), "no multiple"),
        (settings(train__batch=9), "unknown key 'train.batch'"),
        (["--recipe", "nothing"], "no recipe 'nothing'"),
        (["--ds_config", "auto.json"], 'zero_optimization.stage = "auto"'),
        (["--ds_config", "removed.json"], "which DeepSpeed has removed"),
    ],
)
def test_config_errors(tmp_path: Path, arguments: list[str], words: str) -> None:
    (tmp_path / "auto.json").write_text(json.dumps({"zero_optimization": {"stage": "auto"}}))
    (tmp_path / "removed.json").write_text(json.dumps({"zero_optimization": {"stage": 3}, "amp": {}}))
    script = str(ROOT / "bridge_ds" / "train.py")
    run = subprocess.run([sys.executable, script, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run.returncode == 2, run.stderr
    assert run.stderr.startswith("error: ")
    assert words in run.stderr
    assert run.stderr.count("\n") == 1


def test_dry_run_shows_what_would_run() -> None:
    command = [sys.executable, "bridge_ds/train.py", "--dry-run", "--set", "train.lr=0.5"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    assert "lr: 0.5" in run.stdout
    assert '"gradient_accumulation_steps"' in run.stdout
    layer = find_shape(resolve("testbed/llm"), LLMS).layer  # the encoder's are gathered by our own code
    assert f'"stage3_max_live_parameters": {3 * layer}' in run.stdout


@pytest.mark.slow
def test_two_ranks_stop_together(small_run: list[str], shards: Path, tmp_path: Path) -> None:
    """Faults that one rank or one worker finds in the middle: both ranks end, soon, with the reason."""
    cases = {
        "one rank": (settings(data__shards=torn(shards, tmp_path / "one", spoil_one), train__steps=40), "checksum"),
        "world": (settings(train__global_batch=2), "start 1 ranks"),
    }
    for name, (more, word) in cases.items():
        run = settings(run__output=tmp_path / f"run-{name}")
        fails(launch.train([*small_run, *run, *more], 2, tmp_path / f"logs-{name}", timeout=90), word)


@pytest.mark.slow
def test_model_errors(small_run: list[str], tmp_path: Path) -> None:
    small = tiny.make_encoder("mt5", tmp_path / "small", vocab=100)
    (tmp_path / "file").write_text("")
    cases = {
        "vocabulary": (settings(model__encoder=small), "100 embedding rows"),
        "states": (settings(model__encoder=tiny.make_llm("llama", tmp_path / "decoder")), "expected an encoder-only"),
        "output": (settings(run__output=tmp_path / "file" / "run"), "cannot be written"),
    }
    for name, (more, word) in cases.items():
        run = settings(run__output=tmp_path / f"run-{name}")
        fails(launch.train([*small_run, *run, *more], 1, tmp_path / f"logs-{name}", timeout=90), word)


@pytest.mark.slow
def test_checkpoints_of_another_run_are_refused(small_run: list[str], tmp_path: Path) -> None:
    run = settings(run__output=tmp_path / "run", train__steps=2, checkpoint__every=1)
    launch.succeed(launch.train([*small_run, *run], 1, tmp_path / "first"))
    fails(launch.train([*small_run, *run, *settings(run__seed=5)], 1, tmp_path / "seed"), "seed 0; this run has 5")
    other = tiny.make_llm("llama", tmp_path / "llm", num_hidden_layers=3)
    changed = launch.train([*small_run, *run, *settings(model__llm=other)], 1, tmp_path / "base")
    fails(changed, "is not what", "restore their files")
    finished = launch.succeed(launch.train([*small_run, *run], 1, tmp_path / "again"))
    assert "nothing to train" in finished.text


@pytest.mark.skipif(os.name != "posix", reason="the launcher is tested where it runs")
def test_help_is_quick_and_teaches() -> None:
    import time

    began = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "bridge_ds/train.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    seconds = time.perf_counter() - began
    assert "deepspeed bridge_ds/train.py --ds_config zero3.json" in run.stdout
    code = (
        "import sys\ntry:\n import bridge_ds.train\n bridge_ds.train.main(['--help'])\n"
        "except SystemExit: pass\nprint('torch' in sys.modules, file=sys.stderr)"
    )
    light = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert light.stderr.strip() == "False"
    print(f"--help took {seconds:.2f} s")
