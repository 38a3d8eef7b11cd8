"""Reading every byte of a data set again, and naming the first range that is not as it was indexed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from bridge_ds.data.shards.index import ShardIndex
from bridge_ds.data.shards.tar import crc32_of
from bridge_ds.disk import file_sha256
from bridge_ds.errors import DataError

__all__ = ["verify", "verify_shard"]


def verify(index: ShardIndex) -> Iterator[str]:
    """Check all shards and tables, one after the other; yields the name of each when it has been found right.

    Raises:
        DataError: a shard is missing or is not the file that was indexed; names the first bad range of bytes.
    """
    for number, shard in enumerate(index.shards):
        index.table(number)
        verify_shard(index, number, index.store.fetch(shard.name, shard.bytes, shard.sha256))
        yield shard.name


def verify_shard(index: ShardIndex, number: int, path: Path) -> None:
    """Compare one shard with its sha256, and where that differs with the checksums of its samples.

    Raises:
        DataError: names the first range of bytes (first and last, counted from 0) that differs.
    """
    shard = index.shards[number]
    found = file_sha256(path)
    if found == shard.sha256:
        return
    table = index.table(number)
    end, where = 0, ""
    with path.open("rb") as file:
        for row in range(shard.samples):
            offset, length = int(table["offset"][row]), int(table["length"][row])
            if crc32_of(file, end, offset) != table["gap_crc32"][row]:
                where = f"bytes {end} to {offset - 1} (the tar header before sample {row})"
            elif crc32_of(file, offset, offset + length) != table["crc32"][row]:
                where = f"bytes {offset} to {offset + length - 1} (sample {row})"
            if where:
                break
            end = offset + length
    where = where or f"bytes {end} to {shard.bytes - 1} (after the last sample)"
    raise DataError(
        f"shard {shard.name} in {index.location} is damaged at {where}: its sha256 is {found[:12]}..., the index "
        f"says {shard.sha256[:12]}...; copy it again from where it was made, or index it again if that was meant."
    )
