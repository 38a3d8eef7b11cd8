#!/usr/bin/env python3
"""Compile, for GPUs that need not be here, what the fusion launches on them, and say what the compiler made of it.

examples:
  python tools/bench/audit_kernels.py                                   # mT5-XL on an H100, bfloat16 and float32
  python tools/bench/audit_kernels.py --gpus sm80,sm90,sm100,gfx942 --encoders small,base,large,xl,xxl --heads 1,4

Launches are caught and compiled, not run; all it needs comes with triton. A line holds, for each kernel: registers a
thread, resident blocks a multiprocessor, and the loads of states in its text. A state must be read 16 bytes at a time;
2 at a time cannot reach the memory's bandwidth. The exit status is 1 where a kernel spills registers to memory or reads
a state in smaller pieces.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from bridge_ds.cli import positive
from bridge_ds.entry import run_command
from bridge_ds.fusion.kernels import triton_primitives
from bridge_ds.fusion.kernels.dropout import make_masks
from bridge_ds.fusion.kernels.rows import Rows

TARGETS = {
    "sm80": GPUTarget("cuda", 80, 32),
    "sm90": GPUTarget("cuda", 90, 32),
    "sm100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
"""A100, H100 and H200, B200, MI300X."""
ENCODERS = {"small": (8, 512), "base": (12, 768), "large": (24, 1024), "xl": (24, 2048), "xxl": (24, 4096)}
"""mT5's layers and width."""
LLM_LAYERS = 32
"""Rows of the matrix of `fuse_by_matrix`."""
DTYPES = ("bfloat16", "float16", "float32")
SHARED_KIB = {80: 164, 90: 228, 100: 228}
"""Shared memory of a multiprocessor (CUDA C++ programming guide, table of compute capabilities)."""


@dataclass
class Compiled:
    """One kernel for one GPU."""

    gpu: str
    encoder: str
    heads: int
    dtype: str
    kernel: str
    registers: int = 0
    spilled: int = 0
    """Bytes a thread."""
    blocks: int = 0
    """Resident on a multiprocessor."""
    warps: int = 0
    loads: dict[int, int] = field(default_factory=dict)
    """Loads of states in the compiled text, by width in bytes."""

    @property
    def wrong(self) -> str:
        """What must not be; empty where all is well."""
        if self.spilled:
            return f"{self.spilled} bytes spilled"
        reads = self.kernel not in ("times", "addresses")
        return f"states are read in pieces of {sorted(self.loads)} bytes" if reads and set(self.loads) != {16} else ""

    def __str__(self) -> str:
        return (
            f"{self.gpu:7}{self.encoder:6} heads {self.heads}  {self.dtype:9}{self.kernel:16}"
            f"{self.registers:4} registers {self.warps:3} warps {self.blocks:3} blocks  "
            f"{self.loads.get(16, 0):2} loads of 16 bytes  {self.wrong}"
        )


class _Device:
    """Triton's driver for a device that is only a target."""

    target = TARGETS["sm90"]

    def get_current_device(self) -> int:
        return list(TARGETS.values()).index(self.target)

    def get_current_stream(self, device: Any = None) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def is_active(self) -> bool:
        return True


def compiled(
    gpu: str, encoder: str, heads: int, dtype: torch.dtype, rms: bool = False, attention_only: bool = False
) -> list[Compiled]:
    """Every kernel that forward and backward launch, as compiled for `gpu`; `attention_only`: those that depend on the
    heads. (Global Softmax's sum is `mix` with one factor less; it is compiled with `rms`, which it computes itself.)"""
    device, caught, run = _Device(), [], JITFunction.run
    device.target = TARGETS[gpu]

    def catch(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        caught.append((self.fn.__name__, run(self, *args, grid=grid, warmup=True, **options)))
        return caught[-1][1]

    driver.set_active(device)
    JITFunction.run = catch
    try:
        _launch_all(*ENCODERS[encoder], heads, dtype, rms, attention_only)
    finally:
        JITFunction.run = run
    name = str(dtype).removeprefix("torch.")
    return [_facts(kernel, gpu, encoder, heads, name, which) for which, kernel in caught]


def _launch_all(layers: int, width: int, heads: int, dtype: torch.dtype, rms: bool, attention_only: bool) -> None:
    tokens, wide = 64, torch.promote_types(dtype, torch.float32)
    states = [torch.zeros(2 * tokens, width, dtype=dtype) for _ in range(layers)]
    rows = Rows(2 * tokens, tokens, torch.arange(tokens))
    masks = make_masks(0.1, 12345, 0, (heads * (layers + 1), width, 2048))

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=wide)

    given = (triton_primitives.prepare(states), rows, 0, tokens)
    scale = zeros(tokens, layers) if rms else None
    triton_primitives.attend(*given, zeros(heads, width), zeros(heads, layers + 1), masks.attention, rms)
    d_kept, attention, kept = (zeros(tokens, heads, layers + 1) for _ in range(3))
    triton_primitives.attend_backward(*given, zeros(heads, tokens, width), d_kept, attention, kept, scale)
    if not attention_only:
        triton_primitives.mix(*given, zeros(tokens, layers), states[0], scale)
        if rms:
            triton_primitives.mix(*given, zeros(layers), states[0], None, rms)
        triton_primitives.dots(*given, states[0], wide)
        if triton_primitives.takes_matrix(states[0]):
            fused, matrix = torch.zeros(LLM_LAYERS, 2 * tokens, width, dtype=dtype), zeros(LLM_LAYERS, layers + 1)
            triton_primitives.mix_matrix(given[0], rows, matrix, fused, True, rms)
            triton_primitives.matrix_totals(given[0], rows, fused, fused, scale, wide)
        triton_primitives.times(torch.zeros(tokens, width, dtype=dtype), masks.output)
        triton_primitives.times(torch.zeros(tokens, 2048, dtype=dtype), masks.hidden, scale=1.0)


def _facts(kernel: Any, gpu: str, encoder: str, heads: int, dtype: str, name: str) -> Compiled:
    found = Compiled(gpu, encoder, heads, dtype, name, warps=kernel.metadata.num_warps)
    if gpu.startswith("sm"):
        architecture = int(gpu.removeprefix("sm"))
        text = _resources(kernel.asm["cubin"])
        found.registers = _number(r"REG:(\d+)", text)
        found.spilled = _number(r"STACK:(\d+)", text) + _number(r"LOCAL:(\d+)", text)
        # Only states are read with this hint.
        widths = [_ptx_bytes(load) for load in re.findall(r"ld\.global[\w.:]*evict_first([\w.:]*)", kernel.asm["ptx"])]
        blocks = 65536 // (-(-max(found.registers, 1) * 32 // 256) * 256) // found.warps
        shared = SHARED_KIB[architecture] * 1024 // (kernel.metadata.shared + 1024)
        found.blocks = min(blocks, 64 // found.warps, shared, 32)
    else:
        text = kernel.asm["amdgcn"]
        found.registers = _number(r"\.vgpr_count:\s+(\d+)", text)
        found.spilled = 4 * _number(r"\.vgpr_spill_count:\s+(\d+)", text)
        found.spilled += _number(r"\.private_segment_fixed_size:\s+(\d+)", text)
        # No hint there: the widest loads are the states', and none may be of one bfloat16.
        words = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "short_d16": 2}
        widths = [words.get(load, 2) for load in re.findall(r"(?:global|buffer)_load_(\w+)", text)]
        widths = [width for width in widths if width in (2, 16)]
        # 512 registers a lane, in steps of 8; 4 SIMDs, each with up to 8 waves.
        waves = min(512 // max(8, -(-found.registers // 8) * 8), 8)
        found.blocks = 4 * waves // found.warps
    for width in widths:
        found.loads[width] = found.loads.get(width, 0) + 1
    return found


def _ptx_bytes(suffix: str) -> int:
    vector = re.search(r"\.v(\d)", suffix)
    return int(vector[1] if vector else 1) * int(suffix.rpartition(".")[2].lstrip("bsuf")) // 8


def _resources(cubin: bytes) -> str:
    """What the device's code takes (registers, stack for spills), said by the tool that comes with triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
        return subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, encoding="utf-8", check=True
        ).stdout


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    return int(match[1]) if match else 0


def _among(names: Iterable[str]) -> Callable[[str], str]:
    """A `type` for argparse: one of `names`. `choices` does not work for the items of a list."""
    known = list(names)

    def convert(text: str) -> str:
        if text not in known:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(known)}")
        return text

    return convert


def _listed(convert: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """A `type` for argparse: a comma-separated list, each item converted by `convert`."""

    def split(text: str) -> list[Any]:
        return [convert(part) for part in text.split(",")]

    split.__name__ = f"list of {convert.__name__}"
    return split


def main(argv: list[str] | None = None) -> int:
    """Compile, print a line a kernel; 1 where something must not be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--gpus", default="sm90", type=_listed(_among(TARGETS)), help=f"of {', '.join(TARGETS)} (default: sm90)"
    )
    parser.add_argument(
        "--encoders", default="xl", type=_listed(_among(ENCODERS)), help=f"of {', '.join(ENCODERS)} (default: xl)"
    )
    parser.add_argument(
        "--heads", default="1", type=_listed(positive(int)), help="attention heads of transformer_softmax (default: 1)"
    )
    parser.add_argument(
        "--dtypes", default="bfloat16,float32", type=_listed(_among(DTYPES)),
        help=f"of the states, of {', '.join(DTYPES)} (default: bfloat16,float32)",
    )  # fmt: skip
    parser.add_argument("--rms", action="store_true", help="with fusion.state_norm=rms")
    options = parser.parse_args(argv)
    os.environ.setdefault("TRITON_CACHE_DIR", tempfile.mkdtemp())
    wrong = 0
    for gpu, encoder, dtype, count in product(options.gpus, options.encoders, options.dtypes, options.heads):
        for row in compiled(gpu, encoder, count, getattr(torch, dtype), options.rms, count != options.heads[0]):
            wrong += bool(row.wrong)
            print(row, flush=True)
    print(f"{wrong} kernels spill, fail, or read a state less than 16 bytes at a time")
    return int(bool(wrong))


if __name__ == "__main__":
    run_command(main)
