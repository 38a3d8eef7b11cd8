#!/usr/bin/env python3
"""How long a step of the whole training job takes, by fusion: DeepSpeed, data, optimizer and records included.

examples:
  python tools/bench/bench_job.py                                          (the testbed, all fusions; five minutes)
  python tools/bench/bench_job.py --ds_config zero2.json --rounds 5
  python tools/bench/bench_job.py --fusions last_layer,transformer_softmax --set model.dtype=bfloat16
  python tools/bench/bench_job.py --quick --output /tmp/rows.csv            (whether it works)

Each row is runs of bridge_ds/train.py on one rank, as README's first command starts it, without scoring and trackers.
The runs of all fusions are repeated in turns, so that what else the machine does meets all of them; a row holds the
median over the steps of all its runs but the first ten of each. bench_step.py times the step alone.

Columns: milliseconds a step (`seconds` of metrics.jsonl), median and quickest tenth; ratio = the median over that of
the first fusion named.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from bridge_ds.cli import Parser, positive
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError
from bridge_ds.fusion import FUSIONS
from bridge_ds.testbed import ENGLISH_ROWS, english_rows
from tools.bench.bench_rows import append, provenance
from tools.bench.study import Arm, Processes, Runs

WARM_UP = 10
"""Steps of each run that are not counted; of a run that has fewer, half."""


def main(argv: list[str] | None = None) -> int:
    """Run all fusions in turns, print the rows and append them."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--fusions", default=",".join(FUSIONS), help="comma-separated; the first is 1.0 (default: all)")
    add("--ds_config", default="zero3.json", help="DeepSpeed file (default: zero3.json)")
    add("--threads", type=positive(int), help="of the process (default: the cores of this machine)")
    add("--steps", type=positive(int, least=4), default=150, help="of each run (default: 150)")
    add("--rounds", type=positive(int), default=3, help="runs of each fusion (default: 3)")
    add("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="to all runs")
    add("--quick", action="store_true", help="one run of six steps a fusion")
    add("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="CSV to which rows are added")
    options = parser.parse_args(argv)
    if options.quick:
        options.steps, options.rounds = 6, 1
    names = options.fusions.split(",")
    for name in names:
        if name not in FUSIONS:
            raise ConfigError(f"--fusions has {name!r}; expected some of {', '.join(FUSIONS)}.")
    threads = options.threads or len(os.sched_getaffinity(0))
    arms = [Arm(name, name, (f"fusion.name={name}",)) for name in names]
    found: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pack_rows(english_rows(ENGLISH_ROWS), folder / "shards")
        settings = (
            f"data.shards={folder / 'shards'}", "evaluation.tasks=[]", "train.validate_every=0",
            f"train.steps={options.steps}", "checkpoint.every=1000000", *options.overrides,
        )  # fmt: skip
        runs = Runs(
            folder, arms, range(options.rounds), Processes(threads), ("--ds_config", options.ds_config), settings
        )
        for arm, turn in runs:
            where = runs.folder(arm, turn)
            runs.train(where, [*settings, *arm.settings])
            lines = (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
            seconds = [json.loads(line)["seconds"] for line in lines]
            found[arm.name] += seconds[min(WARM_UP, len(seconds) // 2) :]
    of = provenance(torch.device("cpu"), threads) | {
        "ds_config": options.ds_config,
        "settings": " ".join(options.overrides),
    }
    table = [of | row(name, found[name], found[names[0]]) for name in names]
    for line in table:
        print(f"{line['fusion']:<20} {line['ms']:8.2f} ms  quickest tenth {line['quick ms']:8.2f}  x{line['ratio']}")
    append(options.output, table)
    return 0


def row(name: str, seconds: list[float], first: list[float]) -> dict[str, object]:
    """Of a fusion, beside the steps of the first one."""
    return {
        "fusion": name,
        "steps": len(seconds),
        "ms": round(1000 * median(seconds), 2),
        "quick ms": round(1000 * quantiles(seconds, n=10)[0], 2),
        "ratio": round(median(seconds) / median(first), 3),
    }


if __name__ == "__main__":
    run_command(main)
