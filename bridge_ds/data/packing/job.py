"""Packing large inputs: in parallel over processes, restartable part by part, with a shuffle and a manifest.

Unfinished work is in `.NAME.packing` next to the output folder. A finished part leaves a record there; the same command
after a kill keeps finished parts and does the others again. What is written depends on input and options alone, not on
the number of processes or on interruptions.

The shuffle has two passes: the rows of each part go at random into buckets (files), then each bucket is shuffled in
memory and becomes one or more shards. So any row may get any position, with no more memory than one bucket needs.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from bridge_ds import __version__
from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.part import COMPRESSIONS, Part
from bridge_ds.data.packing.pool import process_pool
from bridge_ds.data.packing.sources import map_fields, stamp
from bridge_ds.data.packing.write import (
    MIB,
    check_keys,
    check_output,
    encoded,
    index_shard,
    packing_into,
    write_manifest,
    write_shards,
)
from bridge_ds.data.shards.index import ShardIndex, load_index, read_entry, write_index
from bridge_ds.disk import file_sha256, move_folder, real, write_text
from bridge_ds.errors import DataError
from bridge_ds.partial import writing
from bridge_ds.reading import json_object

__all__ = ["PackOptions", "pack_parts"]

_FLUSH_BYTES = 64 * MIB
_EXPANSION = 8
"""Bytes of JSON lines in a byte of a compressed file, roughly: a bucket is to fit in memory."""


@dataclass(frozen=True)
class PackOptions:
    """What decides the bytes of the shards, together with the input."""

    mapping: tuple[tuple[str, str], ...] = ()
    """(sample field, input field); empty = rows as they are."""
    samples_per_shard: int = 100_000
    """Most samples in a shard."""
    shard_bytes: int = 256 * MIB
    """A shard ends before it would exceed this (bytes)."""
    limit: int | None = None
    """Rows of the input to take; None = all."""
    shuffle: int | None = None
    """Seed of the shuffle; None = in the order of the input."""
    key: str = ""
    """Input field that holds each sample's key; empty = running numbers."""
    language: str = ""
    """Of the texts, for the index."""
    source: str = ""
    """What the texts come from, for the index."""


@dataclass(frozen=True)
class _Job:
    options: PackOptions
    parts: tuple[Part, ...]
    folder: Path
    buckets: int
    marks: tuple[tuple[int, ...], ...]
    """Of each part, the size and the time of change of its file."""

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def record(self, stage: str, number: int) -> Path:
        return self.folder / f"{stage}-{number:05d}.json"

    def done(self, stage: str, number: int) -> dict[str, Any] | None:
        """What a finished unit has recorded; None = not finished, or a power loss left no readable record."""
        try:
            return json_object(self.record(stage, number))
        except (OSError, ValueError):
            return None

    def spool(self, part: int, bucket: int) -> Path:
        return self.folder / "spool" / f"{bucket:05d}-{part:05d}.tsv"


def pack_parts(
    parts: Sequence[Part],
    options: PackOptions,
    output: Path,
    *,
    processes: int = 1,
    overwrite: bool = False,
    progress: bool = False,
) -> ShardIndex:
    """Pack an input; the folder appears once it is complete.

    Args:
        parts: the input, from :mod:`bridge_ds.data.packing.sources`.
        options: what to write.
        output: folder to make.
        processes: how many work at a time.
        overwrite: whether to replace a folder of shards that is there, or unfinished work with other options.
        progress: whether to show a bar on a terminal.

    Raises:
        DataError: the input cannot be read, holds no sample, or changes meanwhile; the folder is not empty; unfinished
            work of other options or of another process is there.
        LaunchError: the folder cannot be made.
    """
    check_output(output, overwrite)
    if dict(options.mapping).get(options.key, options.key) != options.key:
        raise DataError(
            f"--key names the input's field {options.key!r}, and --map fills a field of that name from another; "
            "expected one of them; choose another --key, or rename the field."
        )
    output = real(output)
    folder = output.parent / f".{output.name}.packing"
    job = _Job(options, tuple(parts), folder, _buckets(parts, options), tuple(map(stamp, parts)))
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with packing_into(output, folder):
        try:
            _prepare(job, output, overwrite)
            _pack(job, processes, progress)
        except (DataError, OSError) as error:
            if not any(folder.glob("*-*.json")):
                shutil.rmtree(folder, ignore_errors=True)  # no part is finished that a second start could keep
            if isinstance(error, DataError) or not str(error.filename or folder).startswith(str(folder)):
                raise
            raise DataError(
                f"{output} cannot be written ({error.strerror}); expected room for the shards, and once more for "
                "--shuffle; make room, then the same command continues, or choose another --output."
            ) from None
        move_folder(job.shards, output, replace=True)
        shutil.rmtree(folder, ignore_errors=True)  # NFS keeps a file that is open, such as the lock
    return load_index(output)


def _pack(job: _Job, processes: int, progress: bool) -> None:
    parts = range(len(job.parts))
    units = [tuple(parts)] if job.options.limit is not None else [(number,) for number in parts]
    sizes = [max(1, sum(job.parts[number].weight for number in unit)) for unit in units]
    if job.options.shuffle is None:
        _run(job, "pack", _pack_unit, units, sizes, processes, progress)
        last, count = "pack", len(units)
    else:
        _run(job, "spread", _spread_unit, units, sizes, processes, progress)
        _run(job, "gather", _gather, [(n,) for n in range(job.buckets)], [1] * job.buckets, processes, progress)
        last, count = "gather", job.buckets
    records = [json_object(job.record(last, number)) for number in range(count)]
    entries = [read_entry(entry) for record in records for entry in record["entries"]]
    if not entries:
        raise DataError("the input holds no sample; expected at least one; check the input and --limit.")
    if job.options.key:
        check_keys(job.shards, entries, job.options.key)
    write_index(job.shards, entries)
    _write_manifest(job, sum(entry.samples for entry in entries))
    for part, mark in zip(job.parts, job.marks, strict=True):
        if stamp(part) != mark:
            (job.folder / "job.json").unlink()  # so that the next start begins anew
            raise DataError(f"{part.name} changed while it was packed; expected one that stays as it is; start again.")


def _prepare(job: _Job, output: Path, overwrite: bool) -> None:
    marks = [(part.name, *mark) for part, mark in zip(job.parts, job.marks, strict=True)]
    wanted = json.dumps([asdict(job.options), [asdict(part) for part in job.parts], marks, __version__])
    record = job.folder / "job.json"
    if record.is_file() and record.read_bytes() != wanted.encode():
        if not overwrite:
            raise DataError(
                f"{job.folder} holds unfinished work of another input, version or options; repeat that command to "
                "finish it, or pass --overwrite to start over."
            )
        record.unlink()
    if not (record.is_file() and job.shards.is_dir()):  # where a stop came after the shards were moved, they are gone
        record.unlink(missing_ok=True)
        for path in job.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        job.shards.mkdir()
        (job.folder / "spool").mkdir()
        record.write_text(wanted, encoding="utf-8")


def _buckets(parts: Sequence[Part], options: PackOptions) -> int:
    if options.shuffle is None:
        return 0
    weight = sum(part.weight * (_EXPANSION if Path(part.name).suffix in COMPRESSIONS else 1) for part in parts)
    unit = options.samples_per_shard if parts and parts[0].kind == "dataset" else options.shard_bytes
    return max(1, -(-weight // unit))


def _run(
    job: _Job,
    stage: str,
    work: Callable[[_Job, int, tuple[int, ...]], dict[str, Any]],
    units: Sequence[tuple[int, ...]],
    sizes: Sequence[int],
    processes: int,
    progress: bool,
) -> None:
    """Do the units of a stage that have no record yet."""
    from tqdm import tqdm

    todo = [number for number in range(len(units)) if job.done(stage, number) is None]
    # disable=None: a bar on a terminal, nothing in a log file.
    with tqdm(
        total=sum(sizes), initial=sum(sizes) - sum(sizes[n] for n in todo), desc=stage, unit="B", unit_scale=True,
        disable=None if progress else True,
    ) as bar:  # fmt: skip
        if min(processes, len(todo)) <= 1:
            for number in todo:
                _do(job, stage, work, number, units[number])
                bar.update(sizes[number])
            return
        with process_pool(min(processes, len(todo))) as pool:
            futures = {pool.submit(_do, job, stage, work, number, units[number]): number for number in todo}
            for future in as_completed(futures):
                future.result()
                bar.update(sizes[futures[future]])


def _do(job: _Job, stage: str, work: Callable[..., dict[str, Any]], number: int, unit: tuple[int, ...]) -> None:
    record = job.record(stage, number)
    write_text(record, json.dumps(work(job, number, unit)), fsync=False)
    if stage == "gather":
        for spool in (job.folder / "spool").glob(f"{number:05d}-*.tsv"):
            spool.unlink()


def _encoded(job: _Job, number: int, unit: tuple[int, ...]) -> Iterator[tuple[str, bytes]]:
    mapping, key = dict(job.options.mapping), job.options.key
    if mapping and key:
        mapping[key] = key
    rows = chain.from_iterable(part_rows(job.parts[part], mapping.values()) for part in unit)
    prefix = f"{number:05d}_" if len(job.parts) > 1 and len(unit) == 1 else ""
    return encoded(map_fields(islice(rows, job.options.limit), mapping), key_prefix=prefix, key_field=key)


def _pack_unit(job: _Job, number: int, unit: tuple[int, ...]) -> dict[str, Any]:
    prefix = f"shard-{number:05d}-" if len(job.parts) > 1 and len(unit) == 1 else "shard-"
    return _write(job, prefix, _encoded(job, number, unit))


def _write(job: _Job, prefix: str, samples: Iterator[tuple[str, bytes]]) -> dict[str, Any]:
    try:
        names = write_shards(samples, job.shards, prefix, job.options.samples_per_shard, job.options.shard_bytes)
        language, source = job.options.language, job.options.source
        scans = [index_shard(job.shards / name, language=language, source=source) for name in names]
        return {"entries": [asdict(scan.entry) for scan in scans]}
    except OSError:
        for path in job.shards.glob(f"{prefix}*"):
            path.unlink()  # they fill the disk
        raise


def _spread_unit(job: _Job, number: int, unit: tuple[int, ...]) -> dict[str, Any]:
    for bucket in range(job.buckets):
        job.spool(number, bucket).unlink(missing_ok=True)  # of an attempt that was killed
    draw = random.Random(f"{job.options.shuffle}/deal/{number}")
    pending: dict[int, list[bytes]] = {}
    held = 0
    for key, content in _encoded(job, number, unit):
        # JSON holds no raw line end, and a key no tab.
        pending.setdefault(draw.randrange(job.buckets), []).append(key.encode() + b"\t" + content + b"\n")
        held += len(content)
        if held > _FLUSH_BYTES:
            _flush(job, number, pending)
            held = 0
    _flush(job, number, pending)
    return {}


def _flush(job: _Job, number: int, pending: dict[int, list[bytes]]) -> None:
    for bucket, lines in pending.items():
        with job.spool(number, bucket).open("ab") as file:
            file.writelines(lines)
    pending.clear()


def _gather(job: _Job, number: int, unit: tuple[int, ...]) -> dict[str, Any]:
    spools = sorted((job.folder / "spool").glob(f"{number:05d}-*.tsv"))
    lines = [line for spool in spools for line in spool.read_bytes().split(b"\n") if line]
    random.Random(f"{job.options.shuffle}/gather/{number}").shuffle(lines)
    pairs = (line.split(b"\t", 1) for line in lines)
    return _write(job, f"shard-{number:05d}-", ((key.decode(), content) for key, content in pairs))


def _write_manifest(job: _Job, samples: int) -> None:
    inputs: dict[str, dict[str, Any]] = {}
    for part in job.parts:
        if part.name not in inputs:
            path = Path(part.name)
            inputs[part.name] = {"kind": part.kind, "options": dict(part.options)}
            if part.kind != "dataset" and path.is_file():  # one that is gone has changed, see _pack
                inputs[part.name] |= {"bytes": path.stat().st_size, "sha256": file_sha256(path)}
    content = {
        "bridge_ds": __version__,
        "samples": samples,
        "options": asdict(job.options),
        "inputs": [{"name": name} | facts for name, facts in inputs.items()],
    }
    write_manifest(job.shards, content)
