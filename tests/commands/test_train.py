"""Which launcher `bridge-ds train` takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_ds.commands.train import launched, main
from bridge_ds.errors import LaunchError

ROOT = Path(__file__).parents[2]
TASK = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1"}
ASKED = ["--num_gpus", "2", "--recipe", "testbed"]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What is given to DeepSpeed's launcher, start by start; no launcher has started this process."""
    for name in (*TASK, "SLURM_NTASKS", "SLURM_PTY_PORT", "RANK", "WORLD_SIZE", "MASTER_PORT", "DS_ACCELERATOR",
                 "CUDA_VISIBLE_DEVICES"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    starts: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, words: starts.append(words[4 : words.index("--recipe") - 1]))
    return starts


def test_who_has_started_this_process(started: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[list[str]] = []
    monkeypatch.setattr("bridge_ds.train.main", lambda words: trained.append(words) or 0)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert not launched() and main(ASKED[2:]) == 0  # srun -n1: the one task is the one process
    assert (trained, started) == ([ASKED[2:]], [])
    main(ASKED)  # unless it is asked for more
    assert (len(trained), started) == (1, [["--num_gpus=2"]])
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert launched() and main(ASKED[2:]) == 0 and len(trained) == 2
    for words, first in ((ASKED, "--num_gpus=2"), ([*ASKED[2:], "--", "--hostfile", "hosts"], "--hostfile")):
        with pytest.raises(LaunchError, match=f"^{first} is for DeepSpeed's launcher, and srun or torchrun has"):
            main(words)
    assert (len(trained), len(started)) == (2, 1)


def test_a_shell_that_slurm_opens_is_no_task(started: list[list[str]]) -> None:
    """What it starts has its terminal; the tasks of an srun in it inherit its variables alone."""
    env = os.environ | TASK | {"SLURM_STEP_NUM_TASKS": "8", "SLURM_PTY_PORT": "40000"}
    asked = f"{sys.executable} -c 'from bridge_ds.commands.train import launched; print(launched())'"
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])"]
    # Started by a shell; by srun, from such a shell; by srun --pty, which gives its one task the terminal.
    commands = [*terminal, "sh", "-c", f"{asked}; true"], ["sh", "-c", asked], [*terminal, "sh", "-c", f"exec {asked}"]
    found = []
    for command in commands:
        done = subprocess.run(
            command, cwd=ROOT, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            start_new_session=True,
        )  # fmt: skip
        found.append(done.stdout.split()[-1])
    assert found == ["False", "True", "True"]
