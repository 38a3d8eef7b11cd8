"""The input of packing, split into parts that processes can read in parallel.

Each row comes with its location, for messages. How an input is split depends on the input alone, never on the number of
processes, so that the same input always makes the same shards.
"""

from __future__ import annotations

import difflib
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from bridge_ds.data.packing.part import COMPRESSIONS, FORMATS, Part, Row
from bridge_ds.data.packing.tables import load_dataset, parquet_file
from bridge_ds.data.shards.samples import MAPPED
from bridge_ds.errors import DataError
from bridge_ds.reading import is_macos, twice

__all__ = ["PART_BYTES", "dataset_parts", "file_parts", "map_fields", "parse_map", "stamp"]

PART_BYTES = 256 << 20
"""Bytes of an uncompressed jsonl file, or of parquet row groups, in one part."""
_PART_ROWS = 200_000

_ENDINGS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text", ".csv": "csv", ".tsv": "tsv", ".parquet": "parquet"}


def file_parts(paths: Iterable[Path], format: str = "auto") -> list[Part]:
    """Split files into parts.

    Args:
        paths: files of :data:`FORMATS`.
        format: one of them, or `auto` (by the ending).

    Raises:
        DataError: a file is missing, given twice, or of unknown format.
    """
    parts: list[Part] = []
    paths = list(paths)
    again = twice(path.resolve() for path in paths)
    if again is not None:
        raise DataError(f"{again} is given twice, so that each of its rows would come twice; give each file once.")
    for path in paths:
        if is_macos(path.name):
            raise DataError(f"{path} is a file that macOS adds, and holds no rows; leave it out.")
        # Other processes would read another stdin.
        size = _size(path, pipe=len(paths) == 1)
        kind, compression = _format_of(path, format)
        if kind == "parquet":
            parts += _parquet_parts(path)
        elif size is None:
            parts.append(Part(kind, str(path)))
        elif kind == "jsonl" and not compression:
            starts = range(0, max(1, size), PART_BYTES)
            parts += [Part(kind, str(path), s, min(s + PART_BYTES, size), min(PART_BYTES, size - s)) for s in starts]
        else:
            parts.append(Part(kind, str(path), weight=size))
    return parts


def dataset_parts(name: str, config: str | None, split: str, revision: str | None, stream: bool) -> list[Part]:
    """Split a `datasets` id, or a local folder (also one made by `save_to_disk`), into parts.

    Args:
        name: hub id or folder.
        config: configuration of the data set, such as a language.
        split: such as `train`.
        revision: hub revision.
        stream: fetch rows as they are read instead of all files first; makes one part.

    Raises:
        DataError: it cannot be loaded.
    """
    options = (("config", config), ("split", split), ("revision", revision), ("stream", "yes" if stream else ""))
    if stream:
        return [Part("dataset", name, options=options)]
    count = len(load_dataset(name, dict(options)))
    return [
        Part("dataset", name, start, min(start + _PART_ROWS, count), min(_PART_ROWS, count - start), options)
        for start in range(0, max(1, count), _PART_ROWS)
    ]


def map_fields(rows: Iterable[Row], mapping: Mapping[str, str]) -> Iterator[Row]:
    """Rows with only the fields of the mapping, renamed; rows as they are where the mapping is empty.

    Args:
        rows: input.
        mapping: sample field -> input field.

    Raises:
        DataError: a row lacks a mapped field.
    """
    for where, row in rows:
        if not mapping or not isinstance(row, dict):
            yield where, row
            continue
        missing = [name for name in mapping.values() if name not in row]
        if missing:
            raise DataError(
                f"{where} has no field `{missing[0]}`; it has {', '.join(f'`{name}`' for name in row) or 'none'}; "
                "name one of these in --map or fix the input."
            )
        yield where, {name: row[field] for name, field in mapping.items()}


def parse_map(entries: Iterable[str], known: Collection[str] = MAPPED) -> dict[str, str]:
    """`["source=premise"]` -> `{"source": "premise"}`.

    Args:
        entries: of --map.
        known: fields that may be filled.

    Raises:
        DataError: an entry has another shape, or fills an unknown field or one that is filled already.
    """
    mapping: dict[str, str] = {}
    for entry in entries:
        name, equals, field = entry.partition("=")
        if not equals or not field or name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near and name not in known else "."
            raise DataError(
                f"--map {entry!r} cannot be used; expected NAME=FIELD with NAME one of {', '.join(known)}{hint}"
            )
        if name in mapping:
            raise DataError(
                f"--map fills {name} twice, from {mapping[name]!r} and from {field!r}; expected it once; drop one."
            )
        mapping[name] = field
    return mapping


def _size(path: Path, pipe: bool) -> int | None:
    """Bytes; None for a pipe that is open in this process, such as bash's <(...), where `pipe` allows it."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); check the path.") from None
    if pipe and stat.S_ISFIFO(status.st_mode) and str(path).startswith(("/dev/fd/", "/dev/stdin", "/proc/self/fd/")):
        return None
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a pipe or a device"
        raise DataError(
            f"{path} is {what}; expected a file (or, alone and not as parquet, /dev/stdin); write the rows into one."
        )
    return status.st_size


def _format_of(path: Path, format: str) -> tuple[str, str]:
    compression = COMPRESSIONS.get(path.suffix, "")
    suffix = Path(path.stem).suffix if compression else path.suffix
    if format != "auto":
        return format, compression
    if suffix not in _ENDINGS:
        raise DataError(
            f"{path} ends in {suffix or 'nothing'}; expected {', '.join(_ENDINGS)} (also with .gz or .zst): "
            f"say --format {', '.join(FORMATS[:-1])} or {FORMATS[-1]}."
        )
    return _ENDINGS[suffix], compression


def _parquet_parts(path: Path) -> list[Part]:
    file = parquet_file(path)
    parts: list[Part] = []
    first = weight = 0
    for group in range(file.num_row_groups):
        weight += file.metadata.row_group(group).total_byte_size
        if weight >= PART_BYTES or group == file.num_row_groups - 1:
            parts.append(Part("parquet", str(path), first, group + 1, weight))
            first, weight = group + 1, 0
    return parts


def stamp(part: Part) -> tuple[int, ...]:
    """Size and time of change of a part's file: another file under the same name is another input."""
    path = Path(part.name)
    if part.kind == "dataset" or not path.exists():
        return ()
    status = path.stat()
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else (status.st_ino,)
