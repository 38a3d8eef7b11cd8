"""`index.json`: what a folder of shards holds, and the check that it does.

webdataset ends a shard silently where a tar is truncated at a member boundary (webdataset#142). The index records the
bytes and samples of each shard, so a truncated or missing one is an error before the first step; the tables record the
offset and checksum of each sample, so that any sample is one read away and a changed byte is never trained on.

The format, version 2. `index.json` is one JSON object:

- `version`: 2. Another version is refused.
- `samples`: of all shards together.
- `fields`: {sample field: field in the shards}, for shards whose fields are named otherwise; mostly empty.
- `skip`: suffixes, of `json` and `txt`, of members that are not read; the key is absent where there are none.
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
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import fields as columns
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bridge_ds.data.shards.samples import MAPPED, READ
from bridge_ds.data.shards.store import Folder, NodeCache, ShardStore, open_store
from bridge_ds.data.shards.table import (
    BUCKETS,
    LAYOUTS,
    TABLE_DTYPE,
    ShardEntry,
    buckets,
    name_fault,
    read_table,
    refuse_twice,
    table_name,
)
from bridge_ds.data.shards.tar import BLOCK
from bridge_ds.disk import write_text
from bridge_ds.errors import DataError
from bridge_ds.reading import json_object

__all__ = [
    "INDEX_NAME",
    "INDEX_VERSION",
    "ShardIndex",
    "load_index",
    "read_entry",
    "stage",
    "write_index",
]

INDEX_NAME = "index.json"
"""File in the folder of the shards."""
INDEX_VERSION = 2
"""Written into the file; another version is refused."""

_REMEDY = "make it again: bridge-ds pack index DIR"
_KEYS = tuple(column.name for column in columns(ShardEntry))
_KINDS: dict[str, type[Any]] = {"int": int, "str": str, "tuple[int, ...]": list}
_WORDS = {int: "a whole number", str: "a text", list: "a list"}
_MOST = (1 << 62) - 1
_LONGEST = 300  # characters of what an error message shows of the file


class ShardIndex:
    """A data set of shards. Samples are numbered from 0 in the order of the shards."""

    def __init__(
        self,
        store: ShardStore,
        shards: tuple[ShardEntry, ...],
        fields: dict[str, str],
        identity: str,
        skip: Sequence[str] = (),
    ) -> None:
        """Args:
        store: where the files are.
        shards: in the order of index.json.
        fields: sample field -> field in the shards, where the names differ.
        identity: sha256 of index.json.
        skip: suffixes of members that are not read.
        """
        self.store, self.shards, self.fields, self.identity, self.skip = store, shards, fields, identity, skip
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
            self._tables[shard] = read_table(path, entry, self.store.remedy(path))
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


def write_index(
    folder: Path, shards: list[ShardEntry], fields: dict[str, str] | None = None, skip: Sequence[str] = ()
) -> Path:
    """Write `index.json` into a folder that holds the shards and their tables; returns its path."""
    content = {
        "version": INDEX_VERSION,
        "samples": sum(shard.samples for shard in shards),
        "fields": fields or {},
        **({"skip": list(skip)} if skip else {}),
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
        DataError: the folder or index is missing, malformed or of another version, it lists a shard twice, or a shard
            is missing or has another size.
    """
    store = store or open_store(str(location))
    raw = store.read(INDEX_NAME)
    where = f"{store.location}/{INDEX_NAME}"
    try:
        content = json_object(raw)
    except ValueError as error:
        raise DataError(f"{where} {_short(error)}; {_REMEDY}.") from None
    version = content.get("version")
    if type(version) is not int or version != INDEX_VERSION:
        raise DataError(
            f"{where} has version {_short(repr(version))}; this bridge_ds reads version {INDEX_VERSION}; {_REMEDY}."
        )
    try:
        shards, fields, skip = _content(content)
        refuse_twice(shards)
    except ValueError as error:
        raise DataError(f"{where} is malformed: {_short(error)}; {_REMEDY}.") from None
    if isinstance(store, Folder):
        for shard in shards:
            store.fetch(shard.name, shard.bytes, shard.sha256)
            store.fetch(table_name(shard.name), shard.table_bytes, shard.table_sha256)
    return ShardIndex(store, shards, fields, hashlib.sha256(raw).hexdigest(), skip)


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
    lacking = [(name, size, sha256) for name, size, sha256 in wanted if not store.holds(name, size, sha256)]
    missing = sum(size for _, size, _ in lacking)
    needed = missing - sum(store.unfinished(name, sha256) for name, _, sha256 in lacking)
    if needed > store.free() and not first:
        raise DataError(
            f"data.stage_dir has {store.free()} bytes free; {index.location} needs {needed} more; choose a larger "
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


def _content(content: dict[str, Any]) -> tuple[tuple[ShardEntry, ...], dict[str, str], tuple[str, ...]]:
    skip = content.pop("skip", [])
    _refuse_keys("it", content, ("version", "samples", "fields", "shards"))
    if not isinstance(content["shards"], list) or not isinstance(content["fields"], dict):
        raise ValueError("expected a list of `shards` and an object of `fields`")
    fields = content["fields"]
    if set(fields) - set(MAPPED) or not all(isinstance(there, str) for there in fields.values()):
        raise ValueError(f"`fields` is {fields!r}; expected texts for some of {', '.join(MAPPED)}")
    if not isinstance(skip, list) or any(suffix not in READ for suffix in skip):
        raise ValueError(f"`skip` is {skip!r}; expected a list of some of {', '.join(READ)}")
    shards = tuple(map(read_entry, content["shards"]))
    if not shards:
        raise ValueError("it lists no shard; expected at least one")
    together = sum(shard.samples for shard in shards)
    if type(content["samples"]) is not int or content["samples"] != together:
        raise ValueError(f"it says {content['samples']!r} samples and lists shards of {together} together")
    if sum(shard.bytes for shard in shards) > _MOST:
        raise ValueError(f"its shards have more than {_MOST} bytes together")
    return shards, fields, tuple(skip)


def read_entry(content: object) -> ShardEntry:
    """A shard's entry from its JSON form.

    Raises:
        ValueError: a key is missing or unknown, or a value is out of range or not of the form that is expected.
    """
    if not isinstance(content, dict):
        raise ValueError(f"a shard is {content!r}; expected an object")
    _refuse_keys("a shard", content, _KEYS)
    name = content["name"]
    for column in columns(ShardEntry):
        value, kind = content[column.name], _KINDS[str(column.type)]
        if type(value) is not kind:
            raise ValueError(f"the shard {name!r} has {column.name} {value!r}; expected {_WORDS[kind]}")
        if kind is int and not 0 <= value <= _MOST:
            raise ValueError(f"the shard {name!r} has {column.name} {value}; expected 0 to {_MOST}")
    if fault := name_fault(name):
        raise ValueError(fault)
    counts: list[Any] = content["buckets"]
    if not all(type(count) is int and count >= 0 for count in counts):
        raise ValueError(f"the shard {name} has buckets that are no counts")
    entry = ShardEntry(**content | {"buckets": tuple(counts)})
    if not all(re.fullmatch("[0-9a-f]{64}", digest) for digest in (entry.sha256, entry.table_sha256)):
        raise ValueError(f"the shard {name} has no sha256 of 64 hex digits")
    if entry.layout not in LAYOUTS:
        raise ValueError(f"the shard {name} has the layout {entry.layout!r}; expected {' or '.join(LAYOUTS)}")
    # Each sample has at least a tar header and a row; then no size below allocates more than the files have.
    header = entry.table_bytes - entry.samples * TABLE_DTYPE.itemsize
    if not 1 <= entry.samples <= entry.bytes // BLOCK or not 0 < header < 1 << 16 or entry.tail_crc32 >> 32:
        raise ValueError(
            f"the shard {name} has {entry.samples} samples in {entry.bytes} bytes, a table of {entry.table_bytes} "
            f"bytes and tail_crc32 {entry.tail_crc32}, which cannot be"
        )
    if len(entry.buckets) != BUCKETS or sum(entry.buckets) != entry.samples:
        raise ValueError(f"the shard {name} does not list {BUCKETS} buckets of {entry.samples} samples together")
    return entry


def _refuse_keys(what: str, content: dict[str, Any], expected: Sequence[str]) -> None:
    for key in sorted({*content} ^ {*expected}):
        raise ValueError(
            f"{what} has the unknown key {key!r}; expected {', '.join(expected)}"
            if key in content
            else f"{what} has no {key!r}"
        )


def _short(text: object) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}..."
