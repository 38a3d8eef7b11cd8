#!/usr/bin/env python3
"""Time one whole training step (encoder, fusion, mapping, LLM, backward, AdamW) with each fusion against last_layer.

examples:
  python tools/bench/bench_step.py                                   # testbed-sized models
  python tools/bench/bench_step.py --sizes mt5-large+1b --layers 2   # real widths, two layers of each model
  python tools/bench/bench_step.py --sizes mt5-small+1b,mt5-xl+1b --batch 2,8,32 --source 512 --target 64
  python tools/bench/bench_step.py --sizes mt5-base6+106m --source 9-59 --target 2 --vocabulary 32000 --against paper
  python tools/bench/bench_step.py --compile                         # and with layers compiled by torch.compile
  python tools/bench/bench_step.py --quick                           # seconds; shows that everything runs

Models have random weights: speed does not depend on their values. All variants take turns in one process, so that a
slow moment hits all of them. Each batch appends a row for each variant to bench_step.csv beside this file:

  way              ours, paper (as the public code of arXiv 2508.09091 does it, tools/bench/paper_step.py), or compiled
                   (ours, with the layers of encoder and LLM compiled one by one, for any shape), or cached (ours, in an
                   epoch after the first: the encoder's states are read from files, in the step)
  step_ms          median milliseconds of a step
  vs_last_layer    median over the turns of the ratio to the same way's last_layer in the same turn
  speedup          median over the turns of the ratio of the paper's step with the same fusion to this one; where that
                   was not measured, of ours; speedup_medians: the ratio of the medians
  source_tokens_per_s, mfu: floating-point operations that the models need / (seconds x peak). The need per token is 2 x
                   parameters for the frozen encoder's forward, 4 x parameters for the LLM (forward, and the gradient
                   through it to the soft prompt; its vocabulary projection at target tokens only) and 6 x parameters
                   of the bridge; embeddings count nowhere. The peak is that of a large matrix product measured in the
                   same run.
  tokenize_ms      median milliseconds of tokenizing, part of the paper's step. Ours has its ids from data workers.
  first_s          seconds of the first step with this batch: kernels and layers are compiled there
  peak_gib         of the device on CUDA, else the process's resident memory, which never falls
  graphs           graphs that torch.compile had made for both models after the first step with this batch
  recompiled       graphs that two batches of other lengths added
  packing          1 = rows of ours were joined (train.packing)
  products         of ours in float32: onednn (bridge_ds/products.py), or torch, which has MKL do them, as the paper's
  gradient_error   |g - g'| / |g| over all trained parameters, compiled against not compiled, without dropout
  error            why there are no times: the device had too little memory
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from bridge_ds.engine.cpu import LARGEST, cpu_threads, keep_freed_memory  # noqa: E402
from bridge_ds.engine.gpu import grow_segments  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.fusion import FUSIONS  # noqa: E402
from bridge_ds.llm.packing import packing_for  # noqa: E402
from bridge_ds.products import as_torch_does, multiply, uses_onednn  # noqa: E402
from tools.bench import bench_models as models  # noqa: E402
from tools.bench.bench_rows import append, provenance  # noqa: E402
from tools.bench.bench_variants import Variant, make_variants, sync, take_turns  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    options = arguments(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory(LARGEST)  # as the trainer does
    grow_segments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    options.dtype = options.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    peak = peak_flops(device, models.DTYPES[options.dtype])
    for sizes in options.sizes.split(","):
        for vocabulary in map(int, options.vocabulary.split(",")):
            with as_torch_does() if options.products == "torch" else nullcontext():
                for rows in measure(options, device, sizes, vocabulary, peak):
                    append(options.output, rows)
                    print(*map(line, rows), sep="\n", flush=True)
    return 0


def arguments(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sizes", default="testbed", help=f"models, comma-separated: {', '.join(models.SIZES)} (default: testbed)")
    add("--layers", type=int, default=0, help="layers of both models; 0 = as named")
    add("--vocabulary", default=str(models.VOCABULARY), help="of the LLM, comma-separated (default: 4096)")
    add("--dtype", choices=models.DTYPES, help="of both models (default: bfloat16 on CUDA, float32 on a CPU)")
    add("--fusions", default=",".join(FUSIONS), help="comma-separated; last_layer is the base")
    add("--against", choices=["paper"], help="measure the paper's own step beside ours")
    add("--cached", action="store_true", help="measure ours with kept encoder states too (data.states_cache)")
    add("--compile", action="store_true", help="measure ours with compiled layers too")
    add("--batch", default="32", help="samples of a step, comma-separated (default: 32, as the recipe testbed)")
    add("--source", default="32", help="encoder tokens of a sample: 9-59, or 32 for 16 to 32 (default: 32)")
    add("--target", type=int, default=4, help="target tokens of a sample (default: 4)")
    add("--feedforward", type=int, default=0, help="fusion.feedforward; 0 = as the recipe has it")
    add("--repeat", type=int, default=15, help="measured steps of each variant (default: 15)")
    own = cpu_threads(len(os.sched_getaffinity(0)), 1, 1)
    add(
        "--threads", type=int, default=own, help=f"CPU threads (default: the trainer's own, {own} beside a data worker)"
    )
    add("--packing", type=int, choices=(0, 1), help="train.packing of ours (default: 1 on a CPU, else 0)")
    add("--products", choices=("auto", "torch"), default="auto", help="torch = ours without oneDNN's (default: auto)")
    add("--quick", action="store_true", help="tiny models, two steps")
    add("--output", type=Path, default=CSV, help="CSV to append to (default: tools/bench/bench_step.csv)")
    options = parser.parse_args(argv)
    if options.quick:
        options.sizes, options.repeat = "tiny", 2
    for sizes in options.sizes.split(","):
        if sizes not in models.SIZES:
            parser.error(f"--sizes has {sizes!r}; expected some of {', '.join(models.SIZES)}.")
    for fusion in options.fusions.split(","):
        if fusion not in FUSIONS:
            parser.error(f"--fusions has {fusion!r}; expected some of {', '.join(FUSIONS)}.")
    return options


def measure(
    options: argparse.Namespace, device: torch.device, sizes: str, vocabulary: int, peak: float
) -> Iterator[list[dict[str, Any]]]:
    """Rows of each batch; all variants in turns on the same frozen pair."""
    gc.collect()  # of the pair before this one, so that its memory does not count
    began = time.perf_counter()
    dtype = models.DTYPES[options.dtype]
    encoder, llm = models.frozen_pair(sizes, device, dtype, options.layers, vocabulary)
    feedforward = options.feedforward or models.FEEDFORWARD.get(sizes, 2048)
    ways = [
        "ours",
        *(["cached"] if options.cached else []),
        *(["paper"] if options.against else []),
        *(["compiled"] if options.compile else []),
    ]
    variants = make_variants(ways, options.fusions.split(","), feedforward, encoder, llm)
    sync(device)
    print(f"{sizes}: models made in {time.perf_counter() - began:.1f} s", flush=True)
    known = provenance(device, options.threads) | {
        "sizes": sizes, "encoder_layers": encoder.num_layers, "encoder_width": encoder.width,
        "llm_layers": llm.model.config.num_hidden_layers, "llm_width": llm.width, "feedforward": feedforward,
    }  # fmt: skip
    packs = device.type == "cpu" if options.packing is None else bool(options.packing)
    own = options.products == "auto" and (device.type, options.dtype) == ("cpu", "float32") and uses_onednn()
    packing = packing_for(encoder.model.config, llm.model.config, device.type, options.dtype) if packs else None
    for count in map(int, options.batch.split(",")):
        texts = models.make_texts(count, options.source, options.target)
        batch = models.make_batch(texts, packing)
        take_turns(variants, texts, batch, options.repeat, device)
        need = models.needed_flops(next(each for each in variants if each.way == "ours").model, batch)
        facts = known | {"batch": count, "source": options.source, "target": options.target}
        facts |= {"vocabulary": vocabulary, "dtype": options.dtype, "packing": int(packs)}
        facts["products"] = "onednn" if own else "torch"
        rows = [facts | figures(each, variants, batch.source_tokens, need / peak) for each in variants]
        yield [row | ({"products": "torch"} if row["way"] == "paper" else {}) for row in rows]


def figures(variant: Variant, variants: list[Variant], tokens: int, ideal: float) -> dict[str, Any]:
    """Columns of one variant; ratios are empty where there is nothing to compare with.

    Args:
        ideal: seconds of a step at the measured peak.
    """
    found = {(each.way, each.fusion): each for each in variants}
    base = found.get((variant.way, "last_layer"))
    other = found.get(("paper", variant.fusion), found.get(("ours", variant.fusion)))
    row: dict[str, Any] = {"fusion": variant.fusion, "way": variant.way, "error": variant.error}
    names = ("step_ms", "vs_last_layer", "speedup", "speedup_medians", "source_tokens_per_s", "mfu", "tokenize_ms")
    row |= dict.fromkeys((*names, "first_s", "peak_gib", "graphs", "recompiled", "gradient_error"), "")
    if variant.error:
        return row
    seconds = statistics.median(variant.seconds)
    row |= {
        "step_ms": round(seconds * 1e3, 3), "source_tokens_per_s": round(tokens / seconds),
        "mfu": round(ideal / seconds, 4), "first_s": round(variant.first, 2), "peak_gib": round(variant.memory, 2),
    } | variant.more  # fmt: skip
    if base and base.seconds:
        row["vs_last_layer"] = round(ratio(variant, base), 3)
    if other and other.seconds:
        row["speedup"] = round(ratio(other, variant), 3)
        row["speedup_medians"] = round(statistics.median(other.seconds) / seconds, 3)
    return row


def ratio(one: Variant, other: Variant) -> float:
    """Median over the turns of one's seconds to the other's."""
    return statistics.median(a / b for a, b in zip(one.seconds, other.seconds, strict=True))


def line(row: dict[str, Any]) -> str:
    """For the terminal."""
    what = f"{row['sizes']:14} {row['batch']:>3} rows {row['vocabulary']:>6} words {row['way']:8} {row['fusion']:20}"
    if row["error"]:
        return f"{what} {row['error']}"
    return (
        f"{what} {row['step_ms']:10.2f} ms  x{row['vs_last_layer']:<6} {row['source_tokens_per_s']:>8} tokens/s  "
        f"MFU {row['mfu']:<7} speedup {row['speedup']:<6} {row['peak_gib']} GiB"
    )


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a matrix product in the models' dtype: the best of five."""
    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(5):
        sync(device)
        began = time.perf_counter()
        multiply(a, a)
        sync(device)
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


if __name__ == "__main__":
    run_command(main)
