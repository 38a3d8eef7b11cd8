"""Writing samples as webdataset shards, with their tables and the index."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bridge_ds.data.packing.part import Row
from bridge_ds.data.shards.index import INDEX_NAME, ShardIndex, load_index, write_index
from bridge_ds.data.shards.samples import BadSample, check_sample
from bridge_ds.data.shards.scan import Scan, scan_shard
from bridge_ds.data.shards.table import ShardEntry, table_name
from bridge_ds.disk import beside, locked, move_folder, real, remove
from bridge_ds.errors import DataError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.reading import is_macos

__all__ = [
    "MANIFEST_NAME",
    "MIB",
    "check_keys",
    "check_output",
    "encoded",
    "index_shard",
    "pack_rows",
    "packing_into",
    "write_manifest",
    "write_shards",
]

MIB = 1 << 20
"""Bytes in a MiB."""
MANIFEST_NAME = "manifest.json"
"""File next to the index that lists the input."""

_WAYS = OBJECTIVES["task"].required, OBJECTIVES["prefix_lm"].required
"""What a row may hold."""
_BLOCK = 512  # a tar member is a header of one block and its data in whole blocks


def pack_rows(
    rows: Iterable[dict[str, Any]],
    output: str | Path,
    *,
    samples_per_shard: int = 100_000,
    shard_bytes: int = 256 * MIB,
    overwrite: bool = False,
    language: str = "",
    source: str = "",
    manifest: Mapping[str, Any] | None = None,
) -> ShardIndex:
    """Pack samples from memory, in their order; the same rows give the same bytes.

    The folder appears once it is complete. For files see :mod:`bridge_ds.data.packing.job`.

    Args:
        rows: samples: `source` and `target` (and perhaps `prompt`), or `text`; further fields are kept unless None.
        output: folder to make.
        samples_per_shard: most samples in a shard.
        shard_bytes: a shard ends before it would exceed this (bytes), unless one sample alone does.
        overwrite: whether to replace a folder of shards that is already there.
        language: of the texts, for the index.
        source: what the texts come from, for the index.
        manifest: of the input, a file next to the index; None = there is none.

    Raises:
        DataError: a row is no sample, there is none, the folder is not empty, or another process is packing into it.
    """
    output = Path(output)
    check_output(output, overwrite)
    final = real(output)
    folder = beside(final, "packing-rows")
    with packing_into(output, folder):
        try:
            for left in folder.iterdir():  # of a process that was killed
                if left.name != "lock":
                    remove(left)
            temporary = folder / "shards"
            temporary.mkdir()
            samples = encoded((f"row {number}", row) for number, row in enumerate(rows))
            names = write_shards(samples, temporary, "shard-", samples_per_shard, shard_bytes)
            if not names:
                raise DataError("the input holds no sample; expected at least one.")
            write_index(
                temporary, [index_shard(temporary / name, language=language, source=source).entry for name in names]
            )
            if manifest is not None:
                write_manifest(temporary, manifest)
            move_folder(temporary, final, replace=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return load_index(output)


@contextlib.contextmanager
def packing_into(output: Path, folder: Path) -> Iterator[None]:
    """Keep other processes from packing into `output`, by a lock in the folder of unfinished work, which is made.

    Raises:
        DataError: another process holds it.
        OSError: the folder cannot be made.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder / "lock", wait=False))
        except BlockingIOError:
            raise DataError(f"another process is packing into {output}; wait for it, or choose another name.") from None
        yield


def encoded(rows: Iterable[Row], *, key_prefix: str = "", key_field: str = "") -> Iterator[tuple[str, bytes]]:
    """Rows -> (key, JSON as UTF-8). Fields that are null are left out: a table has all columns in each row.

    Args:
        rows: with their locations.
        key_prefix: before the running number, which is the key.
        key_field: field whose value is the key instead.

    Raises:
        DataError: a row is no sample, or has no usable key.
    """
    for number, (where, row) in enumerate(rows):
        sample = {name: value for name, value in row.items() if value is not None} if isinstance(row, dict) else row
        # Corpora of plain text often name their origin `source`, so only a target marks a task beside `text`.
        is_text = isinstance(sample, dict) and "text" in sample and "target" not in sample
        try:
            check_sample(sample, "prefix_lm" if is_text else "task")
        except BadSample as error:
            needs = " or ".join(" and ".join(fields) for fields in _WAYS)
            raise DataError(f"{where} {error}; a sample holds {needs}: fix the input or set --map.") from None
        given = row.get(key_field, "") if key_field else f"{key_prefix}{number:09d}"
        key = str(given)
        usable = isinstance(given, str | int) and not isinstance(given, bool)
        if not usable or not re.fullmatch(r"[^\s./\\\0]{1,90}", key) or re.match("__.*__", key):
            raise DataError(
                f"{where} has the key {key[:100]!r} (field `{key_field}`); expected 1 to 90 characters without dots, "
                "slashes and spaces, for webdataset ends a key at the first dot: choose another --key."
            )
        try:
            yield key, json.dumps(sample, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        except (TypeError, ValueError) as error:
            raise DataError(
                f"{where} cannot be written as JSON ({error}); choose its text fields with --map."
            ) from None


def write_shards(
    samples: Iterable[tuple[str, bytes]], folder: Path, prefix: str, samples_per_shard: int, shard_bytes: int
) -> list[str]:
    """Write tars `{prefix}000000.tar`, ...; returns their names."""
    from webdataset.writer import TarWriter

    names: list[str] = []
    remaining = iter(samples)
    pending = next(remaining, None)
    while pending is not None:
        name = f"{prefix}{len(names):06d}.tar"
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
                key, content = pending
                cost = _BLOCK + -(-len(content) // _BLOCK) * _BLOCK
                if count == samples_per_shard or (count and size + cost > shard_bytes):
                    break
                writer.write({"__key__": key, "json": content})
                count, size = count + 1, size + cost
                pending = next(remaining, None)
    return names


def index_shard(path: Path, table: Path | None = None, **options: Any) -> Scan:
    """Scan a tar and write its table.

    Args:
        path: of the tar.
        table: file to write, in a folder that no index names yet or under a name of its own; None = next to the tar.
        options: see :func:`bridge_ds.data.shards.scan.scan_shard`.

    Raises:
        DataError: see there; or the table cannot be written.
    """
    scan = scan_shard(path, **options)
    table = table or path.parent / table_name(path.name)
    buffer = io.BytesIO()  # into a file, numpy would write without saying why it could not
    np.save(buffer, scan.table, allow_pickle=False)
    raw = buffer.getvalue()
    try:
        table.write_bytes(raw)
    except OSError as error:
        raise DataError(f"{table} cannot be written ({error.strerror}); the table must be next to its shard.") from None
    scan.entry = dataclasses.replace(scan.entry, table_bytes=len(raw), table_sha256=hashlib.sha256(raw).hexdigest())
    return scan


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write what a folder of shards was made from. Raises OSError."""
    (folder / MANIFEST_NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_keys(folder: Path, shards: Sequence[ShardEntry], field: str) -> None:
    """Raises DataError where two samples of different shards have one key (in one shard the scan finds them)."""
    ids = np.concatenate([np.load(folder / table_name(shard.name))["id"] for shard in shards])
    if len(np.unique(ids)) == len(ids):
        return
    order = np.argsort(ids, kind="stable")
    again = order[:-1][ids[order][1:] == ids[order][:-1]][0]
    ends = np.cumsum([shard.samples for shard in shards])
    number = int(np.searchsorted(ends, again, side="right"))
    row = int(again - (ends[number] - shards[number].samples))
    raise DataError(
        f"the key (field `{field}`) of sample {row} of {shards[number].name} comes again in a later shard; expected "
        "each key once; fix the input or choose another --key."
    )


def check_output(output: Path, overwrite: bool) -> None:
    """Raises DataError unless shards may be put at `output`: absent, empty, or only shards and `overwrite`."""
    if not output.exists():
        return
    if not output.is_dir():
        raise DataError(f"the output folder {output} is a file; expected a folder: choose another name.")
    content = [path.name for path in output.iterdir() if not is_macos(path.name)]
    if content and not overwrite:
        raise DataError(
            f"the output folder {output} is not empty; expected a new or empty one: choose another or pass --overwrite."
        )
    ours = (INDEX_NAME, MANIFEST_NAME)
    foreign = [name for name in content if name not in ours and not name.endswith((".tar", ".samples.npy"))]
    if foreign:
        raise DataError(
            f"the output folder {output} holds {foreign[0]!r} besides shards; --overwrite replaces shards only: "
            "choose another."
        )
