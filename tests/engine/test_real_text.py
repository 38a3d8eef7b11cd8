"""Real English prose, the prefix-LM objective, and every family of encoder and LLM in a real run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import pytest

from tests import launch, tiny

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
PAIRS = [("xlm-roberta", "llama"), ("bert", "qwen2"), ("umt5", "gpt2"), ("m2m_100", "gemma2"), ("mt5", "mistral")]


@pytest.fixture(scope="module")
def prose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The standard library's own documentation, packed by the command that users type."""
    folder = tmp_path_factory.mktemp("prose")
    (folder / "topics.txt").write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    command = [
        sys.executable,
        "tools/pack_shards.py",
        "pack",
        "--input",
        str(folder / "topics.txt"),
        "--format",
        "text",
    ]
    subprocess.run([*command, "--output", str(folder / "shards")], cwd=ROOT, check=True, capture_output=True)
    return folder / "shards"


def arguments(folder: Path, encoder: Path, llm: Path, shards: Path, **more: object) -> list[str]:
    settings = {
        "run.output": folder / "run", "model.encoder": encoder, "model.llm": llm, "model.dtype": "float32",
        "data.shards": shards, "data.objective": "prefix_lm", "data.max_source_tokens": 64,
        "data.max_target_tokens": 32,
        "data.workers": 1, "evaluation.tasks": "[]", "track.uri": "none", "train.global_batch": 16,
        "train.micro_batch": 8,
    } | more  # fmt: skip
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_prefix_lm_learns_from_prose(prose: Path, models: dict[str, Path], tmp_path: Path) -> None:
    more = {"train.steps": 50, "train.lr": 1e-2}
    command = arguments(tmp_path, models["encoder"], models["llm"], prose, **more)
    launch.succeed(launch.train(command, 2, tmp_path / "logs"))
    found = losses(tmp_path)
    assert len(found) == 50
    assert sum(found[-10:]) / 10 < sum(found[:10]) / 10 - 0.02


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_families_train(prose: Path, tmp_path: Path, encoder: str, llm: str) -> None:
    folders = tiny.make_encoder(encoder, tmp_path / "encoder"), tiny.make_llm(llm, tmp_path / "llm")
    outcome = launch.train(arguments(tmp_path, *folders, prose, **{"train.steps": 2}), 1, tmp_path / "logs")
    launch.succeed(outcome)
    assert len(losses(tmp_path)) == 2
