"""Saves that fail, on a real file system that is really full: named, survived, made good when there is room."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_ds.checkpoint.load import newest
from tests import launch

pytestmark = pytest.mark.slow


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB: room for a few checkpoints of the small bridge (1.3 MB)."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all room that is left."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        try:
            while True:
                os.write(file.fileno(), b"x" * 4096)
        except OSError:
            pass
    return ballast


def wait(job: launch.ForkedJob, what: str, log: int = 0) -> None:
    end = time.monotonic() + 120
    while what not in job.logs[log].read_text():
        assert time.monotonic() < end and job.running, job.wait(1).text[-4000:]
        time.sleep(0.02)


def test_a_disk_that_fills_and_empties(small_run: list[str], small_disk: Path, tmp_path: Path) -> None:
    settings = [
        "train.steps=60",
        "checkpoint.every=10",
        "checkpoint.keep_last=1",
        "checkpoint.keep_best=0",
        "track.every=1",
    ]
    settings += ["train.micro_batch=4", "checkpoint.max_failed_saves=5"]  # saves follow each other fast here
    command = [*small_run, *(part for setting in settings for part in ("--set", setting))]
    job = launch.begin([*command, "--set", f"run.output={small_disk}/run"], 2, tmp_path / "logs")
    wait(job, "checkpoint step-00000010 written")
    ballast = fill(small_disk)
    wait(job, "was not written")
    root = small_disk / "run" / "checkpoints"
    said: list[str] = []
    kept = newest(root, said.append)
    assert kept is not None and said == [], "the checkpoint before is intact"
    assert not list(root.glob(".*.tmp")), "nothing of the failed one is left"
    ballast.unlink()
    outcome = launch.succeed(job.wait())
    assert "StorageFull" in outcome.text or "No space left" in outcome.text
    assert "lines wait in memory" in outcome.text and "is written again" in outcome.text
    assert (small_disk / "run" / "metrics.jsonl").read_text().count("\n") == 60

    launch.succeed(launch.train([*command, "--set", f"run.output={tmp_path}/whole"], 2, tmp_path / "logs-whole"))
    last = "checkpoints/step-00000060/bridge.safetensors"
    assert (small_disk / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()


def test_too_many_failed_saves_end_the_run_on_all_ranks(small_run: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where the folder should be")
    settings = ["checkpoint.every=2", "checkpoint.max_failed_saves=1", f"run.output={tmp_path}/run"]
    command = [*small_run, *(part for setting in settings for part in ("--set", setting))]
    outcome = launch.train(command, 2, tmp_path / "logs")
    assert outcome.codes == [2, 2], outcome.text[-4000:]
    assert outcome.text.count("was not written") == 2
    assert (
        "error: 2 saves in a row failed" in outcome.outputs[0] and "checkpoint.max_failed_saves" in outcome.outputs[0]
    )
