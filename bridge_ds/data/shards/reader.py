"""Random access to samples: one positioned read, one checksum and one JSON parse each."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

from bridge_ds.data.shards.index import ShardIndex
from bridge_ds.data.shards.samples import BadSample, check_sample, parse, split_name
from bridge_ds.data.shards.scan import diagnose
from bridge_ds.data.shards.tar import BLOCK, BadTar, members
from bridge_ds.errors import DataError

__all__ = ["SampleReader"]

# Bytes; more than that between two samples are skipped members, which no run has to read.
_MOST_GAP = 1 << 16


class SampleReader:
    """Reads samples of a :class:`ShardIndex` by shard and row.

    Files open at first use and at most `open_files` stay open. It may be pickled (without its files) or inherited by a
    forked worker: reads give their offset (pread), so that processes that share a file do not disturb each other.
    """

    def __init__(self, index: ShardIndex, objective: str, *, max_characters: int = 0, open_files: int = 16) -> None:
        """Args:
        index: the shards.
        objective: `data.objective`; decides which fields a sample must have.
        max_characters: longest allowed text in characters; 0 = any.
        open_files: shards kept open at a time by each process.
        """
        self._index = index
        self._objective = objective
        self._max_characters = max_characters
        self._open_files = open_files
        self._files: OrderedDict[int, tuple[BinaryIO, Path]] = OrderedDict()

    def read(self, shard: int, row: int) -> dict[str, Any]:
        """One sample, its checksum compared and its required fields checked.

        Raises:
            DataError: the shard cannot be read or is not what was indexed.
            BadSample: the bytes are as they were indexed and are no sample for the objective.
        """
        raw = self._bytes(shard, row)
        try:
            content = parse(raw, self._index.shards[shard].layout, self._index.fields, self._index.skip)
            check_sample(content, self._objective, self._max_characters)
        except BadSample as error:
            raise BadSample(error.kind, f"{self.describe(shard, row)} {error}{_REMEDY}") from None
        return content

    def describe(self, shard: int, row: int) -> str:
        """A sample's location in words, its key included where the shard can still be read."""
        key = self._key(shard, row)
        named = f" (key {key!r})" if key else ""
        return f"sample {row}{named} of shard {self._index.shards[shard].name} in {self._index.location}"

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict()}

    def _bytes(self, shard: int, row: int) -> bytes:
        # The header before the sample is read and verified with it.
        table = self._index.table(shard)
        entry = table[row]
        offset, length = int(entry["offset"]), int(entry["length"])
        before = offset - int(table[row - 1]["offset"] + table[row - 1]["length"]) if row else offset
        gap = before if before <= _MOST_GAP else 0
        file, path = self._file(shard)
        try:
            raw = os.pread(file.fileno(), gap + length, offset - gap)
        except OSError as error:
            raise DataError(
                f"sample {row} of shard {path} cannot be read ({error.strerror or error}); "
                "check that the shard still exists and that this process may read it."
            ) from None
        if len(raw) != gap + length:
            raise self._changed(f"sample {row}", path, f"ends after {max(0, len(raw) - gap)} of {length} bytes")
        sample = raw[gap:]
        if zlib.crc32(sample) != entry["crc32"]:
            raise self._changed(
                f"sample {row}", path, f"has another checksum (bytes {offset} to {offset + length - 1})"
            )
        if gap and zlib.crc32(raw[:gap]) != entry["gap_crc32"]:
            raise self._changed(
                f"sample {row}", path, f"has another checksum (bytes {offset - gap} to {offset - 1}, its header)"
            )
        return sample

    def _changed(self, part: str, path: Path, what: str) -> DataError:
        return DataError(
            f"{part} of shard {path.name} in {self._index.location} {what} than was indexed{diagnose(path)}: the "
            f"shard was damaged or changed after indexing; {self._index.store.remedy(path)}."
        )

    def _file(self, shard: int) -> tuple[BinaryIO, Path]:
        if shard not in self._files:
            while len(self._files) >= self._open_files:
                self._files.popitem(last=False)[1][0].close()
            self._files[shard] = self._open(shard)
        self._files.move_to_end(shard)
        return self._files[shard]

    def _open(self, shard: int) -> tuple[BinaryIO, Path]:
        entry = self._index.shards[shard]
        for last in (False, False, True):
            path = self._index.store.fetch(entry.name, entry.bytes, entry.sha256)
            try:
                file = path.open("rb", buffering=0)
            except OSError as error:
                # Another process may have evicted it from the cache since; then the shard is fetched again.
                if last or not isinstance(error, FileNotFoundError):
                    raise DataError(
                        f"shard {path} cannot be opened ({error.strerror}); check its rights, and that data.cache_gib "
                        "holds the shards that are read at a time."
                    ) from None
                continue
            self._check_tail(shard, file, path)
            return file, path
        raise AssertionError

    def _check_tail(self, shard: int, file: BinaryIO, path: Path) -> None:
        entry, last = self._index.shards[shard], self._index.table(shard)[-1]
        end = int(last["offset"] + last["length"])
        if entry.bytes - end > _MOST_GAP:
            return
        if zlib.crc32(os.pread(file.fileno(), entry.bytes - end, end)) != entry.tail_crc32:
            file.close()
            raise self._changed("the end", path, f"has another checksum (bytes {end} to {entry.bytes - 1})")

    def _key(self, shard: int, row: int) -> str:
        # Only for messages. The header of a .json member is the block before its data; others begin with theirs.
        entry = self._index.table(shard)[row]
        try:
            file = self._file(shard)[0].fileno()
            if self._index.shards[shard].layout == "json":
                header = os.pread(file, BLOCK, int(entry["offset"]) - BLOCK)
                return split_name(tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name)[0]
            blocks = os.pread(file, int(entry["length"]), int(entry["offset"]))
            first = next(members(lambda at, count: blocks[at : at + count], len(blocks), ended=False))
            return split_name(first.name)[0]
        except (DataError, OSError, tarfile.TarError, BadTar, StopIteration):
            return ""


_REMEDY = "; fix the input and pack it again, or allow some with data.max_bad_samples."
