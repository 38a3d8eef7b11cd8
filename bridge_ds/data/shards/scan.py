"""Reading a tar once from end to end: the offsets of its samples, and whether it holds anything that it must not."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bridge_ds.data.shards.samples import READ, BadSample, is_skipped, join_members, parse, split_name
from bridge_ds.data.shards.table import BUCKETS, TABLE_DTYPE, ShardEntry, buckets, sample_id
from bridge_ds.data.shards.tar import BadTar, Member, crc32_of, members, reads
from bridge_ds.disk import file_sha256
from bridge_ds.errors import DataError

__all__ = ["Scan", "diagnose", "scan_shard"]

_PICKLES = ("pkl", "pickle", "pyd", "pth", "pt", "dill", "joblib")


@dataclass
class Scan:
    """What a tar holds."""

    entry: ShardEntry
    """Its entry in `index.json`; the table's size and hash are set when the table is written."""
    table: np.ndarray
    """Structured [N], see :data:`bridge_ds.data.shards.table.TABLE_DTYPE`."""
    malformed: int = 0
    """Samples that are no JSON object or no UTF-8."""
    first_malformed: str = ""
    """Key and reason of the first of them."""
    skipped: int = 0
    """Members that are not read: of a suffix in `skip`, `__meta__` members, files of macOS."""


@dataclass
class _Sample:
    key: str
    start: int
    end: int = 0
    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Extension -> offset and bytes of that member's data."""
    has_json: bool = False


def scan_shard(
    path: Path,
    *,
    fields: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    language: str = "",
    source: str = "",
) -> Scan:
    """Describe a finished tar.

    Args:
        path: an uncompressed tar.
        fields: sample field -> field in the shard, where the names differ.
        skip: suffixes (such as `jpg`) of members to skip, in lower case and without dot; any other than `.json` and
            `.txt` is an error.
        language: of its texts.
        source: corpus of its texts.

    Raises:
        DataError: not a complete tar; a member that is a pickle, a link, outside the folder or of unknown suffix; two
            samples of one key; no sample.
    """
    try:
        with path.open("rb") as file:
            skipped: list[str] = []
            found = members(reads(file), os.fstat(file.fileno()).st_size)
            samples = list(_samples(path.name, found, skip, skipped))
            scan = _describe(path, file, samples, fields or {}, language, source)
            scan.skipped = len(skipped)
            return scan
    except BadTar as error:
        raise DataError(f"shard {path.name} {error}; copy it again or make it again.") from None
    except OSError as error:
        raise DataError(f"shard {path} cannot be read ({error.strerror or error}); check path and rights.") from None


def diagnose(path: Path) -> str:
    """What is wrong with a tar by itself, for a message about one that differs from its index; empty if nothing is."""
    try:
        scan_shard(path)
    except DataError as error:
        return f" ({str(error).rstrip('.')})"
    return ""


def _samples(shard: str, found: Iterable[Member], skip: Sequence[str], skipped: list[str]) -> Iterator[_Sample]:
    current: _Sample | None = None
    seen: set[str] = set()
    for member in found:
        _check_member(shard, member)
        if member.kind == tarfile.DIRTYPE:
            continue
        key, extension = split_name(member.name)
        suffix = extension.rpartition(".")[2]
        if is_skipped(member.name) or suffix in skip:
            skipped.append(member.name)
            continue
        if suffix not in READ or not key.rpartition("/")[2]:
            what = f"suffix {suffix!r}" if suffix else "no suffix"
            raise DataError(
                f"shard {shard} holds {member.name!r} with {what}; expected KEY.json or KEY.txt members: "
                "remove it, or leave such members out with --skip SUFFIX."
            )
        if current is None or current.key != key:
            if current:
                yield current
            if key in seen:
                raise _twice(shard, key, member.name)
            seen.add(key)
            current = _Sample(key, member.offset)
        if extension in current.spans or (suffix == "json" and current.has_json):
            raise _twice(shard, key, member.name)
        current.spans[extension] = member.start, member.size
        current.end, current.has_json = member.end, current.has_json or suffix == "json"
    if current is None:
        raise DataError(f"shard {shard} holds no sample; expected KEY.json or KEY.txt members: leave the file out.")
    yield current


def _check_member(shard: str, member: Member) -> None:
    name = member.name
    if name.startswith(("/", "\\")) or ".." in name.split("/"):
        raise DataError(
            f"shard {shard} holds {name!r}, a path outside its folder; expected relative names without '..': "
            "make it again."
        )
    if not member.is_file and member.kind != tarfile.DIRTYPE:
        links = {tarfile.SYMTYPE: "a symlink", tarfile.LNKTYPE: "a hard link"}
        kind = links.get(member.kind, "no plain file")
        raise DataError(f"shard {shard} holds {name!r}, {kind}; expected plain files only: make it again.")
    if name.lower().rpartition(".")[2] in _PICKLES:
        raise DataError(
            f"shard {shard} holds {name!r}, a pickle, which runs code when it is read; expected .json or .txt members: "
            "convert it."
        )


def _twice(shard: str, key: str, name: str) -> DataError:
    return DataError(
        f"shard {shard} holds two samples of the key {key!r} (the second at {name!r}); expected each key once, its "
        "members side by side; a key ends at the first dot of a name: rename members whose keys hold dots."
    )


def _describe(
    path: Path, file: BinaryIO, samples: list[_Sample], fields: Mapping[str, str], language: str, source: str
) -> Scan:
    layout = "json" if all(len(sample.spans) == 1 and sample.has_json for sample in samples) else "members"
    table = np.zeros(len(samples), dtype=TABLE_DTYPE)
    scan = Scan(entry=None, table=table)  # type: ignore[arg-type]
    end = 0
    for row, sample in enumerate(samples):
        whole = sample.start, sample.end - sample.start
        offset, length = next(iter(sample.spans.values())) if layout == "json" else whole
        if length >= 1 << 32:
            raise DataError(f"shard {path.name} holds a sample of {length} bytes (key {sample.key!r}); split its text.")
        gap_crc32, raw = crc32_of(file, end, offset), os.pread(file.fileno(), length, offset)
        lengths, fault = _lengths(raw, layout, sample, fields)
        if fault:
            scan.malformed += 1
            scan.first_malformed = scan.first_malformed or f"the sample {sample.key!r} of shard {path.name} {fault}"
        table[row] = (offset, length, zlib.crc32(raw), gap_crc32, *lengths, sample_id(sample.key))
        end = offset + length
    size = os.fstat(file.fileno()).st_size
    scan.entry = ShardEntry(
        name=path.name,
        samples=len(samples),
        bytes=size,
        sha256=file_sha256(path),
        table_bytes=0,
        table_sha256="",
        layout=layout,
        language=language,
        source=source,
        tail_crc32=crc32_of(file, end, size),
        characters=int(sum(table[name].sum(dtype=np.int64) for name in ("source", "prompt", "target"))),
        buckets=tuple(np.bincount(buckets(table), minlength=BUCKETS).tolist()),
    )
    return scan


def _lengths(raw: bytes, layout: str, sample: _Sample, fields: Mapping[str, str]) -> tuple[tuple[int, ...], str]:
    try:
        if layout == "json":
            content = parse(raw, layout, fields)
        else:
            starts = [(start - sample.start, size) for start, size in sample.spans.values()]
            parts = [raw[start : start + size] for start, size in starts]
            content = join_members(zip(sample.spans, parts, strict=True))
            content |= {name: content[there] for name, there in fields.items() if there in content}
    except BadSample as error:
        return (len(raw), 0, 0), str(error)
    texts = [content.get(name) for name in ("source", "prompt", "target")]
    texts[0] = texts[0] if "target" in content or "text" not in content else content["text"]
    return tuple(len(text) if isinstance(text, str) else 0 for text in texts), ""
