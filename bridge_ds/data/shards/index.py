"""`index.json`: what a folder of shards holds, and the check that it does.

webdataset ends a shard silently where a tar is truncated at a member boundary (webdataset#142). The index records the
bytes and samples of each shard, so a truncated or missing one is an error before the first step; the tables record the
offset and checksum of each sample, so that any sample is one read away and a changed byte is never trained on.

The format, version 2. `index.json` is one JSON object:

- `version`: 2. Another version is refused.
- `samples`: of all shards together.
- `fields`: {sample field: field in the shards}, for shards whose fields are named otherwise; mostly empty.
- `shards`: in order, for each: `name` (of the tar, in the same folder), `samples`, `bytes`, `sha256` (of the tar),
  `layout` (`json`: a sample is one .json member; `members`: one or more .json and .txt members), `language`, `source`
  (what the texts are and where they come from, may be empty), `characters` (of all its texts), `buckets` (100 counts:
  samples whose id has each remainder modulo 100; the id is the first 8 bytes, little-endian, of the sha256 of the
  key), `tail_crc32` (of the bytes after the last sample), `table_bytes` and `table_sha256` (of its table).

Next to `NAME.tar` is its table `NAME.samples.npy`, one row a sample in the order of the tar: `offset` and `length`
(bytes in the tar), `crc32` (of these bytes), `gap_crc32` (of the bytes since the sample before), `source`, `prompt`,
`target` (characters, the length proxies for bucketing; `text` counts as `source`), `id`. Read it with `numpy.load`.
Sample, gap and tail checksums together cover every byte of the tar.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from dataclasses import fields as columns
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bridge_ds.data.shards.samples import MAPPED
from bridge_ds.data.shards.store import Folder, NodeCache, ShardStore, open_store
from bridge_ds.data.shards.table import BUCKETS, LAYOUTS, ShardEntry, buckets, read_table, table_name
from bridge_ds.disk import write_text
from bridge_ds.errors import DataError
from bridge_ds.reading import json_value, twice

__all__ = ["INDEX_NAME", "INDEX_VERSION", "ShardIndex", "load_index", "read_entry", "write_index"]

INDEX_NAME = "index.json"
"""File in the folder of the shards."""
INDEX_VERSION = 2
"""Written into the file; another version is refused."""

_REMEDY = "make it again: bridge-ds pack index DIR"
_KEYS = tuple(column.name for column in columns(ShardEntry))


class ShardIndex:
    """A data set of shards. Samples are numbered from 0 in the order of the shards."""

    def __init__(
        self,
        store: ShardStore,
        shards: tuple[ShardEntry, ...],
        fields: dict[str, str],
        identity: str,
    ) -> None:
        """Args:
        store: where the files are.
        shards: in the order of index.json.
        fields: sample field -> field in the shards, where the names differ.
        identity: sha256 of index.json.
        """
        self.store, self.shards, self.fields, self.identity = store, shards, fields, identity
        self.kept_tables = 32
        """Tables held in memory at a time (40 bytes a sample)."""
        self._tables: OrderedDict[int, np.ndarray] = OrderedDict()

    @property
    def location(self) -> str:
        """Folder or URL."""
        return self.store.location

    @property
    def samples(self) -> int:
        """Samples in all shards (n)."""
        return int(self.ends[-1])

    @cached_property
    def sizes(self) -> np.ndarray:
        """int64 [shards], samples of each."""
        return np.array([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [shards], number of the first sample after each shard."""
        return np.cumsum(self.sizes)

    def table(self, shard: int) -> np.ndarray:
        """The table of a shard, structured [N]; the last few used stay in memory.

        Raises:
            DataError: it is missing or is not the one that was indexed.
        """
        if shard not in self._tables:
            entry = self.shards[shard]
            path = self.store.fetch(table_name(entry.name), entry.table_bytes, entry.table_sha256)
            self._tables[shard] = read_table(path, entry)
            while len(self._tables) > self.kept_tables:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return self._tables[shard]

    def split_sizes(self, first: int, last: int) -> np.ndarray:
        """int64 [shards], samples of each whose bucket is in [first, last)."""
        return np.array([sum(shard.buckets[first:last]) for shard in self.shards], dtype=np.int64)

    def split_rows(self, shard: int, first: int, last: int) -> np.ndarray:
        """int64, rows of a shard whose bucket is in [first, last), in order."""
        parts = buckets(self.table(shard))
        return np.flatnonzero((parts >= first) & (parts < last))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_tables": OrderedDict()}


def write_index(folder: Path, shards: list[ShardEntry], fields: dict[str, str] | None = None) -> Path:
    """Write `index.json` into a folder that holds the shards and their tables; returns its path."""
    content = {
        "version": INDEX_VERSION,
        "samples": sum(shard.samples for shard in shards),
        "fields": fields or {},
        "shards": [{key: getattr(shard, key) for key in _KEYS} for shard in shards],
    }
    path = folder / INDEX_NAME
    write_text(path, json.dumps(content, separators=(",", ":")) + "\n", fsync=False)
    return path


def load_index(location: str | Path, store: ShardStore | None = None) -> ShardIndex:
    """Read an index and, in a folder, check that every shard is there with the size it lists.

    Contents are checked as samples are read (each has a checksum), when a shard is fetched, or all at once by
    `bridge-ds pack verify`.

    Args:
        location: folder or URL.
        store: where to read it; by default that of :func:`bridge_ds.data.shards.store.open_store`.

    Raises:
        DataError: the folder or index is missing, malformed or of another version, or a shard is missing or has
            another size.
    """
    store = store or open_store(str(location))
    raw = store.read(INDEX_NAME)
    where = f"{store.location}/{INDEX_NAME}"
    try:
        content = json_value(raw)
        version = content["version"]
        if version == INDEX_VERSION:
            shards = tuple(read_entry(shard) for shard in content["shards"])
            fields = _fields(content["fields"])
            if (name := twice(shard.name for shard in shards)) is not None:
                raise ValueError(f"it lists the shard {name} twice")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DataError(f"{where} is malformed ({type(error).__name__}: {error}); {_REMEDY}.") from None
    if version != INDEX_VERSION:
        raise DataError(f"{where} has version {version!r}; this bridge_ds reads version {INDEX_VERSION}; {_REMEDY}.")
    if not sum(shard.samples for shard in shards):
        raise DataError(f"{where} lists no sample; expected at least one; {_REMEDY}.")
    if isinstance(store, Folder):
        for shard in shards:
            store.fetch(shard.name, shard.bytes, shard.sha256)
            store.fetch(table_name(shard.name), shard.table_bytes, shard.table_sha256)
    return ShardIndex(store, shards, fields, hashlib.sha256(raw).hexdigest())


def stage(index: ShardIndex, *, first: int = 0, progress: bool = False) -> None:
    """Copy all files of a data set to the node, where its store is a :class:`NodeCache`.

    Every process of the node calls this; locks make them share the work.

    Args:
        first: position in the list to begin at (by local rank, so that processes begin with different shards).
        progress: whether to show a bar on a terminal.

    Raises:
        DataError: a file cannot be fetched, or the disk has no room for what is missing.
    """
    from tqdm import tqdm

    store = index.store
    assert isinstance(store, NodeCache)
    wanted = []
    for shard in index.shards:
        wanted.append((table_name(shard.name), shard.table_bytes, shard.table_sha256))
        wanted.append((shard.name, shard.bytes, shard.sha256))
    missing = sum(size for name, size, sha256 in wanted if not store.holds(name, size, sha256))
    if missing > store.free() and not first:
        raise DataError(
            f"data.stage_dir has {store.free()} bytes free; {index.location} needs {missing} more; choose a larger "
            "disk or leave data.stage_dir empty."
        )
    first %= len(wanted)
    # disable=None: a bar on a terminal, nothing in a log file.
    with tqdm(
        total=missing, desc="staging", unit="B", unit_scale=True, disable=None if progress and missing else True
    ) as bar:
        for name, size, sha256 in wanted[first:] + wanted[:first]:
            new = not store.holds(name, size, sha256)
            store.fetch(name, size, sha256)
            bar.update(size * new)


def _fields(content: dict[str, Any]) -> dict[str, str]:
    fields = {str(name): str(there) for name, there in content.items()}
    if set(fields) - set(MAPPED):
        raise ValueError(f"fields names {', '.join(fields)}; expected some of {', '.join(MAPPED)}")
    return fields


def read_entry(content: dict[str, Any]) -> ShardEntry:
    """A shard's entry from its JSON form.

    Raises:
        ValueError: a value is out of range, or not of the form that is expected.
        KeyError: a key is missing.
    """
    kinds = {"int": int, "str": str}
    values = {column.name: kinds.get(str(column.type), tuple)(content[column.name]) for column in columns(ShardEntry)}
    entry = ShardEntry(**values)
    # A name with a folder or a scheme in it could reach outside the folder of the shards.
    if Path(entry.name).name != entry.name or ":" in entry.name or entry.name.startswith("."):
        raise ValueError(f"shard name {entry.name!r} is no plain file name")
    if not all(
        len(digest) == 64 and set(digest) <= set("0123456789abcdef") for digest in (entry.sha256, entry.table_sha256)
    ):
        raise ValueError(f"shard {entry.name} has no sha256 of 64 hex digits")
    if (
        min(entry.samples, entry.bytes, entry.table_bytes, entry.tail_crc32, entry.characters) < 0
        or entry.layout not in LAYOUTS
    ):
        raise ValueError(f"shard {entry.name} has a number below 0 or the unknown layout {entry.layout!r}")
    if len(entry.buckets) != BUCKETS or sum(entry.buckets) != entry.samples or min(entry.buckets) < 0:
        raise ValueError(f"shard {entry.name} does not list {BUCKETS} buckets of {entry.samples} samples together")
    return entry
