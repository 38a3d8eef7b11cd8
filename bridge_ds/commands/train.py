"""Start training on this machine with DeepSpeed's launcher, or be one of the processes of another launcher."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from bridge_ds.cli import Parser, positive
from bridge_ds.config.text import short
from bridge_ds.errors import LaunchError
from bridge_ds.training_options import train_parser
from bridge_ds.world import World

__all__ = ["launched", "main", "split"]

_TRAINER = Path(__file__).parents[1] / "train.py"
_HOSTFILE = "/job/hostfile"
"""Where DeepSpeed's launcher looks for one."""
_VISIBLE = "CUDA_VISIBLE_DEVICES"


def main(argv: list[str] | None = None, prog: str = "bridge-ds train") -> int:
    """Start the processes; does not return where it hands over to DeepSpeed's launcher."""
    words = sys.argv[1:] if argv is None else argv
    own, launcher = split(words, prog)
    options = train_parser(prog).parse_args(own)
    if launched() and launcher:
        raise LaunchError(
            f"{launcher[0]} is for DeepSpeed's launcher, and srun or torchrun has started this process as one of "
            "several; expected one launcher; leave the option out, or give the command without srun or torchrun."
        )
    if launched() or ((options.dry_run or _is_task()) and not launcher):
        from bridge_ds.train import main as train

        return train(own)
    launcher = _on_visible_gpus(launcher, own)
    port = os.environ.get("MASTER_PORT")  # DeepSpeed's launcher sets it to its own option
    if port and not any(word.partition("=")[0] == "--master_port" for word in launcher):
        launcher = [*launcher, f"--master_port={port}"]
    # With a buffer, the launcher would end with 120 in place of the trainer's status where its log's disk is full.
    os.environ["PYTHONUNBUFFERED"] = "1"
    # -P: packages are found as by an installed script, not in this folder first.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "deepspeed.launcher.runner", *launcher, str(_TRAINER), *own])


def launched() -> bool:
    """Whether torchrun, deepspeed or srun has started this process as one of several."""
    return "RANK" in os.environ or (_is_task() and World.detect().size > 1)


def _is_task() -> bool:
    """Whether srun has started this process, and not a shell that srun has opened (`srun --pty bash`, salloc).

    Such a shell is a task too, and what is started in it inherits its variables. So do the tasks of a further srun, but
    these have no terminal.
    """
    if not {"SLURM_STEP_ID", "SLURM_PROCID"} <= os.environ.keys():
        return False
    # The task of `srun --pty bridge-ds train` leads the terminal's session; what a shell starts does not.
    return "SLURM_PTY_PORT" not in os.environ or os.getsid(0) == os.getpid() or not _has_terminal()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def split(words: list[str], prog: str = "bridge-ds train") -> tuple[list[str], list[str]]:
    """Options of the trainer, and those of DeepSpeed's launcher (`--num_gpus N`, and what follows `--`)."""
    own, launcher = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    processes = Parser(add_help=False, allow_abbrev=False, prog=prog)
    processes.add_argument("--num_gpus", "--num_accelerators", type=positive(int, most=10_000))
    found, own = processes.parse_known_args(own)
    if found.num_gpus is not None:
        launcher = [*launcher, f"--num_gpus={found.num_gpus}"]
    return own, launcher


def _on_visible_gpus(launcher: list[str], own: list[str]) -> list[str]:
    """The launcher's options, which name the GPUs of CUDA_VISIBLE_DEVICES where that is set.

    Given a number of GPUs, the launcher (DeepSpeed 0.19.8 at least) takes the node's first ones, whatever the variable
    says; of names it reads none but numbers.

    Raises:
        LaunchError: the variable holds something else, or fewer than are asked for.
    """
    visible = os.environ.get(_VISIBLE, "")
    if not visible or os.environ.get("DS_ACCELERATOR", "cuda") != "cuda":
        return launcher
    options = Parser(add_help=False, prog="deepspeed")
    options.add_argument("-H", "--hostfile", default=_HOSTFILE)
    options.add_argument("-i", "--include")
    options.add_argument("-e", "--exclude")
    options.add_argument("--num_nodes", type=int, default=1)
    options.add_argument("--num_gpus", "--num_accelerators", type=int, default=-1)
    found, others = options.parse_known_args(launcher)
    if found.include or found.exclude or found.num_nodes > 1 or Path(found.hostfile).is_file():
        return launcher
    gpus = list(dict.fromkeys(name.strip() for name in visible.split(",")))
    if not all(name.isascii() and name.isdecimal() for name in gpus):
        count = found.num_gpus if found.num_gpus > 0 else len(gpus)
        if visible.startswith("MIG-"):  # of which a process sees one, however many are named
            count = 1
        raise LaunchError(
            f"{_VISIBLE} is {short(visible)!r}, and DeepSpeed's launcher reads numbers alone; expected such as 0,1 "
            "(nvidia-smi -L lists them); set numbers, or use torchrun, which keeps the variable as it is: "
            f"torchrun --nproc_per_node {count} -m bridge_ds.train {shlex.join(own)}".rstrip()
        )
    if found.num_gpus > len(gpus):
        raise LaunchError(
            f"--num_gpus is {found.num_gpus}, and {_VISIBLE} shows {len(gpus)} ({short(visible)}); expected as many or "
            "more; ask for fewer, or set it to more (for processes on the CPU set DS_ACCELERATOR=cpu)."
        )
    # Not left to the launcher, whose own count of the node's GPUs may go by it, and not by their numbers.
    del os.environ[_VISIBLE]
    return [*others, f"--include=localhost:{','.join(gpus[: found.num_gpus] if found.num_gpus > 0 else gpus)}"]
