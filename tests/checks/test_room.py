"""What a run still writes to its folder is demanded of the disk, and nothing that is there."""

from __future__ import annotations

import argparse
import contextlib
import shutil
from pathlib import Path

import pytest

from bridge_ds.checks.room import output_writable
from bridge_ds.checks.subject import Subject
from bridge_ds.config.load import load_config
from bridge_ds.errors import LaunchError
from bridge_ds.plan.job import planned, trained_parameters

_KEPT = ("checkpoint.every=500", "checkpoint.keep_last=2", "checkpoint.keep_best=1")


@pytest.mark.parametrize(
    ("steps", "there", "setting", "missing"),
    [
        (2000, [], "checkpoint.keep_last=2", 4),  # the two newest, the best, and the one that is written
        (2000, [500], "checkpoint.keep_last=2", 3),
        (2000, [500, 1000, 1500], "checkpoint.keep_last=2", 1),
        (2000, [250, 500, 1000, 1500], "checkpoint.keep_last=2", 1),
        (2000, [1000, 1500, 2000], "checkpoint.keep_last=2", 0),
        (80, [], "checkpoint.keep_last=2", 1),
        (80, [40], "checkpoint.keep_last=2", 1),
        (2600, [500], "checkpoint.keep_last=0", 5),
        (2000, [500], "checkpoint.keep_best=0", 2),
    ],
)
def test_room_is_demanded_for_checkpoints_that_are_not_there(
    steps: int, there: list[int], setting: str, missing: int, models: dict[str, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for step in there:
        (tmp_path / "checkpoints" / f"step-{step:08}").mkdir(parents=True)
    given = [f"model.{part}={models[part]}" for part in ("encoder", "llm")]
    subject = Subject(
        argparse.Namespace(ranks=1, nodes=1),
        load_config("mt5xl_13b", [*given, f"run.output={tmp_path}", f"train.steps={steps}", *_KEPT, setting]),
    )
    each = 12 * trained_parameters(planned(subject.config, 1, 1))
    for free in (missing * each, max(missing * each - 1, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: argparse.Namespace(free=free))
        fits = free == missing * each
        with contextlib.nullcontext() if fits else pytest.raises(LaunchError, match=r"make room"):
            output_writable(subject)
