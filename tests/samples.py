"""One sample at a time, by the public functions that take many."""

from __future__ import annotations

from typing import Any

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.tokenize import Tokenizers, tokenize_samples
from bridge_ds.data.shards.index import ShardIndex
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.data.shards.samples import BadSample


def tokenize_sample(
    sample: dict[str, Any], tokenizers: Tokenizers, data: DataConfig, *, seed: int = 0, epoch: int = 0, number: int = 0
) -> TokenizedSample:
    (found,) = tokenize_samples([sample], tokenizers, data, seed=seed, epochs=[epoch], numbers=[number])
    if isinstance(found, BadSample):
        raise found
    return found


def locate(index: ShardIndex, sample: int) -> tuple[int, int]:
    """The shard of a sample, counted over all shards, and its row there."""
    shard = int((index.ends <= sample).sum())
    return shard, sample - int(index.ends[shard] - index.sizes[shard])


def read_all(index: ShardIndex, objective: str = "task", **options: Any) -> list[dict[str, Any]]:
    """Every sample of an index, in order."""
    reader = SampleReader(index, objective, **options)
    return [reader.read(shard, row) for shard, size in enumerate(index.sizes) for row in range(size)]
