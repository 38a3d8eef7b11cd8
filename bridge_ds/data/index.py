"""`index.json`: what a folder of shards promises, and the check that the folder keeps it.

webdataset ends a shard silently where a tar is cut at a member boundary (webdataset#142). The index says how many bytes
and samples each shard has, so a cut or missing shard is an error before the first step; and it says where each sample
lies, so that any sample is one read away.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bridge_ds.errors import DataError

__all__ = [
    "INDEX_NAME",
    "INDEX_VERSION",
    "ShardEntry",
    "ShardIndex",
    "file_sha256",
    "load_index",
    "verify",
    "write_index",
]

INDEX_NAME = "index.json"
"""File beside the shards."""
INDEX_VERSION = 1
"""Written into the file; another version is refused."""

_REPACK = "pack it again with tools/pack_shards.py"
_ARRAYS = ("offsets", "lengths", "characters")


@dataclass(frozen=True, eq=False)
class ShardEntry:
    """One tar and where its samples lie."""

    name: str
    """File name inside the folder."""
    samples: int
    """Samples in the tar (N)."""
    bytes: int
    """Size of the tar in bytes."""
    sha256: str
    """Hex digest of the whole file."""
    offsets: np.ndarray
    """int64 [N], byte at which each sample's JSON begins in the tar."""
    lengths: np.ndarray
    """int64 [N], bytes of each sample's JSON."""
    characters: np.ndarray
    """int64 [N], characters of text in each sample (source + target + prompt, or text): a measure of its cost."""


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """A folder of shards. Samples are numbered from 0 in the order of the shards."""

    folder: Path
    """Where the shards lie."""
    shards: tuple[ShardEntry, ...]
    """In the order of index.json."""

    @property
    def samples(self) -> int:
        """Samples in all shards (n)."""
        return int(self.ends[-1]) if self.shards else 0

    @cached_property
    def ends(self) -> np.ndarray:
        """int64 [shards], number of the first sample after each shard."""
        return np.cumsum([shard.samples for shard in self.shards], dtype=np.int64)

    @cached_property
    def characters(self) -> np.ndarray:
        """int64 [n], characters of text in each sample."""
        return np.concatenate([shard.characters for shard in self.shards])

    def locate(self, sample: int) -> tuple[ShardEntry, int]:
        """The shard of a sample and its place in there.

        Raises:
            IndexError: there is no such sample.
        """
        if not 0 <= sample < self.samples:
            raise IndexError(f"sample {sample} of {self.samples}")
        number = int(np.searchsorted(self.ends, sample, side="right"))
        shard = self.shards[number]
        return shard, sample - int(self.ends[number]) + shard.samples

    def describe(self, sample: int) -> str:
        """A sample's place in words, for messages."""
        shard, row = self.locate(sample)
        return f"sample {row} of shard {shard.name} (number {sample} of {self.folder})"


def write_index(index: ShardIndex) -> Path:
    """Write `index.json` into the folder of the index; returns its path."""
    shards = []
    for shard in index.shards:
        entry: dict[str, Any] = {key: getattr(shard, key) for key in ("name", "samples", "bytes", "sha256")}
        entry.update({key: getattr(shard, key).tolist() for key in _ARRAYS})
        shards.append(entry)
    path = index.folder / INDEX_NAME
    content = {"version": INDEX_VERSION, "samples": index.samples, "shards": shards}
    path.write_text(json.dumps(content, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def load_index(folder: str | Path) -> ShardIndex:
    """Read a folder's index and check that every shard is there with the promised size (contents: :func:`verify`).

    Args:
        folder: a local folder; a URL or a `pipe:` is refused, nothing is ever fetched or run to get data.

    Raises:
        DataError: the folder or index is missing or malformed, or a shard is missing or has another size.
    """
    text = str(folder)
    if "://" in text or text.startswith("pipe:"):
        raise DataError(
            f"data.shards is {text!r}; expected a local folder: copy the shards to a disk that all nodes see."
        )
    folder = Path(folder)
    path = folder / INDEX_NAME
    if not path.is_file():
        what = "is no folder" if not folder.is_dir() else f"has no {INDEX_NAME}"
        raise DataError(
            f"{folder} {what}; expected a folder of shards with {INDEX_NAME}; make one with tools/pack_shards.py."
        )
    try:
        content = json.loads(path.read_bytes())
        version = content["version"]
        if version == INDEX_VERSION:
            index = ShardIndex(folder, tuple(_entry(shard) for shard in content["shards"]))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(f"{path} is malformed ({type(error).__name__}: {error}); {_REPACK}.") from None
    if version != INDEX_VERSION:
        raise DataError(f"{path} has version {version!r}; this bridge_ds reads version {INDEX_VERSION}; {_REPACK}.")
    if not index.samples:
        raise DataError(f"{path} lists no sample; expected at least one; {_REPACK}.")
    for shard in index.shards:
        _check_shard(folder, shard, len(index.shards))
    return index


def verify(index: ShardIndex) -> None:
    """Read every shard in full and compare its sha256 with the index.

    Raises:
        DataError: a shard is not the file that was indexed.
    """
    for shard in index.shards:
        found = file_sha256(index.folder / shard.name)
        if found != shard.sha256:
            raise DataError(
                f"shard {shard.name} in {index.folder} has sha256 {found[:12]}..., {INDEX_NAME} promises "
                f"{shard.sha256[:12]}...; copy it again from where it was packed, or {_REPACK}."
            )


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(content: dict[str, Any]) -> ShardEntry:
    arrays = {key: np.asarray(content[key], dtype=np.int64) for key in _ARRAYS}
    entry = ShardEntry(
        name=str(content["name"]),
        samples=int(content["samples"]),
        bytes=int(content["bytes"]),
        sha256=str(content["sha256"]),
        **arrays,
    )
    # A name with a folder or a scheme in it could reach outside the folder of the shards.
    if Path(entry.name).name != entry.name or ":" in entry.name or entry.name in ("", ".", ".."):
        raise ValueError(f"shard name {entry.name!r} is no plain file name")
    if any(array.shape != (entry.samples,) for array in arrays.values()):
        raise ValueError(f"shard {entry.name} does not list {entry.samples} offsets, lengths and characters")
    if entry.samples and (entry.offsets.min() < 0 or entry.lengths.min() < 0 or entry.characters.min() < 0):
        raise ValueError(f"shard {entry.name} lists a negative number")
    if entry.samples and (entry.offsets + entry.lengths).max() > entry.bytes:
        raise ValueError(f"shard {entry.name} lists a sample behind its end")
    return entry


def _check_shard(folder: Path, shard: ShardEntry, count: int) -> None:
    path = folder / shard.name
    if not path.is_file():
        raise DataError(
            f"shard {shard.name} is missing from {folder}; {INDEX_NAME} promises {count} shards; "
            f"copy it again from where it was packed, or {_REPACK}."
        )
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(
            f"shard {shard.name} in {folder} has {size} bytes; {INDEX_NAME} promises {shard.bytes} bytes with "
            f"{shard.samples} samples; copy it again from where it was packed, or {_REPACK}."
        )
