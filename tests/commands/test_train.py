"""Which launcher `bridge-ds train` takes, and on which GPUs it starts the processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_ds.commands.train import launched, main
from bridge_ds.entry import exit_status
from bridge_ds.errors import LaunchError
from tests import launch

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


@pytest.mark.parametrize(
    ("visible", "words", "expected"),
    [
        ("2,3", ASKED, ["--include=localhost:2,3"]),
        ("5, 3,2", ASKED, ["--include=localhost:5,3"]),
        ("2,3", ASKED[2:], ["--include=localhost:2,3"]),
        ("2,3", [*ASKED[2:], "--", "--num_nodes", "1", "--num_acc", "1", "-q"], ["-q", "--include=localhost:2"]),
        ("2,3", [*ASKED[2:], "--", "--include", "localhost:7"], ["--include", "localhost:7"]),
        ("GPU-1", [*ASKED[2:], "--", "-elocalhost:7"], ["-elocalhost:7"]),
        ("GPU-1", [*ASKED, "--", "-H", __file__], ["-H", __file__, "--num_gpus=2"]),
        ("2,3", [*ASKED, "--", "--hostfile=nothing"], ["--include=localhost:2,3"]),
        ("", ASKED, ["--num_gpus=2"]),
    ],
)  # fmt: skip
def test_the_gpus_are_those_that_are_visible(
    visible: str, words: list[str], expected: list[str], started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    main(words)
    assert started == [expected]
    # The launcher counts the GPUs of the node, which must not be those that it sees.
    assert ("CUDA_VISIBLE_DEVICES" in os.environ) != ("--include=localhost" in expected[-1])


@pytest.mark.parametrize(
    ("visible", "words", "said"),
    [
        ("3", ASKED, "--num_gpus is 2, and CUDA_VISIBLE_DEVICES shows 1 (3); expected as many or more; ask for fewer"),
        ("GPU-1,GPU-2,GPU-3", ASKED, "torchrun --nproc_per_node 2 -m bridge_ds.train --recipe testbed\n"),
        ("GPU-1,GPU-2,GPU-3", ASKED[2:], "torchrun --nproc_per_node 3 -m bridge_ds.train --recipe testbed\n"),
        ("MIG-1,MIG-2", ASKED, "torchrun --nproc_per_node 1 -m bridge_ds.train --recipe testbed\n"),
        ("-1", ASKED[2:], "CUDA_VISIBLE_DEVICES is '-1', and DeepSpeed's launcher reads numbers alone; expected such"),
    ],
)
def test_gpus_that_the_launcher_cannot_take(
    visible: str,
    words: list[str],
    said: str,
    started: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert exit_status(lambda: main(words)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    main(words)
    assert len(started) == 1


@pytest.mark.slow
def test_the_launcher_starts_the_processes_there() -> None:
    """DeepSpeed's own, which counts LOCAL_SIZE devices where there is no GPU."""
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "3,2,1", "LOCAL_SIZE": "4", "OMP_NUM_THREADS": "1"}
    env.pop("DS_ACCELERATOR", None)
    words = ["--num_gpus", "2", "--recipe", "testbed", "--dry-run", "--", f"--master_port={launch.free_port()}"]
    command = [sys.executable, "-m", "bridge_ds", "train", *words]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "WORLD INFO DICT: {'localhost': [2, 3]}" in done.stdout + done.stderr
    assert "# DeepSpeed, on 2 ranks:" in done.stdout


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
