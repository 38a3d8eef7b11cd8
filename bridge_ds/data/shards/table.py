"""What the index says of one shard, and of each sample in it.

The samples are in a *table*: a `.npy` file next to the tar with one row per sample (:data:`TABLE_DTYPE`), to be read
with `numpy.load`. It is a file of its own, read when its shard is, so that `index.json` stays small and a run over 10^9
samples starts as quickly as one over 10^3.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge_ds.data.shards.tar import BLOCK
from bridge_ds.errors import DataError
from bridge_ds.reading import twice

__all__ = [
    "BUCKETS",
    "LAYOUTS",
    "TABLE_DTYPE",
    "ShardEntry",
    "buckets",
    "name_fault",
    "read_table",
    "refuse_twice",
    "sample_id",
    "table_name",
]

BUCKETS = 100
"""Parts into which the hash of the sample id divides a data set: a validation split is so many of them (percent)."""

_LONGEST_NAME = 200  # bytes; a file system takes 255, and a cache and a table add to it

LAYOUTS = ("json", "members")
"""json: a sample is one `.json` member, and its row gives that member's data. members: a sample is one or more `.json`
and `.txt` members, and its row gives all their tar blocks, headers included."""

TABLE_DTYPE = np.dtype(
    [
        ("offset", "<u8"),  # byte of the tar at which the sample begins
        ("length", "<u4"),  # bytes
        ("crc32", "<u4"),  # of those bytes
        ("gap_crc32", "<u4"),  # of the bytes between the sample before (or the start of the tar) and this one
        ("source", "<u4"),  # characters of `source`, or of `text`: a measure of cost, as the next two
        ("prompt", "<u4"),  # characters of `prompt`
        ("target", "<u4"),  # characters of `target`
        ("id", "<u8"),  # first 8 bytes of the sha256 of the sample's key, little-endian
    ]
)
"""Columns of a table."""


@dataclass(frozen=True, eq=False)
class ShardEntry:
    """One tar, as `index.json` describes it."""

    name: str
    """File name inside the folder."""
    samples: int
    """Samples in the tar (N)."""
    bytes: int
    """Size of the tar in bytes."""
    sha256: str
    """Hex digest of the tar."""
    table_bytes: int
    """Size of the table's file in bytes."""
    table_sha256: str
    """Hex digest of the table's file."""
    layout: str
    """One of :data:`LAYOUTS`."""
    language: str
    """Language of the texts (any code; empty = not stated)."""
    source: str
    """Corpus the texts come from (empty = not stated)."""
    tail_crc32: int
    """Of the bytes after the last sample."""
    characters: int
    """Characters of text in all samples."""
    buckets: tuple[int, ...]
    """Samples whose id falls into each of the BUCKETS parts."""


def table_name(shard: str) -> str:
    """File name of a shard's table: `shard-000000.tar` -> `shard-000000.samples.npy`."""
    return f"{shard.removesuffix('.tar')}.samples.npy"


def name_fault(name: str) -> str:
    """What is wrong with the name of a shard, as a sentence's end; empty if nothing is.

    A name with a folder or a scheme in it could reach outside the folder of the shards.
    """
    plain = Path(name).name == name and name.isprintable() and not name.startswith(".") and ":" not in name
    if plain and name.endswith(".tar") and len(name.encode("utf-8", "surrogateescape")) <= _LONGEST_NAME:
        return ""
    return f"shard name {name!r} is no plain file name that ends in .tar; expected a name without ':' or '/'"


def refuse_twice(shards: Sequence[ShardEntry]) -> None:
    """Raises ValueError where a shard is listed twice, by one name or as copies (or links) of other names."""
    if (name := twice(shard.name for shard in shards)) is not None:
        raise ValueError(f"the shard {name} is listed twice; its samples would come twice an epoch")
    for key in ("sha256", "table_sha256"):
        digest = twice(getattr(shard, key) for shard in shards)
        if digest is not None:
            first, second, *_ = (shard.name for shard in shards if getattr(shard, key) == digest)
            raise ValueError(
                f"the shards {first} and {second} hold the same samples, which would come twice an epoch; keep one of "
                "them (weights are set by data.mixture)"
            )


def sample_id(key: str) -> int:
    """64 bits that identify a sample by its key, whichever shard it is in."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8], "little")


def buckets(table: np.ndarray) -> np.ndarray:
    """Part (0 to BUCKETS - 1) of each sample: int64 [N]."""
    return (table["id"] % np.uint64(BUCKETS)).astype(np.int64)


def read_table(path: Path, shard: ShardEntry, remedy: str) -> np.ndarray:
    """The table of a shard, structured [N], verified against the index.

    Args:
        path: its file.
        shard: what the index says.
        remedy: what the user can do where they differ.

    Raises:
        DataError: the file is missing or is not the one that was indexed.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"the table {path} of shard {shard.name} cannot be read ({error.strerror}); {remedy}."
        ) from None
    found = hashlib.sha256(raw).hexdigest()
    if found != shard.table_sha256:
        raise DataError(
            f"the table {path} of shard {shard.name} has sha256 {found[:12]}..., the index says "
            f"{shard.table_sha256[:12]}...; {remedy}."
        )
    table = _rows(raw, shard.samples)
    fault = "its columns or its number of rows are others" if table is None else _fault(table, shard)
    if table is None or fault:
        raise DataError(
            f"the table {path} does not describe the {shard.samples} samples of {shard.name} ({fault}); {remedy}."
        )
    return table


def _rows(raw: bytes, count: int) -> np.ndarray | None:
    """The rows of a .npy file if it holds `count` of them, else None. Only its header is parsed; nothing is unpickled
    or allocated."""
    file = io.BytesIO(raw)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            return None
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except Exception:  # numpy's parser: ValueError, TypeError, TokenError, RecursionError, ... for a foreign header
        return None
    if shape != (count,) or dtype != TABLE_DTYPE or len(raw) - file.tell() != count * TABLE_DTYPE.itemsize:
        return None
    return np.frombuffer(raw, TABLE_DTYPE, count, file.tell())


def _fault(table: np.ndarray, shard: ShardEntry) -> str:
    """What a table says that cannot be so for this shard, or nothing."""
    if (table["offset"] > shard.bytes).any():  # before the sum below, which could wrap around
        return "an offset beyond the shard"
    starts, lengths = table["offset"].astype(np.int64), table["length"].astype(np.int64)
    gaps = starts - np.concatenate([[0], (starts + lengths)[:-1]])
    if int(starts[-1] + lengths[-1]) > shard.bytes or (gaps < (BLOCK if shard.layout == "json" else 0)).any():
        return "samples that overlap or reach beyond the shard"
    if (starts % BLOCK).any() or (shard.layout == "members" and (lengths % BLOCK).any()):
        return f"offsets that are no multiples of {BLOCK}, as tar members have them"
    texts = [table[name].astype(np.int64) for name in ("source", "prompt", "target")]
    if any((text > lengths).any() for text in texts):
        return "a text with more characters than its sample has bytes"
    if sum(int(text.sum()) for text in texts) != shard.characters:
        return f"other than the {shard.characters} characters of the index"
    if np.bincount(buckets(table), minlength=BUCKETS).tolist() != list(shard.buckets):
        return "other buckets than those of the index"
    return ""
