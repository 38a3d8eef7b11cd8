"""What this machine and this installation can do: versions, devices, kernels, extras."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator

from bridge_ds.cli import Parser

__all__ = ["environment", "main"]

_HELP = """\
Print what this machine and this installation can do; nothing is loaded, and no process group is started.
bridge-ds preflight checks one run; bridge-ds doctor looks into a finished one."""
_PACKAGES = ("torch", "transformers", "deepspeed", "safetensors", "webdataset", "mlflow")
_EXTRAS = {
    "kernels": "triton",
    "serve": "starlette",
    "harness": "lm_eval",
    "quantized": "bitsandbytes",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "docs": "mkdocs",
    "s3": "s3fs",
}
"""Extra of setup.py -> a module that it brings."""


def main(argv: list[str] | None = None) -> int:
    """Print the page; returns the exit status."""
    Parser(prog="bridge-ds env", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        argv
    )
    for name, text in environment():
        print(f"{name:<11} {text}", flush=True)
    return 0


def environment() -> Iterator[tuple[str, str]]:
    """Name and sentence of everything that is looked at."""
    import bridge_ds
    from bridge_ds.config.load import RECIPES
    from bridge_ds.shipped import shipped

    yield "bridge_ds", f"{bridge_ds.__version__}, Python {platform.python_version()}, {platform.system()}"
    yield "packages", ", ".join(f"{name} {_version(name)}" for name in _PACKAGES)
    yield from _devices()
    there = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module)]
    missing = [name for name in _EXTRAS if name not in there]
    yield "extras", f"installed: {', '.join(there) or 'none'}; not installed: {', '.join(missing) or 'none'}"
    yield "recipes", ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
    yield "ds_configs", ", ".join(sorted(path.name for path in shipped("ds_configs").glob("*.json")))
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    offline = [name for name in names if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]  # as the hub's
    yield "hub", f"offline ({', '.join(offline)} is set)" if offline else "online, unless HF_HUB_OFFLINE is set"
    slurm = shutil.which("sbatch")
    yield "slurm", "sbatch is here; bridge-ds slurm copy DIR copies the launchers" if slurm else "no sbatch here"


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    from bridge_ds.fusion.kernels import choose_backend, why_no_triton

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "cpu", f"{cores} cores for this process, {torch.get_num_threads()} threads in torch"
    found = torch.cuda.is_available()
    for index in range(torch.cuda.device_count() if found else 0):
        of = torch.cuda.get_device_properties(index)
        bfloat16 = "bfloat16" if of.major >= 8 or torch.version.hip else "no fast bfloat16"
        yield f"gpu {index}", f"{of.name}, {of.total_memory / 2**30:.1f} GiB, compute {of.major}.{of.minor}, {bfloat16}"
    if found:
        built = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        nccl = ".".join(map(str, torch.cuda.nccl.version())) if torch.distributed.is_nccl_available() else "none"
        yield "gpus", f"{built}, NCCL {nccl}: training runs over NCCL, one process for each GPU"
    else:
        yield "gpus", "none seen: training runs on the CPU, over gloo"
    device = "cuda" if found else "cpu"
    chosen = choose_backend("auto", device)
    reason = why_no_triton() or ("" if found else "runs on GPUs only")
    yield "kernels", f"auto is {chosen}" + (f": triton {reason}" if chosen != "triton" and reason else "")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(missing)"
