#!/usr/bin/env python3
"""Time every fusion on every code path side by side, against the reference, torch.compile and the memory's own speed.

examples:
  python tools/bench/bench_fusion.py              # this machine's standard shapes (2 threads on a CPU)
  python tools/bench/bench_fusion.py --quick      # tiny shapes; with TRITON_INTERPRET=1 the triton path too, on a CPU
  python tools/bench/bench_fusion.py --compile    # also torch.compile of the reference and of the shortcut
  python tools/bench/bench_fusion.py --plot-only  # the plot from the rows that are there

Rows are appended to bench_fusion.csv beside this file, the plot is bench_fusion.png. A row holds the machine, versions
and commit; shapes (layers, tokens, width, dtype); median milliseconds of forward and of forward + backward (in training
mode, dropout 0.1 in every column; the states are frozen) and the fastest of the latter; the ratio reference / this
(above 1 = faster than the reference) and the same with torch.compile, of medians and of the fastest (on a machine that
others use too, time is only ever added, so the fastest says more about the code); the states' bytes that must be read,
per second, as a share of the copy speed measured in the same run (2 passes forward and 2 backward for
transformer_softmax, 1 and 1 for global_softmax); and the peak extra memory, less the parameters' gradients, in units of
tokens x width elements. All of one shape is measured in one run, in turns, so that a slow moment hits all of it; each
measurement follows an unmeasured call of the same, as steps of training follow each other. On a GPU these are wall
times, in which the host's launches count; device_ms is what the kernels of forward + backward take by themselves (from
torch.profiler), states_ms what those take that read the states, and states_share_of_copy_speed the bytes of the states
that these must read, per second, beside the copy speed. What does not fit into the device's memory has no row.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from bridge_ds.engine.cpu import keep_freed_memory  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.fusion import FUSIONS  # noqa: E402
from bridge_ds.fusion.kernels import choose_backend  # noqa: E402
from tools.bench.bench_rows import append, provenance  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")
PASSES = {"global_softmax": (1, 2), "transformer_softmax": (2, 4), "last_layer": (0, 0)}
"""Passes over the states in forward, and in forward + backward."""
READERS = {"attend", "attend_backward", "mix", "dots"}
"""Triton kernels that read the states."""


def main(argv: list[str] | None = None) -> int:
    """Measure, write, plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="tiny shapes; shows that everything runs, not how fast")
    parser.add_argument("--compile", action="store_true", help="add torch.compile rows (needs a C++ compiler; minutes)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default: 2)")
    parser.add_argument("--repeat", type=int, default=7, help="measurements of each kind (default: 7)")
    parser.add_argument(
        "--output", type=Path, default=CSV, help="CSV to append to (default: tools/bench/bench_fusion.csv)"
    )
    parser.add_argument("--plot-only", action="store_true", help="measure nothing")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not options.plot_only:
        for layers, tokens, width, dtype in shapes(device, options.quick):
            rows = measure(layers, tokens, width, dtype, device, options)
            append(options.output, rows)
            print_rows(rows)
    if not options.quick:
        plot(options.output)
    return 0


def shapes(device: torch.device, quick: bool) -> list[tuple[int, int, int, torch.dtype]]:
    """(layers, tokens, width, dtype): mT5-small / large / XL on a GPU, the widths a CPU can bear else."""
    if quick:
        return [(4, 16, 64, torch.float32)]
    if device.type == "cpu":
        return [(24, 256, 2048, torch.float32), (8, 1024, 512, torch.float32)]
    sizes = [(8, 512), (24, 1024), (24, 2048)]
    return [(layers, n, width, torch.bfloat16) for layers, width in sizes for n in (1024, 4096, 16384)]


def measure(
    layers: int, tokens: int, width: int, dtype: torch.dtype, device: torch.device, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All fusions and paths at one shape, in turns."""
    torch.manual_seed(0)
    states = [torch.randn(1, tokens, width, device=device).to(dtype) for _ in range(layers)]
    upstream = torch.randn_like(states[0])
    mask = torch.ones(1, tokens, dtype=torch.long, device=device)
    candidates = {
        (name, path): make_module(name, path, layers, width, device)
        for name in ("global_softmax", "transformer_softmax")
        for path in paths(device, options)
    }
    found: dict[tuple[str, str], list[tuple[float, float]]] = {key: [] for key in candidates}
    copies = []
    for key in [key for key, module in candidates.items() if not fits(module, states, mask, upstream, device)]:
        print(f"L={layers} N={tokens} D={width}: {' '.join(key)} does not fit into the device's memory")
        del candidates[key], found[key]
    for turn in range(options.repeat):
        copies.append(copy_bytes_per_second(layers * tokens * width, dtype, device))
        for key, module in candidates.items():
            slow = "transformer" in key[0] and "reference" in key[1]
            if turn > 3 and slow:
                continue  # it takes seconds, and its spread is small beside the ratio
            for call in range(2 if slow else 5):
                times = time_module(module, states, mask, upstream, device)
                if call:  # the first compiles, or finds the memory as another candidate left it
                    found[key].append(times)
    memory = {key: extra_memory(module, states, mask, upstream, device) for key, module in candidates.items()}
    kernels = {key: kernel_times(module, states, mask, upstream, device) for key, module in candidates.items()}
    interpreter = os.environ.get("TRITON_INTERPRET", "0")
    common = provenance(device, options.threads) | {"interpreter": interpreter} | {
        "layers": layers, "tokens": tokens, "width": width, "dtype": str(dtype).removeprefix("torch."),
        "copy_gb_per_s": round(statistics.median(copies) / 1e9, 2),
    }  # fmt: skip
    return [common | row for row in make_rows(found, memory, kernels, layers * tokens * width * dtype.itemsize, copies)]


def paths(device: torch.device, options: argparse.Namespace) -> list[str]:
    """Code paths of this run; `compiled ...` are torch.compile of plain formulas."""
    found = ["reference", "torch"]
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        found.append(choose_backend("triton"))
    return found + (["compiled reference", "compiled formula"] if options.compile else [])


def make_module(name: str, path: str, layers: int, width: int, device: torch.device) -> Any:
    """A module whose call is one forward."""
    real = {"compiled reference": "reference", "compiled formula": "reference"}.get(path, path)
    torch.manual_seed(0)
    module: Any = FUSIONS[name](num_layers=layers, width=width, backend=real).to(device)
    if path == "compiled formula" and name == "transformer_softmax":
        from plain_collapse import PlainCollapse

        module = PlainCollapse(module)
    return torch.compile(module) if path.startswith("compiled") else module


def time_module(
    module: Any, states: list[torch.Tensor], mask: torch.Tensor, upstream: torch.Tensor, device: torch.device
) -> tuple[float, float]:
    """Milliseconds of one forward and of forward + backward."""
    for parameter in module.parameters():
        parameter.grad = None
    wait(device)
    began = time.perf_counter()
    fused = module(states, mask)
    wait(device)
    middle = time.perf_counter()
    fused.backward(upstream)
    wait(device)
    return (middle - began) * 1e3, (time.perf_counter() - began) * 1e3


def fits(
    module: Any, states: list[torch.Tensor], mask: torch.Tensor, upstream: torch.Tensor, device: torch.device
) -> bool:
    """Whether a first call finds memory enough, where that is a GPU's."""
    if device.type != "cuda":
        return True
    try:
        time_module(module, states, mask, upstream, device)
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def kernel_times(
    module: Any, states: list[torch.Tensor], mask: torch.Tensor, upstream: torch.Tensor, device: torch.device
) -> tuple[float, float] | None:
    """Milliseconds of all kernels of forward + backward, and of our kernels that read states; None without a GPU."""
    if device.type != "cuda":
        return None
    calls = 5
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(calls):
            time_module(module, states, mask, upstream, device)
    events = [event for event in profile.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA]
    ours = [event for event in events if event.key in READERS]
    return tuple(sum(e.self_device_time_total for e in found) / 1e3 / calls for found in (events, ours))  # type: ignore[return-value]


def extra_memory(
    module: Any, states: list[torch.Tensor], mask: torch.Tensor, upstream: torch.Tensor, device: torch.device
) -> float | str:
    """Peak bytes of forward + backward beyond what was there and the gradients, in units of tokens x width elements."""
    gradients = sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
    unit = states[0].numel() * states[0].element_size()
    for parameter in module.parameters():
        parameter.grad = None
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        module(states, mask).backward(upstream)
        return round((torch.cuda.max_memory_allocated() - before - gradients) / unit, 2)
    if isinstance(module, torch._dynamo.eval_frame.OptimizedModule):
        return ""  # its buffers are made below the operators that can be watched
    from tests.fusion.measure import Allocations

    with Allocations([*states, mask, upstream, *module.parameters()]) as seen:
        module(states, mask).backward(upstream)
    return round((seen.peak - gradients) / unit, 2)


def make_rows(
    found: dict[tuple[str, str], list[tuple[float, float]]],
    memory: dict[tuple[str, str], float | str],
    kernels: dict[tuple[str, str], tuple[float, float] | None],
    state_bytes: int,
    copies: list[float],
) -> list[dict[str, Any]]:
    """One row a fusion and path."""
    copy = statistics.median(copies)
    middle, fastest = (
        {key: [pick(column) for column in zip(*times, strict=True)] for key, times in found.items()}
        for pick in (statistics.median, min)
    )
    rows = []
    for (name, path), (forward, both) in middle.items():
        slow, best = middle.get((name, "reference")), fastest[name, path]
        of_kernels = kernels[name, path]
        reads = [passes * state_bytes / (ms / 1e3) for passes, ms in zip(PASSES[name], (forward, both), strict=True)]
        row: dict[str, Any] = {
            "fusion": name, "path": path, "forward_ms": round(forward, 3), "both_ms": round(both, 3),
            "fastest_both_ms": round(best[1], 3),
            "forward_vs_reference": round(slow[0] / forward, 2) if slow else "",
            "both_vs_reference": round(slow[1] / both, 2) if slow else "",
            "fastest_both_vs_reference": round(fastest[name, "reference"][1] / best[1], 2) if slow else "",
        }  # fmt: skip
        for other in ("compiled reference", "compiled formula"):
            for prefix, of in (("", middle), ("fastest_", fastest)):
                column = f"{prefix}both_vs_{other.replace(' ', '_')}"
                there = (name, other) in of
                row[column] = round(of[name, other][1] / of[name, path][1], 2) if there else ""
        # A copy reads and writes, so the bytes it moves are twice those copied.
        row["forward_share_of_copy_speed"] = round(reads[0] / copy, 3)
        row["both_share_of_copy_speed"] = round(reads[1] / copy, 3)
        row["peak_extra_nd"] = memory[name, path]
        row["device_ms"] = round(of_kernels[0], 3) if of_kernels else ""
        row["states_ms"] = round(of_kernels[1], 3) if of_kernels and of_kernels[1] else ""
        row["states_share_of_copy_speed"] = (
            round(PASSES[name][1] * state_bytes / (of_kernels[1] / 1e3) / copy, 3)
            if of_kernels and of_kernels[1] else ""
        )  # fmt: skip
        rows.append(row)
    return rows


def copy_bytes_per_second(elements: int, dtype: torch.dtype, device: torch.device) -> float:
    """Bytes that a plain copy of a tensor as large as all states reads and writes, per second."""
    source = torch.ones(elements, dtype=dtype, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    wait(device)
    began = time.perf_counter()
    target.copy_(source)
    wait(device)
    return 2 * source.numel() * source.element_size() / (time.perf_counter() - began)


def wait(device: torch.device) -> None:
    """Until the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The columns one looks at first."""
    for row in rows:
        shape = f"L={row['layers']} N={row['tokens']} D={row['width']} {row['dtype']}"
        print(f"{shape:32} {row['fusion']:20} {row['path']:20} {row['forward_ms']:10.2f} {row['both_ms']:10.2f} ms  "
              f"x{row['both_vs_reference']:<7} "
              f"(fastest x{row['fastest_both_vs_reference']})  extra {row['peak_extra_nd']} ND")  # fmt: skip


def plot(path: Path) -> None:
    """Bars of forward + backward, one group a shape, from the newest rows of each."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with path.open(encoding="utf-8") as file:
        newest = {(r["fusion"], r["path"], r["layers"], r["tokens"], r["width"]): r for r in csv.DictReader(file)}
    labels = [f"{fusion}, {way}\n{n} x {d}, {layers} layers" for fusion, way, layers, n, d in newest]
    figure, axes = pyplot.subplots(figsize=(8, 1 + 0.4 * len(labels)))
    bars = axes.barh(labels, [float(row["both_ms"]) for row in newest.values()])
    axes.bar_label(bars, fmt="%.3g", padding=3)
    axes.margins(x=0.1, y=0.01)
    axes.set_xscale("log")
    axes.set_xlabel("forward + backward, ms (logarithmic)")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path.with_suffix(".png"), dpi=110)


if __name__ == "__main__":
    run_command(main)
