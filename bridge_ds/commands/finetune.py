"""Teach the LLM the task in English first: train it alone on a run's samples, and write it as a folder of its own."""

from __future__ import annotations

import sys

from bridge_ds.commands.train import main as train

__all__ = ["main"]


def main(argv: list[str] | None = None) -> int:
    """As :mod:`bridge_ds.commands.train`, with `--finetune`."""
    return train(["--finetune", *(sys.argv[1:] if argv is None else argv)], "bridge-ds finetune")
