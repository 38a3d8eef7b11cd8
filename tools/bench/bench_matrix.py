#!/usr/bin/env python3
"""Time K weighted sums of L states (`fuse_by_matrix`) beside plain formulas over a stack of the states.

examples:
  python tools/bench/bench_matrix.py
  python tools/bench/bench_matrix.py --quick --output /tmp/rows.csv    # tiny; shows that it runs

`linear over a stack` stacks the states on a last axis, runs torch's Linear over it and ReLU, and permutes the result
back to [K, N, D], as the public code of LayAlign (arXiv 2502.11405) does; `einsum` multiplies the matrix with states
stacked on the first axis. Processes take turns: in one, memory is as the trainer has it, which keeps what is freed
(memory = kept); in the other as the C library does it, which maps and clears each large tensor anew (memory = own).
Rows are appended to bench_matrix.csv beside this file: machine, versions, commit, shapes; median and fastest
milliseconds of forward and of forward + backward (frozen states), after an unmeasured call of the same; and how many
times as long as `torch` with kept memory each took, of the medians and of the fastest.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bridge_ds.engine.cpu import LARGEST, keep_freed_memory  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.fusion.kernels import fuse_by_matrix  # noqa: E402
from bridge_ds.fusion.kernels.rows import real_rows  # noqa: E402
from tools.bench.bench_rows import append, provenance  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")
MEMORY = ("kept", "own")
Times = dict[str, list[tuple[float, float]]]
"""Milliseconds of forward and of both directions of each call, by path."""


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes; shows that everything runs, not how fast")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeat", type=int, default=5, help="processes of each kind (default: 5)")
    parser.add_argument("--output", type=Path, default=CSV, help="CSV to append to (default: bench_matrix.csv)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # in a process of its own: memory and shape
    options = parser.parse_args(argv)
    if options.measure:
        memory, *shape = options.measure.split(",")
        torch.set_num_threads(options.threads)
        if memory == "kept":
            keep_freed_memory(LARGEST)
        print(json.dumps(measure(*map(int, shape))))
        return 0
    shapes = [(4, 3, 8, 16)] if options.quick else [(32, 24, 256, 2048), (32, 24, 512, 2048)]
    for shape in shapes:
        found: dict[str, Times] = {memory: {} for memory in MEMORY}
        for _ in range(1 if options.quick else options.repeat):
            for memory, times in found.items():
                for path, calls in in_process(memory, shape, options.threads).items():
                    times.setdefault(path, []).extend(calls)
        results, layers, tokens, width = shape
        common = provenance(torch.device("cpu"), options.threads) | {
            "results": results, "layers": layers, "tokens": tokens, "width": width, "dtype": "float32",
        }  # fmt: skip
        rows = table(found, common)
        append(options.output, rows)
        for row in rows:
            what = f"K={results} L={layers} N={tokens} D={width} {row['path']:20} memory {row['memory']:5}"
            ratios = f"x{row['forward_vs_torch']} x{row['both_vs_torch']}"
            print(f"{what} {row['forward_ms']:9} {row['both_ms']:9} ms  {ratios}")
    return 0


def in_process(memory: str, shape: tuple[int, ...], threads: int) -> Times:
    """:func:`measure` in a process whose allocator is set from the beginning: one that has kept memory goes on using
    it."""
    given = ",".join([memory, *map(str, shape)])
    command = [sys.executable, __file__, "--threads", str(threads), "--measure", given]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True)
    found: Times = json.loads(done.stdout)
    return found


def measure(results: int, layers: int, tokens: int, width: int) -> Times:
    """All paths at one shape."""
    torch.manual_seed(0)
    states = [torch.randn(1, tokens, width) for _ in range(layers)]
    upstream = torch.randn(results, 1, tokens, width)
    weight = torch.randn(results, layers, requires_grad=True)
    bias = torch.randn(results, requires_grad=True)
    mask = torch.ones(1, tokens)
    rows = real_rows(mask)
    paths: dict[str, Callable[[], torch.Tensor]] = {
        "torch": lambda: fuse_by_matrix("torch", states, mask, weight, bias, rows=rows),
        "einsum": lambda: torch.relu(
            torch.einsum("kl,lbnd->kbnd", weight, torch.stack(states)) + bias[:, None, None, None]
        ),
        "linear over a stack": lambda: (
            torch.nn.functional.linear(torch.stack(states, -1), weight, bias).relu().permute(3, 0, 1, 2)
        ),
    }
    found: Times = {name: [] for name in paths}
    for _ in range(3):
        for name, call in paths.items():
            for turn in range(3):
                weight.grad = bias.grad = None
                began = time.perf_counter()
                fused = call()
                middle = time.perf_counter()
                fused.backward(upstream)
                if turn:
                    found[name].append(((middle - began) * 1e3, (time.perf_counter() - began) * 1e3))
                del fused
    return found


def table(found: dict[str, Times], common: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one shape."""
    own, made = figures(found["kept"]["torch"]), []
    for memory, times in found.items():
        for path, calls in times.items():
            of = figures(calls)
            ratios = {f"{name.removesuffix('_ms')}_vs_torch": round(of[name] / own[name], 2) for name in of}
            made.append(common | {"path": path, "memory": memory} | {n: round(x, 2) for n, x in of.items()} | ratios)
    return made


def figures(calls: list[tuple[float, float]]) -> dict[str, float]:
    """Medians and fastest, in milliseconds."""
    forward, both = zip(*calls, strict=True)
    return {
        "forward_ms": statistics.median(forward), "both_ms": statistics.median(both),
        "fastest_forward_ms": min(forward), "fastest_both_ms": min(both),
    }  # fmt: skip


if __name__ == "__main__":
    run_command(main)
