"""What must end a job at once, and what must not: a wrong config, a rank that hangs, fewer nodes after a requeue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import launch
from tests.slurm.cluster import ROOT, Cluster, until
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


def test_a_stop_signal_before_the_training_requeues_the_job(
    cluster: Cluster, small_run: list[str], shards: Path, tmp_path: Path
) -> None:
    """In the checks of the first start, the comparison of the second, the copies of the third; the fourth trains."""
    # Each of these programs waits in one start of the job, until it is stopped.
    slow = {"python": (sys.executable, 0, "--ranks"), "python3": (str(tmp_path / "python"), 1, "--versions")}
    slow["cp"] = (shutil.which("cp") or "", 2, "-r")
    for name, (real, start, word) in slow.items():
        waits = f': >"{tmp_path}/{name}-$SLURM_PROCID-waits"; sleep 100'
        if_asked = f'[ "${{SLURM_RESTART_COUNT:-0}}" -ne {start} ] || case "$*" in *{word}*) {waits} ;; esac'
        (tmp_path / name).write_text(f'#!/bin/sh\n{if_asked}\nexec "{real}" "$@"\n')
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": "python3", "SHARDS": str(shards), "MAX_STALLS": "9"}
    env["LOCAL_DISK"] = str(tmp_path / "disk")
    job = cluster.submit(SCRIPT, options(small_run, train__steps=2), tmp_path / "run", env)

    def stop(name: str, tasks: int, *how: str) -> None:
        requeued = job.text.count("preempted; requeued (step 0).")
        until(lambda: len([*tmp_path.glob(f"{name}-*-waits")]) == tasks, 90, lambda: job.text[-3000:])
        cluster.call("scancel", *how, job.number)
        until(lambda: job.text.count("preempted; requeued (step 0).") > requeued, 60, lambda: job.text[-3000:])
        # What was copied is removed before the job goes to other nodes.
        assert not [*tmp_path.glob("disk/*")]

    stop("python", 1, "--full", "--signal=TERM")
    stop("python3", 2, "--signal=TERM")
    stop("cp", 2, "--signal=USR2")
    assert job.starts == 0
    assert job.wait_end() == "COMPLETED" and int(job.show()["Restarts"]) >= 3, job.text[-4000:]
    assert "start 4 of job" in job.text, "each of the three counts as a start"
    assert (tmp_path / "disk").is_dir() and not [*tmp_path.glob("disk/*")]


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


def test_srun_without_our_launchers(cluster: Cluster, small_run: list[str], tmp_path: Path) -> None:
    """Slurm's variables alone say who a rank is and where the ranks meet; where they cannot, one sentence does."""
    env = {name: value for name, value in cluster.env.items() if not name.startswith(("MASTER_", "RANK", "WORLD_"))}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    train = [sys.executable, "bridge_ds/train.py", *small_run, "--set", "train.steps=2"]
    train += ["--set", f"run.output={tmp_path}/run"]
    one_node = ["srun", "--nodes=1", "--ntasks=2", "--gpus-per-task=1"]
    # The nodes of this cluster have no address by their names; every rank says so.
    two_nodes = ["srun", "--nodes=2", "--ntasks=4"]
    refused = subprocess.run([*two_nodes, *train], cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert "error: the first host of SLURM_STEP_NODELIST, 'n0', has no address here" in refused.stderr
    assert "Traceback" not in refused.stderr and not (tmp_path / "run").exists()
    trained = subprocess.run([*one_node, *train], cwd=ROOT, env=env, capture_output=True, text=True, timeout=200)
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert len(lines(tmp_path / "run")) == 2 and "2" in trained.stderr.split("ranks")[1].splitlines()[0]


def test_a_shell_on_a_node_starts_the_processes_as_anywhere(cluster: Cluster, tmp_path: Path) -> None:
    """`srun --pty bash` is one task of a step, or several; what is started in it is not."""
    env = {name: value for name, value in cluster.env.items() if not name.startswith(("MASTER_", "RANK", "WORLD_"))}
    env |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    (tmp_path / "a.txt").write_text("eins zwei\n")
    ours, asked = f"{sys.executable} -m bridge_ds", f"--dry-run --num_gpus 2 -- --master_port {launch.free_port()}"
    train, adapt = f"{ours} train {asked}", f"{ours} adapt --text {tmp_path}/a.txt {asked}"
    terminal = [sys.executable, "-c", "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"]

    def say(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            words, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200
        )
        return done.returncode, done.stdout + done.stderr

    def in_shell(tasks: str, command: str) -> tuple[int, str]:
        # Further tasks of a shell find no terminal, and leave.
        shell = f"[ $SLURM_PROCID != 0 ] || {command}; exit $?"
        return say(*terminal, "srun", "--nodes=1", tasks, "--pty", "bash", "-c", shell)

    for tasks, command in (("-n1", adapt), ("-n3", train), ("-n1", f"srun --overlap -n1 {train}")):
        code, said = in_shell(tasks, command)
        assert code == 0 and "# DeepSpeed, on 2 ranks:" in said, said[-3000:]
    code, said = in_shell("-n2", f"srun --overlap -n2 {train}")
    assert code == 2 and "error: --master_port is for DeepSpeed's launcher, and srun or torchrun has" in said, said
    code, said = say("srun", "-n1", *f"{ours} train --dry-run".split())
    assert code == 0 and "# DeepSpeed, on 1 ranks:" in said, said[-3000:]
