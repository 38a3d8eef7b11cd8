#!/usr/bin/env python3
"""How a ZeRO-3 step scales over ranks: time, tokens/s, and bytes of weights that a rank receives, beside the plan.

examples:
  python tools/bench/bench_ranks.py                          (1, 2 and 4 ranks; some 15 minutes on two cores)
  python tools/bench/bench_ranks.py --ranks 2 --accumulation 1,2,4,8
  python tools/bench/bench_ranks.py --size tiny --steps 4 --rounds 1 --csv none     (whether it works)

Each row is a real run of bridge_ds/train.py over gloo on this machine, ZeRO-3, one thread a rank, the same number of
samples a step: what ranks share is cores and memory, so that more ranks than cores gain nothing, and tokens/s says what
sharding costs. The runs of all rows are repeated in turns; a row holds medians over all their steps but the first two.

Columns: seconds a step, encoder tokens/s, ratio = tokens/s over those of the first row; MiB = weights that a rank
receives in a step, counted where DeepSpeed gathers them; plan = the same by `bridge-ds plan`'s arithmetic.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from bridge_ds.cli import Parser, positive
from bridge_ds.config.load import load_config
from bridge_ds.entry import run_command
from bridge_ds.errors import TrainingError
from bridge_ds.plan.job import bridge_parameters, planned
from bridge_ds.plan.timing import gathers
from tools.bench.bench_models import SIZES, frozen_pair, tokenizers
from tools.bench.bench_rows import append, provenance
from tools.bench.study import ROOT, free_port

_BYTES = "BENCH_RANKS_BYTES"
"""Environment variable of a rank: where it writes the bytes that it received in each step."""
_WARM_UP = 2


def main(argv: list[str] | None = None) -> int:
    """Make the models, run all rows in turns, print and append them."""
    if os.environ.get(_BYTES):
        return rank(sys.argv[1:] if argv is None else argv)
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", choices=SIZES, default="mt5-base6+106m", help="of the models (default: mt5-base6+106m)")
    add("--ranks", default="1,2,4", help="comma-separated (default: 1,2,4)")
    add("--accumulation", default="1,4", help="micro-batches a step, comma-separated (default: 1,4)")
    add("--batch", type=positive(int), default=32, help="samples a step, over all ranks (default: 32)")
    add("--steps", type=positive(int, least=3), default=6, help="of each run; two are not counted (default: 6)")
    add("--rounds", type=positive(int), default=3, help="runs of each row (default: 3)")
    add("--csv", default=str(Path(__file__).with_suffix(".csv")), help="where rows are added; none = nowhere")
    options = parser.parse_args(argv)
    rows = list(asked(options))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = make_models(options.size, folder)
        for turn in range(options.rounds):
            for number, row in enumerate(rows):
                run(row, folder / f"{number}-{turn}", [*models, f"train.steps={options.steps}"])
    table = [result(row, rows[0]) for row in rows]
    for line in table:
        print("  ".join(f"{key} {value}" for key, value in line.items()))
    if options.csv != "none":
        of = provenance(torch.device("cpu"), 1) | {"size": options.size, "batch": options.batch}
        append(Path(options.csv), [of | line for line in table])
    return 0


def asked(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows: ranks x accumulation, and with accumulation also the encoder read in each micro-batch."""
    for ranks in map(int, options.ranks.split(",")):
        for accumulation in map(int, options.accumulation.split(",")):
            for once in (True, False)[: 1 + (accumulation > 1 and ranks > 1)]:
                micro = options.batch // (ranks * accumulation)
                settings = [f"train.global_batch={options.batch}", f"train.micro_batch={micro}",
                            f"train.encode_once={str(once).lower()}"]  # fmt: skip
                yield {"ranks": ranks, "accumulation": accumulation, "once": once, "settings": settings,
                       "seconds": [], "tokens": [], "bytes": [], "plan": 0.0}  # fmt: skip


def make_models(size: str, folder: Path) -> list[str]:
    """Both models as folders, with the testbed's tokenizers; the settings that name them."""
    pair: Any = frozen_pair(size, torch.device("cpu"), torch.float32, vocabulary=32_000)
    for part, frozen, tokenizer in zip(("encoder", "llm"), pair, tokenizers(), strict=True):
        frozen.model.save_pretrained(folder / part)
        tokenizer.save_pretrained(folder / part)
    return [f"model.encoder={folder / 'encoder'}", f"model.llm={folder / 'llm'}"]


def run(row: dict[str, Any], folder: Path, settings: list[str]) -> None:
    """One run; adds what it measured to the row.

    Raises:
        TrainingError: a rank failed.
    """
    given = [f"run.output={folder}", "run.ds_config=zero3.json", "track.uri=none", "data.workers=0",
             "evaluation.tasks=[]", "fusion.feedforward=192", "checkpoint.every=1000",
             *settings, *row["settings"]]  # fmt: skip
    words = [part for text in given for part in ("--set", text)]
    ranks, port = row["ranks"], free_port()
    common = os.environ | {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks), "LOCAL_SIZE": str(ranks),
                           "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
                           "TORCHDYNAMO_DISABLE": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu"}  # fmt: skip
    folder.mkdir()
    processes = []
    for rank in range(ranks):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), _BYTES: str(folder / f"bytes{rank}")}
        with (folder / f"rank{rank}.log").open("w", encoding="utf-8") as log:
            processes.append(
                subprocess.Popen([sys.executable, __file__, *words], cwd=ROOT, env=common | own, stdout=log, stderr=log)
            )
    codes = [process.wait() for process in processes]
    if any(codes):
        said = (folder / "rank0.log").read_text(encoding="utf-8").strip().splitlines()[-5:]
        raise TrainingError(f"a run of {ranks} ranks ended with {codes} ({' / '.join(said)}); expected 0.")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    row["seconds"] += [line["seconds"] for line in lines[_WARM_UP:]]
    row["tokens"] += [line["source_tokens"] for line in lines[_WARM_UP:]]
    row["bytes"] += [int(text) for text in (folder / "bytes0").read_text(encoding="utf-8").split()[_WARM_UP:]]
    job = planned(load_config("testbed", given), 1, ranks)
    row["plan"] = gathers(job)["links"] - 8 * bridge_parameters(job) * (ranks - 1) / ranks
    shutil.rmtree(folder)


def result(row: dict[str, Any], first: dict[str, Any]) -> dict[str, Any]:
    """A row for people."""

    def rate(of: dict[str, Any]) -> float:
        return sum(of["tokens"]) / len(of["tokens"]) / median(of["seconds"])

    return {
        "ranks": row["ranks"], "accumulation": row["accumulation"], "encode_once": row["once"],
        "seconds": round(median(row["seconds"]), 3),
        "tokens/s": round(rate(row)), "ratio": round(rate(row) / rate(first), 2),
        "MiB": round(median(row["bytes"]) / 2**20, 1), "plan": round(row["plan"] / 2**20, 1),
    }  # fmt: skip


def rank(argv: list[str]) -> int:
    """One rank of a run: the trainer, with what its steps receive counted."""
    from bridge_ds.engine import loop
    from bridge_ds.train import main as train

    step = loop.train_step
    received = 0.0

    def counted(gather: Any, group: list[Any], **options: Any) -> Any:
        nonlocal received
        ranks = torch.distributed.get_world_size()
        for parameter in group:
            received += parameter.ds_numel * parameter.ds_tensor.element_size() * (ranks - 1) / ranks
        return gather(group, **options)

    def noted(engine: Any, *given: Any, **more: Any) -> Any:
        nonlocal received
        for parameter in engine.module.parameters():
            # Of all: DeepSpeed asks any one of those that it gathers together, and the encoder's are asked by us too.
            own = getattr(parameter, "all_gather_coalesced", None)  # none where one rank shards nothing
            if own and not isinstance(own, partial):
                parameter.all_gather_coalesced = partial(counted, own)
        received = 0.0
        record = step(engine, *given, **more)
        with open(os.environ[_BYTES], "a", encoding="utf-8") as file:
            file.write(f"{received:.0f}\n")
        return record

    loop.train_step = noted
    return train(argv)


if __name__ == "__main__":
    run_command(main)
