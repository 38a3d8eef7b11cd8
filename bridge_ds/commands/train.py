"""Start training on this machine with DeepSpeed's launcher, or be one of the processes of another launcher."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from bridge_ds.cli import Parser, positive
from bridge_ds.training_options import train_parser

__all__ = ["launched", "main", "split"]

_TRAINER = Path(__file__).parents[1] / "train.py"


def main(argv: list[str] | None = None, prog: str = "bridge-ds train") -> int:
    """Start the processes; does not return where it hands over to DeepSpeed's launcher."""
    words = sys.argv[1:] if argv is None else argv
    own, launcher = split(words, prog)
    options = train_parser(prog).parse_args(own)
    if launched() or (options.dry_run and not launcher):
        from bridge_ds.train import main as train

        return train(own)
    port = os.environ.get("MASTER_PORT")  # DeepSpeed's launcher sets it to its own option
    if port and not any(word.partition("=")[0] == "--master_port" for word in launcher):
        launcher = [*launcher, f"--master_port={port}"]
    # With a buffer, the launcher would end with 120 in place of the trainer's status where its log's disk is full.
    os.environ["PYTHONUNBUFFERED"] = "1"
    # -P: packages are found as by an installed script, not in this folder first.
    os.execv(sys.executable, [sys.executable, "-P", "-m", "deepspeed.launcher.runner", *launcher, str(_TRAINER), *own])


def launched() -> bool:
    """Whether torchrun, deepspeed or srun has started this process as one of several."""
    return "RANK" in os.environ or {"SLURM_STEP_ID", "SLURM_PROCID"} <= os.environ.keys()


def split(words: list[str], prog: str = "bridge-ds train") -> tuple[list[str], list[str]]:
    """Options of the trainer, and those of DeepSpeed's launcher (`--num_gpus N`, and what follows `--`)."""
    own, launcher = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    processes = Parser(add_help=False, allow_abbrev=False, prog=prog)
    processes.add_argument("--num_gpus", "--num_accelerators", type=positive(int, most=10_000))
    found, own = processes.parse_known_args(own)
    if found.num_gpus is not None:
        launcher = [*launcher, f"--num_gpus={found.num_gpus}"]
    return own, launcher
