"""Fixtures that several folders share: small models and shards, made once a session."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from tests import launch, tiny, trained

torch.set_num_threads(1)  # the models are tiny and the machines small


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """A run in this process sets its own number of threads; with more than one, a process that a later test forks would
    wait for OpenMP's other threads forever."""
    yield
    torch.set_num_threads(1)


LONGEST = (
    "slurm/test_jobs", "testbed/test_transfer", "engine/test_runs", "track/test_server", "engine/test_epoch",
    "frozen/test_streamed", "engine/test_bad_data", "slurm/test_faults", "evaluation/test_command", "test_readme",
)  # fmt: skip
"""Files of minutes each. They begin first, so that of two test processes none works alone for long at the end."""


def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist would begin with the files of the most tests, which are the quickest.
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((n for n, name in enumerate(LONGEST) if f"{name}.py" in item.nodeid), len(LONGEST))

    items.sort(key=place)


WORDS = ["the", "cat", "sat", "on", "a", "mat", "river", "bridge", "dog", "rain", "fell", "wet", "one", "two", "three"]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a small mT5 (`encoder`) and a small Llama (`llm`)."""
    root = tmp_path_factory.mktemp("models")
    return {"encoder": tiny.make_encoder("mt5", root / "encoder"), "llm": tiny.make_llm("llama", root / "llm")}


@pytest.fixture(scope="session")
def zygote() -> launch.Zygote:
    """Starts training jobs quickly, one after the other."""
    return launch.zygote()


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real tars: 150 samples of very unequal lengths in three shards."""
    from bridge_ds.data.packing.write import pack_rows

    draw = random.Random(0)
    rows = [
        {
            "source": " ".join(draw.choices(WORDS, k=draw.randint(1, 20))),
            "target": " ".join(draw.choices(["Entailment", "Neutral", "good day"], k=draw.randint(1, 4))),
        }
        for _ in range(150)
    ]
    folder = tmp_path_factory.mktemp("data") / "shards"
    pack_rows(rows, folder, samples_per_shard=50)
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A testbed run folder, really trained (a minute); for tests marked slow, and to be read only."""
    base = tmp_path_factory.getbasetemp()
    # Under xdist each process has a folder of its own beside those of the others.
    return trained.trained_once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)


@pytest.fixture(scope="session")
def small_run(models: dict[str, Path], shards: Path) -> list[str]:
    """Arguments of train.py for a short run on the small models; add run.output and what the test is about."""
    settings = {
        "model.encoder": models["encoder"],
        "model.llm": models["llm"],
        "model.dtype": "float32",
        "data.shards": shards,
        "data.workers": 1,
        "evaluation.tasks": "[]",
        "train.steps": 20,
        "train.global_batch": 8,
        "train.micro_batch": 2,
        "train.lr": 5e-3,
        "checkpoint.every": 5,
        "track.uri": "none",
    }
    return [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
