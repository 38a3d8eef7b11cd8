#!/usr/bin/env python3
"""Time K weighted sums of L states (`fuse_by_matrix`) beside plain formulas over a stack of the states.

examples:
  python tools/bench/bench_matrix.py
  python tools/bench/bench_matrix.py --quick --output /tmp/rows.csv    # tiny; shows that it runs

`linear over a stack` stacks the states on a last axis, runs torch's Linear over it and ReLU, and permutes the result
back to [K, N, D], as the public code of LayAlign (arXiv 2502.11405) does; `einsum` multiplies the matrix with states
stacked on the first axis. Rows are appended to bench_matrix.csv beside this file: machine, versions, commit, shapes;
median and fastest milliseconds of forward and of forward + backward (frozen states), measured in turns after an
unmeasured call of the same; and how many times as long as `torch` each took, of the fastest and of the medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bridge_ds.engine.cpu import keep_freed_memory  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.fusion.kernels import fuse_by_matrix  # noqa: E402
from bridge_ds.fusion.kernels.rows import real_rows  # noqa: E402
from tools.bench.bench_rows import append, provenance  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")


def main(argv: list[str] | None = None) -> int:
    """Measure, write, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes; shows that everything runs, not how fast")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeat", type=int, default=5, help="turns (default: 5)")
    parser.add_argument("--output", type=Path, default=CSV, help="CSV to append to (default: bench_matrix.csv)")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    shapes = [(4, 3, 8, 16)] if options.quick else [(32, 24, 256, 2048), (32, 24, 512, 2048)]
    for results, layers, tokens, width in shapes:
        rows = measure(results, layers, tokens, width, options)
        append(options.output, rows)
        for row in rows:
            shape = f"K={results} L={layers} N={tokens} D={width}"
            times = f"{row['forward_ms']:9} {row['both_ms']:9} ms, fastest {row['fastest_both_ms']:9}"
            print(f"{shape} {row['path']:20} {times}  x{row['fastest_both_vs_torch']}")
    return 0


def measure(results: int, layers: int, tokens: int, width: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All candidates at one shape, in turns."""
    torch.manual_seed(0)
    states = [torch.randn(1, tokens, width) for _ in range(layers)]
    upstream = torch.randn(results, 1, tokens, width)
    weight = torch.randn(results, layers, requires_grad=True)
    bias = torch.randn(results, requires_grad=True)
    mask = torch.ones(1, tokens)
    rows = real_rows(mask)
    candidates: dict[str, Callable[[], torch.Tensor]] = {
        "torch": lambda: fuse_by_matrix("torch", states, mask, weight, bias, rows=rows),
        "einsum": lambda: torch.relu(
            torch.einsum("kl,lbnd->kbnd", weight, torch.stack(states)) + bias[:, None, None, None]
        ),
        "linear over a stack": lambda: (
            torch.nn.functional.linear(torch.stack(states, -1), weight, bias).relu().permute(3, 0, 1, 2)
        ),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in candidates}
    for _ in range(options.repeat):
        for name, call in candidates.items():
            for turn in range(3):
                weight.grad = bias.grad = None
                began = time.perf_counter()
                fused = call()
                middle = time.perf_counter()
                fused.backward(upstream)
                if turn:
                    found[name].append(((middle - began) * 1e3, (time.perf_counter() - began) * 1e3))
                del fused
    common = provenance(torch.device("cpu"), options.threads) | {
        "results": results, "layers": layers, "tokens": tokens, "width": width, "dtype": "float32",
    }  # fmt: skip
    made = []
    for name, times in found.items():
        forward, both = zip(*times, strict=True)
        fastest = min(both)
        made.append(common | {
            "path": name, "forward_ms": round(statistics.median(forward), 2),
            "both_ms": round(statistics.median(both), 2), "fastest_forward_ms": round(min(forward), 2),
            "fastest_both_ms": round(fastest, 2),
            "both_vs_torch": round(statistics.median(both) / statistics.median(b for _, b in found["torch"]), 2),
            "fastest_both_vs_torch": round(fastest / min(b for _, b in found["torch"]), 2),
        })  # fmt: skip
    return made


if __name__ == "__main__":
    run_command(main)
