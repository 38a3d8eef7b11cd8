"""What must end a job at once, and what must not: a wrong config, a rank that hangs, fewer nodes after a requeue."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, until
from tests.slurm.test_jobs import SCRIPT, lines, options

pytestmark = pytest.mark.slow


def test_a_wrong_config_fails_once_and_says_what_to_change(
    cluster: Cluster, small_run: list[str], tmp_path: Path
) -> None:
    began = time.monotonic()
    early = cluster.submit(SCRIPT, options(small_run, train__lrr=1), tmp_path / "early", {})
    # Only the trainer itself finds this one: no number, in the first step.
    late = cluster.submit(SCRIPT, options(small_run, train__lr=1e30, train__max_grad_norm=0), tmp_path / "late", {})
    assert early.wait_end() == "FAILED" and time.monotonic() - began < 60
    assert late.wait_end() == "FAILED"
    for job, word in ((early, "did you mean 'train.lr'"), (late, "lower train.lr")):
        assert job.show()["Restarts"] == "0" and job.show()["ExitCode"] == "2:0"
        assert job.text.splitlines()[-1].startswith("error: ") and word in job.text.splitlines()[-1]
        assert job.starts <= 1 and "Traceback" not in job.text


def test_a_hung_rank_is_named_and_the_job_ends(cluster: Cluster, small_run: list[str], tmp_path: Path) -> None:
    limit = 10
    more = {"run__hang_seconds": limit, "train__steps": 2000, "checkpoint__every": 1000}
    job = cluster.submit(SCRIPT, options(small_run, **more), tmp_path / "run", {})
    job.wait_step(3)
    job.kill_rank(1, signal.SIGSTOP)
    began = time.monotonic()
    assert job.wait_end(90) == "FAILED"
    assert time.monotonic() - began < limit + 40  # the watchdog's looks, and Slurm's wait for a task that does not die
    assert "stuck: rank 1 (" in job.text and "the job is ended" in job.text.splitlines()[-1]
    assert "stack of rank 0" in job.text and job.show()["Restarts"] == "0"


def test_requeued_on_one_node_instead_of_two(cluster: Cluster, small_run: list[str], tmp_path: Path) -> None:
    more = {"fusion__dropout": 0, "train__steps": 16}
    whole = cluster.submit(SCRIPT, options(small_run, **more), tmp_path / "whole", {})
    job = cluster.submit(SCRIPT, options(small_run, **more), tmp_path / "run", {})
    job.wait_step(6)
    cluster.call("scontrol", "requeuehold", job.number)
    until(lambda: job.state == "PENDING", 60, lambda: job.text[-3000:])
    cluster.call("scontrol", "update", f"JobId={job.number}", "NumNodes=1-1")
    cluster.call("scontrol", "release", job.number)
    assert job.wait_end() == whole.wait_end() == "COMPLETED", job.text[-4000:]
    assert job.show()["NumNodes"] == "1" and "on n[" not in job.text.split("start 2 of job")[1].splitlines()[0]
    expected, found = lines(tmp_path / "whole"), lines(tmp_path / "run")
    assert [line["ids_hash"] for line in found] == [line["ids_hash"] for line in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
