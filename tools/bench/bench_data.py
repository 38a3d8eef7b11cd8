#!/usr/bin/env python3
"""Measure reading: this project's reader, plain webdataset and `datasets` in streaming mode, on the same tars.

All are measured in one run, in turn, several rounds, and each row holds the median over the rounds and its ratio to
plain webdataset of the same run. Every reader parses the JSON of each sample and counts its characters (so that none
can be lazy), and hands lists of 64 samples to the main process through a torch DataLoader.

The second part opens a synthetic index (no tars) of 2 * 10^7 samples and times what a resumed run does before it can
read: opening the index, and placing the next global batch of 1024 at sample 10 and at sample 10^7.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge_ds.entry import run_command
from tools.bench.bench_rows import append, provenance

CHUNK = 64
"""Samples that cross the process boundary together."""


def main() -> None:
    """Measure, print and append to the CSV."""
    options = _options()
    import torch

    torch.set_num_threads(1)
    common = provenance(torch.device("cpu"), 1)
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        folder = Path(scratch)
        make_shards(folder / "shards", options.samples, options.characters)
        rows = throughput(folder / "shards", options.workers, options.rounds)
        rows += resume(folder / "synthetic", options.rounds)
    rows = [{**row, **common} for row in rows]
    for row in rows:
        print("  ".join(f"{key}={value}" for key, value in row.items() if key not in common))
    append(options.output, rows)


def make_shards(folder: Path, samples: int, characters: int) -> None:
    """English-like rows of very unequal length, in eight shards."""
    from bridge_ds.data.packing.write import pack_rows

    draw = random.Random(0)
    words = ["bridge", "river", "the", "of", "language", "and", "joins", "two", "banks", "naïve", "one"]

    def rows() -> Iterator[dict[str, Any]]:
        for _ in range(samples):
            length = max(1, int(draw.lognormvariate(0, 0.6) * characters / 6))
            yield {"source": " ".join(draw.choices(words, k=length)), "target": draw.choice(words)}

    pack_rows(rows(), folder, samples_per_shard=-(-samples // 8))


def throughput(folder: Path, workers: list[int], rounds: int) -> list[dict[str, Any]]:
    """Samples/s and MB/s (10^6 bytes of tar) of each reader and number of workers."""
    from bridge_ds.data.shards.index import load_index

    index = load_index(folder)
    size = sum(shard.bytes for shard in index.shards)
    readers: dict[str, Callable[[Path, int], Iterator[int]]] = {
        "webdataset": read_webdataset, "bridge_ds": read_ours, "datasets streaming": read_datasets,
    }  # fmt: skip
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(rounds):
        for count in workers:
            for name, read in readers.items():
                began = time.perf_counter()
                seen = sum(1 for _ in read(folder, count))
                found.setdefault((name, count), []).append(time.perf_counter() - began)
                assert seen == index.samples, f"{name} gave {seen} of {index.samples} samples"
    rows = []
    for (name, count), seconds in found.items():
        middle = statistics.median(seconds)
        plain = statistics.median(found["webdataset", count])
        rows.append(
            _row(
                "read",
                name,
                count,
                index.samples,
                seconds=round(middle, 4),
                samples_per_s=round(index.samples / middle),
                mb_per_s=round(size / middle / 1e6, 2),
                ratio_to_webdataset=round(plain / middle, 3),
            )  # fmt: skip
        )
    return rows


def read_ours(folder: Path, workers: int) -> Iterator[int]:
    """The shuffled order of epoch 0, read sample by sample by offset, checksums verified."""
    import numpy as np

    from bridge_ds.config.schema import DataConfig
    from bridge_ds.data.loading.corpus import open_corpus
    from bridge_ds.world import World

    corpus = open_corpus(DataConfig(shards=str(folder)), 0, World())

    class Chunks:
        def __len__(self) -> int:
            return -(-corpus.samples // CHUNK)

        def __getitem__(self, number: int) -> list[int]:
            start = number * CHUNK
            rows = corpus.rows(np.arange(start, min(start + CHUNK, corpus.samples)))
            return [_characters(corpus.read(rows, row)) for row in range(len(rows.numbers))]

    yield from _through_loader(Chunks(), workers)


def read_webdataset(folder: Path, workers: int) -> Iterator[int]:
    """Plain webdataset in the order of the tars, no shuffle: what a user writes, with json.loads as the decoder."""
    import webdataset

    paths = sorted(map(str, folder.glob("*.tar")))
    data = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False, nodesplitter=None)
    parsed = data.map(_parse).batched(CHUNK, collation_fn=list)
    yield from _through_loader(parsed, workers)


def read_datasets(folder: Path, workers: int) -> Iterator[int]:
    """`datasets` in streaming mode, with its own webdataset builder."""
    import datasets

    datasets.disable_progress_bars()
    paths = sorted(map(str, folder.glob("*.tar")))
    data = datasets.load_dataset("webdataset", data_files={"train": paths}, split="train", streaming=True)
    # Its builder has parsed the JSON already.
    parsed = data.map(_count, remove_columns=list(data.features or ["__key__", "__url__", "json"]))
    yield from _through_loader(parsed.batch(CHUNK), workers)


def resume(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Seconds from nothing to the places and lengths of the next global batch, at two points of a long run."""
    import numpy as np

    from bridge_ds.config.schema import Config, DataConfig, TrainConfig
    from bridge_ds.data.loading.corpus import open_corpus
    from bridge_ds.data.loading.plan import StepPlan
    from bridge_ds.world import World

    shards, each, batch = 200, 100_000, 1024
    make_synthetic_index(folder, shards, each)
    rows = []
    for sample in (10, 10**7):
        seconds = []
        for _ in range(rounds):
            began = time.perf_counter()
            config = Config(data=DataConfig(shards=str(folder)), train=TrainConfig(global_batch=batch))
            plan = StepPlan(config, open_corpus(config.data, 0, World()))
            step = plan.rows(sample // batch + 1)
            buckets = plan.bucket(step, World(size=8))
            seconds.append(time.perf_counter() - began)
            assert np.concatenate(buckets).size == batch // 8
        rows.append(
            _row(
                "resume", "bridge_ds", 0, shards * each, seconds=round(statistics.median(seconds), 4), at_sample=sample
            )
        )
    return rows


def make_synthetic_index(folder: Path, shards: int, each: int) -> None:
    """An index and tables as real ones, over sparse files in the place of tars."""
    import numpy as np

    from bridge_ds.data.shards.index import write_index
    from bridge_ds.data.shards.table import BUCKETS, TABLE_DTYPE, ShardEntry, buckets, table_name

    folder.mkdir()
    draw = np.random.default_rng(0)
    entries = []
    for number in range(shards):
        table = np.zeros(each, dtype=TABLE_DTYPE)
        table["length"], table["source"] = 512, draw.integers(1, 2000, each)
        table["offset"] = np.arange(each, dtype=np.uint64) * 1024 + 512
        table["id"] = draw.integers(0, 2**63, each)
        name = f"shard-{number:06d}.tar"
        np.save(folder / table_name(name), table, allow_pickle=False)
        raw = (folder / table_name(name)).read_bytes()
        size = each * 1024 + 1024
        with (folder / name).open("wb") as file:
            file.truncate(size)
        counts = tuple(np.bincount(buckets(table), minlength=BUCKETS).tolist())
        digest = hashlib.sha256(raw).hexdigest()
        entries.append(ShardEntry(name, each, size, "0" * 64, len(raw), digest, "json", "en", "", 0, 0, counts))
    write_index(folder, entries)


def _through_loader(data: Any, workers: int) -> Iterator[int]:
    from torch.utils.data import DataLoader

    for chunk in DataLoader(data, batch_size=None, num_workers=workers):
        yield from chunk["characters"] if isinstance(chunk, dict) else chunk


def _parse(sample: dict[str, Any]) -> int:
    return _characters(json.loads(sample["json"]))


def _characters(content: dict[str, Any]) -> int:
    return len(content["source"]) + len(content["target"])


def _count(sample: dict[str, Any]) -> dict[str, int]:
    return {"characters": _characters(sample["json"])}


def _row(what: str, reader: str, workers: int, samples: int, **values: Any) -> dict[str, Any]:
    empty = dict.fromkeys(("at_sample", "seconds", "samples_per_s", "mb_per_s", "ratio_to_webdataset"), "")
    return {"what": what, "reader": reader, "workers": workers, "samples": samples, **empty, **values}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".csv"), help="CSV to append to")
    parser.add_argument("--samples", type=int, default=40_000, help="samples in the tars (default: 40000)")
    parser.add_argument("--characters", type=int, default=400, help="characters of a sample, about (default: 400)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4], help="DataLoader workers (default: 1 2 4)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts (default: 3)")
    parser.add_argument("--scratch", type=Path, help="folder for the tars (default: the system's)")
    return parser.parse_args()


if __name__ == "__main__":
    run_command(main)
