"""All the data of a run: one data set or a weighted mixture, its training split, in one global order.

Dimensions: G positions asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.sampling.order import MIX_BLOCK, BlockShuffle, mix, quotas
from bridge_ds.data.shards.index import ShardIndex, load_index, stage
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.data.shards.store import GIB, NodeCache, is_remote, open_store
from bridge_ds.data.shards.table import BUCKETS
from bridge_ds.data.text.languages import SHARD_LANGUAGE
from bridge_ds.data.text.mixing import WordMixer, read_mixer
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.reading import twice
from bridge_ds.world import World

__all__ = ["Corpus", "CorpusRows", "locations", "open_corpus", "open_index"]

_OPEN_FILES = 512
"""Most shards that a process keeps open, of all data sets together: half of what it usually may."""


class CorpusRows(NamedTuple):
    """The samples at some positions; int64 [G] each."""

    numbers: np.ndarray
    """Number of the sample in the corpus: data set by data set, shard by shard, in the order of each index."""
    epochs: np.ndarray
    """How often the sample's data set has been read before."""
    sets: np.ndarray
    """Number of the data set."""
    shards: np.ndarray
    """Number of the shard in its data set."""
    shard_rows: np.ndarray
    """Row in the shard."""

    def at(self, which: np.ndarray | slice) -> CorpusRows:
        """Some of the rows."""
        return CorpusRows(*(column[which] for column in self))


class Corpus:
    """Data sets, their weights and the order of their samples. Pure except for reading tables and samples."""

    def __init__(
        self,
        sets: Sequence[ShardIndex],
        weights: Sequence[float],
        data: DataConfig,
        seed: int,
        held_out: bool = False,
    ) -> None:
        """Args:
        sets: the data sets, one or more.
        weights: of each, above 0; only their ratios count. One data set is read in its own order.
        data: `objective`, `max_characters`, `shuffle_shards` and `validation_percent` are used.
        seed: seed of the order.
        held_out: the samples of `data.validation_percent` instead of the others; the hash of the sample id decides.

        Raises:
            DataError: a data set has no sample in the split.
            ConfigError: a weight is too small to be met.
        """
        self.sets = tuple(sets)
        first = BUCKETS * data.validation_percent // 100
        self._buckets = (0, first) if held_out else (first, BUCKETS)
        self._quota = quotas(np.array(weights))
        if not self._quota.all():
            raise ConfigError(f"data.mixture has weights {list(weights)}; expected none below 1/20,000 of their sum.")
        self._seed, self._weights, self._data = seed, weights, data
        self._orders = []
        split = "validation" if held_out else "train"
        for part in self.sets:
            sizes = part.split_sizes(*self._buckets)
            if not sizes.sum():
                raise DataError(
                    f"{part.location} has no sample in the {split} split ({part.samples} in all, "
                    f"data.validation_percent {data.validation_percent}); change it or give more samples."
                )
            self._orders.append(BlockShuffle(sizes, data.shuffle_shards, seed))
            part.kept_tables = 2 * data.shuffle_shards + 2
        self._bases = np.cumsum([0, *(part.samples for part in self.sets)])
        self._readers = [
            SampleReader(
                part,
                data.objective,
                max_characters=data.max_characters,
                open_files=max(1, min(64, 2 * data.shuffle_shards, _OPEN_FILES // len(self.sets))),
            )
            for part in self.sets
        ]
        self.samples = sum(order.samples for order in self._orders)
        """Samples of the split in all data sets."""
        self.mixer: WordMixer | None = None
        """What replaces words of the sources (`data.mix_words`)."""

    @property
    def identity(self) -> str:
        """Hex sha256 over the indices and the mixture: a checkpoint's position is one in this sequence."""
        content = [[part.identity, int(share)] for part, share in zip(self.sets, self._quota, strict=True)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    @property
    def recorded(self) -> dict[str, str | None]:
        """What a resumed run must find again, for state.json: hex sha256 of the data sets and of the dictionary."""
        return {"shards_sha256": self.identity, "mix_words_sha256": self.mixer.sha256 if self.mixer else None}

    def rows(self, positions: np.ndarray) -> CorpusRows:
        """The samples at positions (int64 [G], 0 or more) of the endless sequence.

        Raises:
            DataError: a table is missing or damaged (tables are read only where there is a validation split).
        """
        positions = np.asarray(positions, dtype=np.int64)
        if len(self.sets) == 1:
            return self._rows(np.zeros_like(positions), positions)
        return self._rows(*mix(positions, self._quota, self._seed))

    def once(self, limit: int = 0) -> CorpusRows:
        """Samples of the split, each of them once: all, or the first `limit` of each data set's order.

        Args:
            limit: samples in all, of a mixture in the ratio of the weights; a data set that has fewer gives all of its
                own, and there are fewer then. 0 = all.

        Raises:
            DataError: as :meth:`rows`.
        """
        counts = np.array([order.samples for order in self._orders])
        if limit:
            counts = np.minimum(counts, np.diff(np.cumsum([0, *self._quota]) * limit // MIX_BLOCK))
        sets = np.repeat(np.arange(len(counts)), counts)
        return self._rows(sets, np.concatenate([np.arange(count) for count in counts]))

    def held_out(self) -> Corpus | None:
        """What `data.validation_percent` keeps out of training, in an order that no run's seed changes; None = nothing.

        A data set too small to have a sample in it is skipped.
        """
        first, last = 0, BUCKETS * self._data.validation_percent // 100
        kept = [number for number, part in enumerate(self.sets) if part.split_sizes(first, last).sum()]
        if not kept:
            return None
        sets, weights = [self.sets[number] for number in kept], [self._weights[number] for number in kept]
        return Corpus(sets, weights, self._data, 0, held_out=True)

    def _rows(self, sets: np.ndarray, own: np.ndarray) -> CorpusRows:
        # The samples at positions of each data set's own sequence.
        numbers, *columns = [np.empty_like(own) for _ in range(4)]
        for number in np.unique(sets).tolist():
            at = np.flatnonzero(sets == number)
            found = self._orders[number].locate(own[at])
            rows = self._select(number, found.shards, found.rows) if self._data.validation_percent else found.rows
            for column, values in zip(columns, (found.epochs, found.shards, rows), strict=True):
                column[at] = values
            part = self.sets[number]
            numbers[at] = self._bases[number] + (part.ends - part.sizes)[found.shards] + rows
        epochs, shards, shard_rows = columns
        return CorpusRows(numbers, epochs, sets, shards, shard_rows)

    def lengths(self, rows: CorpusRows) -> np.ndarray:
        """int64 [G, 3], characters of source (or text), prompt and target of each row.

        Raises:
            DataError: a table is missing or damaged.
        """
        result = np.empty((len(rows.numbers), 3), dtype=np.int64)
        for number in np.unique(rows.sets).tolist():
            for shard in np.unique(rows.shards[rows.sets == number]).tolist():
                at = np.flatnonzero((rows.sets == number) & (rows.shards == shard))
                table = self.sets[number].table(shard)[rows.shard_rows[at]]
                result[at] = np.stack([table[name] for name in ("source", "prompt", "target")], axis=1)
        return result

    def read(self, rows: CorpusRows, which: int) -> dict[str, Any]:
        """The sample of one row.

        Raises:
            DataError: see :meth:`SampleReader.read`.
            BadSample: see :meth:`SampleReader.read`.
        """
        number, shard = int(rows.sets[which]), int(rows.shards[which])
        sample = self._readers[number].read(shard, int(rows.shard_rows[which]))
        language = self.sets[number].shards[shard].language
        return sample | {SHARD_LANGUAGE: language} if language else sample

    def describe(self, rows: CorpusRows, which: int) -> str:
        """A row's location in words, for messages."""
        return self._readers[int(rows.sets[which])].describe(int(rows.shards[which]), int(rows.shard_rows[which]))

    def _select(self, number: int, shards: np.ndarray, rows: np.ndarray) -> np.ndarray:
        # The order counts the samples of the split in each shard; the table says which rows those are.
        selected = np.empty_like(rows)
        for shard in np.unique(shards).tolist():
            at = shards == shard
            selected[at] = self.sets[number].split_rows(shard, *self._buckets)[rows[at]]
        return selected


def locations(data: DataConfig) -> tuple[list[str], list[float]]:
    """Folders or URLs of the data sets, and their weights.

    Raises:
        ConfigError: an entry of data.mixture is no FOLDER=WEIGHT, or names a data set twice.
    """
    if not data.mixture:
        return [data.shards], [1.0]
    folders, weights = [], []
    for entry in data.mixture:
        folder, _, weight = entry.rpartition("=")
        try:
            number = float(weight)
        except ValueError:
            number = 0.0
        if not folder or not 0 < number < float("inf"):
            raise ConfigError(f"data.mixture has {entry!r}; expected FOLDER=WEIGHT with a weight above 0.")
        folders.append(folder)
        weights.append(number)
    again = twice(folder.rstrip("/") if is_remote(folder) else os.path.realpath(folder) for folder in folders)
    if again is not None:
        raise ConfigError(
            f"data.mixture has {again} twice, whose samples would then come twice in the same order; expected each "
            "data set once; add the weights."
        )
    return folders, weights


def open_index(data: DataConfig, folder: str) -> ShardIndex:
    """Read the index of one data set, through the cache or staging folder that the config names.

    Raises:
        DataError: it is missing, damaged or cannot be fetched.
    """
    store = open_store(folder, stage_dir=data.stage_dir, cache_dir=data.cache_dir, cache_gib=data.cache_gib)
    return load_index(folder, store)


def open_corpus(data: DataConfig, seed: int, world: World) -> Corpus:
    """Read the index of each data set, and the dictionary of data.mix_words; with data.stage_dir, copy all shards to
    the node first.

    Raises:
        DataError: a data set or the dictionary is missing, damaged or cannot be fetched, or the cache is too small.
        ConfigError: data.mixture or data.mix_words_languages cannot be used.
    """
    folders, weights = locations(data)
    sets = []
    for folder in folders:
        sets.append(open_index(data, folder))
        if data.stage_dir:
            stage(sets[-1], first=2 * world.local_rank, progress=world.local_rank == 0)
    if (again := twice(part.identity for part in sets)) is not None:
        copies = [part.location for part in sets if part.identity == again]
        raise ConfigError(f"data.mixture has {copies[0]} and {copies[1]}, copies of one data set; add the weights.")
    _check_cache(sets, data)
    corpus = Corpus(sets, weights, data, seed)
    if data.mix_words:
        corpus.mixer = read_mixer(data.mix_words, data.mix_words_share, data.mix_words_languages)
    return corpus


def _check_cache(sets: Sequence[ShardIndex], data: DataConfig) -> None:
    # A cache smaller than what is read at a time would fetch the same shards again and again.
    for part in sets:
        if is_remote(part.location) and isinstance(part.store, NodeCache) and part.store.limit is not None:
            sizes = sorted((shard.bytes + shard.table_bytes for shard in part.shards), reverse=True)
            window = sum(sizes[: 2 * data.shuffle_shards])
            if window > part.store.limit:
                raise DataError(
                    f"data.cache_gib {data.cache_gib:g} is too small for {part.location}, where two windows of "
                    f"{data.shuffle_shards} shards have {window / GIB:.2f} GiB; raise it, or lower data.shuffle_shards."
                )
