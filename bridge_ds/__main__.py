"""The command `bridge-ds`, also `python -m bridge_ds`: one command for everything, imported when it is asked for."""

from __future__ import annotations

import difflib
import importlib
import sys
from typing import NoReturn

import bridge_ds
from bridge_ds.entry import run_command
from bridge_ds.errors import EXIT_USER_ERROR

__all__ = ["COMMANDS", "main", "start"]

COMMANDS = {
    "train": ("bridge_ds.commands.train", "train a bridge (default: on the embedded testbed)"),
    "finetune": ("bridge_ds.commands.finetune", "teach the LLM a run's task in English first, by itself"),
    "adapt": ("bridge_ds.commands.adapt", "train the encoder on text or translations of a language it does not know"),
    "pack": ("bridge_ds.commands.pack", "write samples as webdataset shards; index or verify a folder of shards"),
    "encode": ("bridge_ds.commands.encode", "write the encoder's states of a run's texts, so that it needs no encoder"),
    "evaluate": ("bridge_ds.evaluation.__main__", "score a run, and the LLM alone, on benchmarks"),
    "report": ("bridge_ds.report.__main__", "compare evaluated runs: an HTML page with plots and significance tests"),
    "generate": ("bridge_ds.generate.__main__", "answer one text, a file of texts, or lines from the terminal"),
    "answers": ("bridge_ds.commands.answers", "write what the LLM alone answers to English texts, to be taught"),
    "serve": ("bridge_ds.serve.__main__", "answer requests over HTTP (OpenAI-compatible API)"),
    "harness": ("bridge_ds.harness.__main__", "run lm-evaluation-harness with the model bridge_ds"),
    "doctor": ("bridge_ds.commands.doctor", "find out why a run answers badly, and what to try"),
    "convert": ("bridge_ds.commands.convert", "turn a LangBridge, MindMerger, LayAlign or paper checkpoint into a run"),
    "export": ("bridge_ds.commands.export", "write bridge, base models and tokenizers into one folder"),
    "plan": ("bridge_ds.commands.plan", "estimate memory and time of a run on a cluster"),
    "preflight": ("bridge_ds.commands.preflight", "check a run's config, models, data and disk, before it starts"),
    "probe": ("bridge_ds.commands.probe", "measure which languages an encoder, or a run, reads; before training"),
    "env": ("bridge_ds.commands.env", "print versions, devices and extras of this machine"),
    "slurm": ("bridge_ds.commands.slurm", "copy the Slurm launchers into a folder"),
    "sync": ("bridge_ds.track.sync", "send to MLflow (or other trackers) what a run could not send"),
}
"""Name -> module, whose `main` takes the arguments and returns the exit status; and what it does."""


def main(argv: list[str] | None = None) -> int:
    """Run one command, or list them all; returns its exit status, 2 for a command that does not exist."""
    words = sys.argv[1:] if argv is None else argv
    name = words[0] if words else ""
    if name in COMMANDS:
        return int(importlib.import_module(COMMANDS[name][0]).main(words[1:]))
    if name in ("-h", "--help"):
        print(_help())
        return 0
    if name == "--version":
        print(f"bridge_ds {bridge_ds.__version__}")
        return 0
    if not name:
        print(_help(), file=sys.stderr)
        return EXIT_USER_ERROR
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "bridge-ds --help says what each does."
    print(f"error: no command {name!r}; expected one of {', '.join(COMMANDS)}; {hint}", file=sys.stderr)
    return EXIT_USER_ERROR


def start() -> NoReturn:
    """What the installed script `bridge-ds` calls."""
    run_command(main)


def _help() -> str:
    lines = [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: bridge-ds COMMAND [OPTIONS]",
            "",
            "Teach a frozen English LLM many languages: train the bridge from a frozen multilingual encoder.",
            "",
            *lines,
            "",
            "bridge-ds COMMAND --help says what a command takes. bridge-ds --version prints the version.",
        ]
    )


if __name__ == "__main__":
    run_command(main)
