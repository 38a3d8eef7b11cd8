"""Write samples as webdataset shards with an index. All or nothing: the folder appears once it is complete."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bridge_ds.data.index import INDEX_NAME, ShardEntry, ShardIndex, file_sha256, load_index, write_index
from bridge_ds.data.reader import REQUIRED_FIELDS, fault_in
from bridge_ds.data.sources import FIELDS, Row
from bridge_ds.errors import DataError

__all__ = ["MIB", "index_shard", "pack_located", "pack_rows"]

MIB = 1 << 20
"""Bytes in a MiB."""

_BLOCK = 512  # a tar member is a header of one block and its data in whole blocks


def pack_rows(
    rows: Iterable[dict[str, Any]],
    output: str | Path,
    *,
    samples_per_shard: int = 100_000,
    shard_bytes: int = 256 * MIB,
    overwrite: bool = False,
    progress: bool = False,
) -> ShardIndex:
    """Pack samples; the same rows give the same bytes.

    Args:
        rows: samples: `source` and `target` (and perhaps `prompt`), or `text`; further fields are kept.
        output: folder to make.
        samples_per_shard: most samples in a shard.
        shard_bytes: a shard ends before it would exceed this (bytes), unless one sample alone does.
        overwrite: whether to replace a folder of shards that is already there.
        progress: whether to show a bar on a terminal.

    Raises:
        DataError: a row is no sample, there is none, or the folder is not empty.
    """
    located = ((f"row {number}", row) for number, row in enumerate(rows))
    return pack_located(
        located,
        output,
        samples_per_shard=samples_per_shard,
        shard_bytes=shard_bytes,
        overwrite=overwrite,
        progress=progress,
    )


def pack_located(
    rows: Iterable[Row],
    output: str | Path,
    *,
    samples_per_shard: int,
    shard_bytes: int,
    overwrite: bool = False,
    progress: bool = False,
) -> ShardIndex:
    """:func:`pack_rows` for rows that come with their place, which messages then name."""
    output = Path(output)
    _check_output(output, overwrite)
    temporary = output.parent / f".{output.name}.packing-{os.getpid()}"
    # Not tempfile.mkdtemp: its folder is closed to everyone else, and the shards are for a whole group.
    temporary.mkdir(parents=True)
    try:
        names = _write_shards(_encoded(rows, progress), temporary, samples_per_shard, shard_bytes)
        if not names:
            raise DataError("the input holds no sample; expected at least one; check the input and --limit.")
        write_index(ShardIndex(temporary, tuple(index_shard(temporary / name) for name in names)))
        _publish(temporary, output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return load_index(output)


def index_shard(path: Path) -> ShardEntry:
    """Describe a finished tar of `{key}.json` members.

    Raises:
        DataError: the file is no whole tar, or a member is not one JSON sample under its own dot-free key.
    """
    offsets, lengths, characters = [], [], []
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                # webdataset cuts keys at the first dot and merges members of one key into one sample.
                if not member.isfile() or suffix != "json" or key in seen:
                    raise DataError(
                        f"shard {path.name} holds {member.name!r}; expected distinct dot-free keys ending in .json."
                    )
                seen.add(key)
                content = json.load(tar.extractfile(member))  # type: ignore[arg-type]
                offsets.append(member.offset_data)
                lengths.append(member.size)
                characters.append(sum(len(content[name]) for name in FIELDS if isinstance(content.get(name), str)))
    except (tarfile.TarError, ValueError, AttributeError) as error:
        raise DataError(
            f"shard {path.name} cannot be indexed ({error}); pack it again with tools/pack_shards.py."
        ) from None
    return ShardEntry(
        name=path.name,
        samples=len(offsets),
        bytes=path.stat().st_size,
        sha256=file_sha256(path),
        offsets=np.array(offsets, dtype=np.int64),
        lengths=np.array(lengths, dtype=np.int64),
        characters=np.array(characters, dtype=np.int64),
    )


def _encoded(rows: Iterable[Row], progress: bool) -> Iterator[bytes]:
    from tqdm import tqdm

    # disable=None: a bar on a terminal, nothing in a log file.
    for place, row in tqdm(rows, desc="packing", unit=" samples", disable=None if progress else True):
        # Corpora of plain text often name their origin `source`, so only a target marks a task beside `text`.
        is_text = isinstance(row, dict) and "text" in row and "target" not in row
        fault = fault_in(row, "prefix_lm" if is_text else "task")
        if fault:
            needs = " or ".join(" and ".join(fields) for fields in REQUIRED_FIELDS.values())
            raise DataError(f"{place} {fault}; a sample holds {needs}: mend the input or set --map.")
        try:
            yield json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{place} cannot be written as JSON ({error}); choose its text fields with --map."
            ) from None


def _write_shards(samples: Iterator[bytes], folder: Path, samples_per_shard: int, shard_bytes: int) -> list[str]:
    from webdataset.writer import TarWriter

    names: list[str] = []
    numbers = itertools.count()
    pending = next(samples, None)
    while pending is not None:
        name = f"shard-{len(names):06d}.tar"
        names.append(name)
        count = size = 0
        # Fixed time, owner and mode: the same samples give the same bytes on any day and machine.
        with (
            (folder / name).open("wb") as file,
            contextlib.closing(
                TarWriter(file, user="bridge_ds", group="bridge_ds", mode=0o644, mtime=0, encoder=False)
            ) as writer,
        ):
            while pending is not None:
                cost = _BLOCK + -(-len(pending) // _BLOCK) * _BLOCK
                if count == samples_per_shard or (count and size + cost > shard_bytes):
                    break
                writer.write({"__key__": f"{next(numbers):09d}", "json": pending})
                count, size = count + 1, size + cost
                pending = next(samples, None)
    return names


def _check_output(output: Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"the output folder {output} is a file; expected a folder: choose another name.")
    content = [path.name for path in output.iterdir()]
    if content and not overwrite:
        raise DataError(
            f"the output folder {output} is not empty; expected a new or empty one: choose another or pass --overwrite."
        )
    foreign = [name for name in content if name != INDEX_NAME and not name.endswith(".tar")]
    if foreign:
        raise DataError(
            f"the output folder {output} holds {foreign[0]!r} beside shards; --overwrite replaces shards only: "
            "choose another."
        )


def _publish(temporary: Path, output: Path) -> None:
    old = output.parent / f".{output.name}.replaced-{os.getpid()}"
    if output.exists():
        output.rename(old)
    temporary.rename(output)
    shutil.rmtree(old, ignore_errors=True)
