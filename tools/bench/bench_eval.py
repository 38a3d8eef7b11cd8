#!/usr/bin/env python3
"""Time the scoring of a batch with K labels against one label: what the reuse of the prefix leaves to pay.

examples:
  python tools/bench/bench_eval.py                                   # testbed-sized models
  python tools/bench/bench_eval.py --sizes mt5-large+1b --layers 2   # real widths, two layers of each model
  python tools/bench/bench_eval.py --quick                           # seconds; shows that everything runs

Models have random weights: speed does not depend on their values. Encoder, fusion, mapping and the LLM's reading of the
prefix happen once a batch, whatever K is; then each label's tokens but the last go through the LLM after a copy of the
prefix's cache. Numbers of labels take turns in one process, so that a slow moment hits all of them. Rows are appended
to bench_eval.csv beside this file: median milliseconds of a batch, and the median over the turns of the ratio to one
label in the same turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from bridge_ds.bridge import BridgeModel  # noqa: E402
from bridge_ds.data.loading.batch import Batch  # noqa: E402
from bridge_ds.engine.cpu import LARGEST, cpu_threads, keep_freed_memory  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.inference.score import score_choices  # noqa: E402
from tools.bench.bench_models import (  # noqa: E402
    DTYPES,
    FEEDFORWARD,
    SIZES,
    VOCABULARY,
    frozen_pair,
    make_batch,
    make_model,
    make_texts,
)
from tools.bench.bench_rows import append, provenance  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="testbed", choices=sorted(SIZES), help="models (default: testbed)")
    parser.add_argument("--layers", type=int, default=0, help="layers of both models; 0 = as named")
    parser.add_argument("--labels", default="1,3,5", help="numbers of labels, comma-separated (default: 1,3,5)")
    parser.add_argument("--batch", type=int, default=32, help="samples of a batch (default: 32)")
    parser.add_argument("--source", type=int, default=64, help="encoder tokens a sample at most (default: 64)")
    parser.add_argument("--target", type=int, default=3, help="tokens of a label, end included (default: 3)")
    parser.add_argument("--repeat", type=int, default=15, help="measured batches of each number (default: 15)")
    own = cpu_threads(len(os.sched_getaffinity(0)), 1, 0)
    parser.add_argument("--threads", type=int, default=own, help=f"CPU threads (default: {own})")
    parser.add_argument("--quick", action="store_true", help="tiny models, two batches")
    parser.add_argument(
        "--output", type=Path, default=CSV, help="CSV to append to (default: tools/bench/bench_eval.csv)"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.sizes, options.repeat = "tiny", 2
    torch.set_num_threads(options.threads)
    keep_freed_memory(LARGEST)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(options, device)
    append(options.output, rows)
    for row in rows:
        print(f"{row['sizes']:14} {row['labels']:>3} labels {row['batch_ms']:10.2f} ms  x{row['vs_one']}")
    return 0


def measure(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """All numbers of labels in turns on the same models and batch."""
    dtype = DTYPES["bfloat16" if device.type == "cuda" else "float32"]
    encoder, llm = frozen_pair(options.sizes, device, dtype, options.layers)
    model = make_model("transformer_softmax", FEEDFORWARD.get(options.sizes, 2048), encoder, llm, device).eval()
    texts = make_texts(options.batch, str(options.source), options.target)
    batch = make_batch(texts).to(device)
    counts = sorted({1, *map(int, options.labels.split(","))})
    labels = torch.randint(3, VOCABULARY, (counts[-1], options.target)).tolist()
    times: dict[int, list[float]] = {count: [] for count in counts}
    for turn in range(options.repeat + 1):  # the first turn warms up
        for count in counts:
            seconds = one_batch(model, batch, labels[:count])
            if turn:
                times[count].append(seconds)
    rows = []
    for count in counts:
        ratio = statistics.median(own / one for own, one in zip(times[count], times[1], strict=True))
        rows.append(provenance(device, options.threads) | {
            "sizes": options.sizes, "encoder_layers": encoder.num_layers, "encoder_width": encoder.width,
            "llm_layers": llm.model.config.num_hidden_layers, "llm_width": llm.width, "batch": options.batch,
            "source": options.source, "label_tokens": options.target, "labels": count,
            "batch_ms": round(statistics.median(times[count]) * 1e3, 3), "vs_one": round(ratio, 3),
        })  # fmt: skip
    return rows


@torch.no_grad()
def one_batch(model: BridgeModel, batch: Batch, labels: list[list[int]]) -> float:
    """Seconds from token ids to scores."""
    began = time.perf_counter()
    scores = score_choices(model.llm, model.prefix(batch), [labels] * len(batch.source_ids)).log_p
    scores.cpu()  # waits for the device
    return time.perf_counter() - began


if __name__ == "__main__":
    run_command(main)
