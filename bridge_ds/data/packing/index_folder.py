"""Indexing tars that others made: any `.json` and `.txt` members, under any names; nothing in them is changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

from bridge_ds.data.packing.pool import process_pool
from bridge_ds.data.packing.write import index_shard
from bridge_ds.data.shards.index import ShardIndex, load_index, write_index
from bridge_ds.data.shards.samples import READ
from bridge_ds.data.shards.scan import Scan
from bridge_ds.data.shards.table import name_fault, refuse_twice, table_name
from bridge_ds.disk import real
from bridge_ds.errors import DataError
from bridge_ds.reading import is_macos

__all__ = ["index_folder"]


def index_folder(
    folder: Path,
    *,
    fields: Mapping[str, str] | None = None,
    skip: Sequence[str] = (),
    language: str = "",
    source: str = "",
    processes: int = 1,
    progress: bool = False,
) -> tuple[ShardIndex, list[str]]:
    """Write `index.json` and the tables of all `*.tar` of a folder, in the order of their names.

    Args:
        folder: with tars in it.
        fields: sample field -> field in the tars, where the names differ.
        skip: suffixes of members to skip.
        language: of the texts.
        source: what the texts come from.
        processes: how many read at a time.
        progress: whether to show a bar on a terminal.

    Returns:
        The index, and remarks for the user: what was skipped, and samples that are malformed (these count against
        `data.max_bad_samples` when a run meets them).

    Raises:
        DataError: no tar, a compressed one, or one that may not be trained on (see
            :func:`bridge_ds.data.shards.scan.scan_shard`); an index that was there stays usable.
    """
    paths = sorted(path for path in folder.glob("*.tar") if not is_macos(path.name))
    packed = sorted(
        path.name for ending in ("*.tar.*", "*.tgz") for path in folder.glob(ending) if not is_macos(path.name)
    )
    if packed:
        raise DataError(f"{folder} holds {packed[0]}, a compressed tar, which has no random access; unpack it to .tar.")
    if not paths:
        what = "holds no .tar" if folder.is_dir() else "is no folder"
        raise DataError(f"{folder} {what}; expected a folder of webdataset tars.")
    if fault := next(filter(None, (name_fault(path.name) for path in paths)), ""):
        raise DataError(f"{folder}: {fault}; rename it.")
    skip = sorted({suffix.lower().lstrip(".") for suffix in skip})
    tables = [real(folder / table_name(path.name)) for path in paths]
    # An index that is there goes with the tables that are there: both are replaced once all tars are accepted.
    fresh = [table.with_name(f".new-{table.name}") for table in tables]
    try:
        scans = _scan_all(paths, fresh, processes, progress, fields=fields, skip=skip, language=language, source=source)
        try:
            refuse_twice([scan.entry for scan in scans])
        except ValueError as error:
            raise DataError(f"{folder}: {error}.") from None
        for new, table in zip(fresh, tables, strict=True):
            new.replace(table)
        entries = [scan.entry for scan in scans]
        write_index(folder, entries, dict(fields or {}), [suffix for suffix in skip if suffix in READ])
    finally:
        for new in fresh:
            with suppress(OSError):
                new.unlink(missing_ok=True)
    return load_index(folder), _remarks(scans)


def _remarks(scans: Sequence[Scan]) -> list[str]:
    remarks = []
    if skipped := sum(scan.skipped for scan in scans):
        remarks.append(f"{skipped} members were skipped (--skip, __meta__ names, or files of macOS)")
    if malformed := sum(scan.malformed for scan in scans):
        first = next(scan.first_malformed for scan in scans if scan.malformed)
        remarks.append(f"{malformed} samples are bad and count against data.max_bad_samples; the first: {first}")
    return remarks


def _scan_all(
    paths: Sequence[Path], tables: Sequence[Path], processes: int, progress: bool, **options: Any
) -> list[Scan]:
    from tqdm import tqdm

    work = partial(index_shard, **options)
    with ExitStack() as stack:
        many = min(processes, len(paths)) > 1
        run = stack.enter_context(process_pool(min(processes, len(paths)))).map if many else map
        # disable=None: a bar on a terminal, nothing in a log file.
        bar = None if progress else True
        return list(tqdm(run(work, paths, tables), total=len(paths), desc="indexing", unit=" shards", disable=bar))
