"""Check on the login node, and again at the start of a job, what would otherwise fail after hours in the queue."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import sys

from bridge_ds.checks import CHECKS, Subject, config_resolves
from bridge_ds.cli import Parser, add_config_options, positive, say_repeated
from bridge_ds.errors import BridgeError

__all__ = ["main", "versions"]

_EXAMPLES = """\
examples:
  bridge-ds preflight --recipe mt5xl_13b --nodes 2 --ranks 16
  bridge-ds preflight --recipe mt5xl_13b --nodes 2 --ranks 16 --hashes --gpu-gib 80 --set data.shards=data/english
  srun --ntasks-per-node=1 bridge-ds preflight --versions      # the same line from every node?

Takes --recipe, --ds_config, --set and --finetune as bridge-ds train. Exit status 2: the last line says what to change.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run all checks; returns the exit status."""
    options = _parser().parse_args(arguments)
    if options.versions:
        print(versions())
        return 0
    if options.ds_config:
        options.overrides.append(f"run.ds_config={options.ds_config}")
    say_repeated(options.overrides, sys.stdout)  # stdout, like the rows; stderr is for errors
    subject, problem = Subject(options), None
    subject.gpus  # noqa: B018 (otherwise every check that needs them would fail)
    for name, check in CHECKS.items():
        try:
            _show("ok", name, check(subject))
        except BridgeError as error:
            _show("RED", name, str(error))
            problem = problem or error
            if check is config_resolves:
                break
    print(flush=True)
    if problem is not None:
        raise problem
    print("preflight: green")
    return 0


def versions() -> str:
    """One line that must be the same on every node."""
    packages = ("torch", "deepspeed", "transformers", "safetensors", "webdataset", "mlflow")
    found = {name: importlib.metadata.version(name) for name in packages}
    return json.dumps({"python": platform.python_version(), **found}, sort_keys=True)


def _show(state: str, name: str, text: str) -> None:
    color = {"ok": "\033[32m", "RED": "\033[31m"}[state] if sys.stdout.isatty() else ""
    print(f"{color}{state:>4}{color and chr(27) + '[0m'}  {name:<11} {text}", flush=True)


def _parser() -> argparse.ArgumentParser:
    style, count = argparse.RawDescriptionHelpFormatter, positive(int, most=1_000_000)
    parser = Parser(prog="bridge-ds preflight", description=__doc__, epilog=_EXAMPLES, formatter_class=style)
    add_config_options(parser)
    parser.add_argument("--ranks", type=count, default=1, help="processes of the job (default: 1)")
    parser.add_argument("--nodes", type=count, help="nodes they are on (default: the Slurm job's, else 1)")
    parser.add_argument("--gpu-gib", type=positive(float, most=1e6), help="memory of the GPUs to be used, in GiB")
    parser.add_argument("--finetune", action="store_true", help="check the run of bridge-ds finetune")
    parser.add_argument("--hashes", action="store_true", help="read every shard and compare its sha256")
    parser.add_argument("--versions", action="store_true", help="print one line of versions, and nothing else")
    return parser
