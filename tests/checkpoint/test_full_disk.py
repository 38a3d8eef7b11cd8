"""Saves that fail, on a real file system that is really full: named, survived, made good when there is room."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from functools import partial
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


def test_a_log_on_a_full_disk_does_not_end_a_run(small_run: list[str], small_disk: Path, tmp_path: Path) -> None:
    settings = ["train.steps=4", "track.every=1", f"run.output={tmp_path}/run"]
    command = [*small_run, *(part for setting in settings for part in ("--set", setting))]
    fill(small_disk)
    done = launch.train(command, 2, small_disk / "logs")
    assert done.codes == [0, 0] and "step 4/4" not in done.outputs[0], done.text
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 4


def test_embedded_shards_on_a_full_disk(small_run: list[str], small_disk: Path, tmp_path: Path) -> None:
    settings = ["data.shards=testbed/english", f"run.output={small_disk}/run", "train.steps=1"]
    command = [*small_run, *(part for setting in settings for part in ("--set", setting))]
    ballast = fill(small_disk)
    with ballast.open("r+b") as file:
        file.truncate(ballast.stat().st_size - 64 * 1024)  # room to begin
    refused = launch.train(command, 1, tmp_path / "logs")
    assert refused.codes == [2], refused.text
    assert f"error: run.output {small_disk}/run cannot be written (No space left on device)" in refused.text
    assert "Traceback" not in refused.text and [path.name for path in small_disk.iterdir()] == ["ballast"]
    ballast.unlink()
    launch.succeed(launch.train(command, 1, tmp_path / "logs"))


@pytest.mark.parametrize("options", [[], ["--shuffle", "1"], ["--processes", "2"]])
def test_packing_on_a_full_disk(
    options: list[str], small_disk: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from bridge_ds.__main__ import main
    from bridge_ds.entry import exit_status

    # Two parts, of which the second does not fit; without any that fits, nothing is left.
    for name, count in (("small", 300), ("large", 12_000)):
        (tmp_path / name).with_suffix(".jsonl").write_text(
            "".join(f'{{"source": "{number} of {name}", "target": "x"}}\n' for number in range(count))
        )
    (small_disk / "ballast").write_bytes(bytes(1 << 20))
    both = ["pack", "--input", str(tmp_path / "small.jsonl"), str(tmp_path / "large.jsonl")]
    target = small_disk / "out"
    for command in (["pack", "--input", str(tmp_path / "large.jsonl")], both):
        words = [*command, *options, "--output", str(target)]
        assert exit_status(partial(main, words)) == 2
        said = capsys.readouterr().err
        assert f"error: {target} cannot be written (No space left on device); expected room" in said
        assert "Traceback" not in said and not target.exists()
        # What is finished stays for the same command: the small part, or what --shuffle has dealt out.
        large = [path for path in small_disk.rglob("*.tar") if path.stat().st_size > 1 << 20]
        assert not large and (command is both or options[:1] == ["--shuffle"] or len(list(small_disk.iterdir())) == 1)
        if command is not both:
            shutil.rmtree(small_disk / ".out.packing", ignore_errors=True)
    # Continued where there is room: the same shards as of a command that was never stopped.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    for place in (small_disk, tmp_path):
        assert main([*both, *options, "--output", str(place / "out")]) == 0
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in (small_disk / "out").iterdir())
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (small_disk / "out" / name).read_bytes()
