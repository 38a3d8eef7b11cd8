"""Where samples to pack come from: JSON lines, plain text, `datasets`. Each row comes with its place, for messages."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge_ds.errors import DataError

__all__ = ["FIELDS", "Row", "dataset_rows", "file_rows", "map_fields", "parse_map"]

Row = tuple[str, Any]
"""(place such as `train.jsonl:17`, what was found there)."""

FIELDS = ("source", "target", "prompt", "text")
"""Sample fields that `--map` may fill."""

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".txt": "text"}


def file_rows(paths: Iterable[Path], format: str = "auto") -> Iterator[Row]:
    """Rows of files, one file after the other.

    Args:
        paths: jsonl or plain text, also with a further `.gz`.
        format: `jsonl`, `text`, or `auto` (by the ending).

    Raises:
        DataError: a file is missing, unreadable, not UTF-8, of unknown format, or a line is no JSON.
    """
    for path in paths:
        chosen = _format_of(path) if format == "auto" else format
        yield from (_jsonl if chosen == "jsonl" else _paragraphs)(path)


def dataset_rows(name: str, config: str | None, split: str, revision: str | None, stream: bool) -> Iterator[Row]:
    """Rows of a `datasets` id or of a local folder (also one made by `save_to_disk`).

    Args:
        name: hub id or folder.
        config: configuration of the data set, such as a language.
        split: such as `train`.
        revision: hub revision.
        stream: fetch rows as they are read instead of all files first.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets

    try:
        if any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            rows = saved[split] if isinstance(saved, datasets.DatasetDict) else saved
        else:
            rows = datasets.load_dataset(name, config, split=split, revision=revision, streaming=stream)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise DataError(
            f"the data set {name!r} could not be loaded ({reason}); expected a hub id or a folder that `datasets` "
            "reads: check --dataset, --config, --split and --revision."
        ) from None
    for number, row in enumerate(rows):
        yield f"{name}[{split}] row {number}", dict(row)


def map_fields(rows: Iterable[Row], mapping: Mapping[str, str]) -> Iterator[Row]:
    """Rows with only the fields of the mapping, renamed; rows as they are where the mapping is empty.

    Args:
        rows: input.
        mapping: sample field -> input field.

    Raises:
        DataError: a row lacks a mapped field.
    """
    for place, row in rows:
        if not mapping or not isinstance(row, dict):
            yield place, row
            continue
        missing = [name for name in mapping.values() if name not in row]
        if missing:
            raise DataError(
                f"{place} has no field `{missing[0]}`; it has {', '.join(f'`{name}`' for name in row) or 'none'}; "
                "name one of these in --map or mend the input."
            )
        yield place, {name: row[field] for name, field in mapping.items()}


def parse_map(entries: Iterable[str]) -> dict[str, str]:
    """`["source=premise"]` -> `{"source": "premise"}`.

    Raises:
        DataError: an entry has another shape or fills an unknown sample field.
    """
    mapping: dict[str, str] = {}
    for entry in entries:
        name, equals, field = entry.partition("=")
        if not equals or not field or name not in FIELDS:
            raise DataError(
                f"--map {entry!r} cannot be used; expected NAME=FIELD with NAME one of {', '.join(FIELDS)}."
            )
        mapping[name] = field
    return mapping


def _format_of(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _FORMATS:
        known = ", ".join(_FORMATS)
        raise DataError(
            f"{path} ends in {suffix or 'nothing'}; expected {known} (also with .gz): say --format jsonl or text."
        )
    return _FORMATS[suffix]


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    opened = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opened(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                yield f"{path}:{number}", line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}:{number} is not UTF-8 ({error.reason}); convert the file to UTF-8.") from None
    except (OSError, EOFError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read after line {number} ({reason}); check the path and the file.") from None


def _jsonl(path: Path) -> Iterator[Row]:
    for place, line in _lines(path):
        if not line.strip():
            continue
        try:
            yield place, json.loads(line)
        except json.JSONDecodeError as error:
            # Its own text counts lines inside this one line, which reads like a line of the file.
            raise DataError(
                f"{place} is malformed JSON ({error.msg} at character {error.pos + 1}); "
                "expected one JSON object per line: mend or remove it."
            ) from None
        except RecursionError:
            raise DataError(f"{place} is JSON nested too deep to read; expected one flat object: mend it.") from None


def _paragraphs(path: Path) -> Iterator[Row]:
    # A paragraph of one word is mostly a heading: it goes with the next, since alone it could not be split in two.
    words: list[str] = []
    start = ""
    for place, line in _lines(path):
        start = start if words else place
        if not line.strip() and len(words) > 1:
            yield start, {"text": " ".join(words)}
            words = []
        words += line.split()
    if words:
        yield start, {"text": " ".join(words)}
