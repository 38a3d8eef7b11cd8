"""Reading the rows of an input: JSON lines, plain text, csv, parquet, `datasets`; each row with its location."""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import IO

from bridge_ds.data.packing.part import COMPRESSIONS, OLD_MAC, Part, Row, check_header
from bridge_ds.data.packing.tables import dataset_rows, parquet_rows
from bridge_ds.data.text.words import is_word, joined
from bridge_ds.errors import DataError
from bridge_ds.reading import BOM, NotText, decoded, json_value

__all__ = ["part_rows", "plain_lines"]

_QUOTED = re.compile(r'"(?:[^"]|"")*"')


def part_rows(part: Part, fields: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a part, in order.

    Args:
        part: which.
        fields: that are needed; parquet and data sets then read and decode no others, if they have all of these.

    Raises:
        DataError: it is missing, unreadable, not UTF-8, or holds a line that is no row.
    """
    if part.kind in ("parquet", "dataset"):
        yield from (parquet_rows if part.kind == "parquet" else dataset_rows)(part, set(fields))
    else:
        yield from {"jsonl": _jsonl, "text": _paragraphs, "csv": _csv, "tsv": _tsv, "quoted_tsv": _csv}[part.kind](part)


def _open(part: Part) -> IO[bytes]:
    path = Path(part.name)
    compression = COMPRESSIONS.get(path.suffix)
    if not compression:
        return path.open("rb")
    if compression == "gzip":
        import gzip

        return gzip.open(path, "rb")  # type: ignore[return-value]
    import pyarrow

    # Unlike some readers of zstd it raises where a file is truncated.
    return io.BufferedReader(pyarrow.input_stream(str(path), compression=compression), 1 << 20)


def _lines(part: Part) -> Iterator[Row]:
    # A part has the lines that begin in it, so that every line is in exactly one part.
    number = 0
    since = f" after byte {part.start}" if part.start else ""
    try:
        with _open(part) as file:
            if part.start:
                file.seek(part.start - 1)
                file.readline()
            position = file.tell() if part.stop is not None else 0
            for number, line in enumerate(file, start=1):
                if part.stop is not None and position >= part.stop:
                    return
                position += len(line)
                # Files that were joined end to end have their byte-order marks inside.
                text = decoded(line) if number == 1 and not since else line.decode().removeprefix(BOM)
                if "\0" in text:
                    raise NotText(f"holds a zero byte in line {number}{since}; expected text; copy it again or fix it")
                yield f"{part.name}:{number}{since}", text
    except NotText as error:
        raise DataError(f"{part.name} {error}.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{part.name}:{number}{since} is not UTF-8 ({error.reason}); convert it to UTF-8.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        after = f" after line {number}{since}" if number else ""
        raise DataError(f"{part.name} cannot be read{after} ({reason}); check the path and the file.") from None


def _jsonl(part: Part) -> Iterator[Row]:
    for where, line in _lines(part):
        if not line.strip():
            continue
        try:
            yield where, json_value(line)
        except json.JSONDecodeError as error:
            # Its own text counts lines inside this line, which would read like a line of the file.
            raise DataError(
                f"{where} is malformed JSON ({error.msg} at character {error.pos + 1}); "
                "expected one JSON object per line: fix or remove it."
            ) from None
        except ValueError as error:
            raise DataError(f"{where} cannot be used: {error}.") from None


def plain_lines(part: Part) -> Iterator[Row]:
    """The lines of a text file, without white space at both ends; empty ones too.

    A line ends at LF alone: at a CR inside a sentence too, all translations after it would be shifted.

    Raises:
        DataError: as :func:`part_rows`, or its lines end with CR alone.
    """
    for number, (where, line) in enumerate(_lines(part)):
        text = line.strip()
        if number == 0 and "\r" in text and not line.endswith("\n"):
            raise DataError(f"{part.name} {OLD_MAC}.")
        yield where, text


def _paragraphs(part: Part) -> Iterator[Row]:
    # A paragraph of one word is mostly a heading: it is joined to the next, since alone it could not be split in two.
    # The last one is joined to the one before.
    ready: tuple[str, str] | None = None
    lines: list[str] = []
    start = ""
    for where, line in plain_lines(part):
        start = start if lines else where
        if words := line.split():
            lines.append(" ".join(words))
        elif not is_word(text := joined(lines)):
            if ready:
                yield ready[0], {"text": ready[1]}
            ready, lines = (start, text), []
    last = joined(lines)
    if ready and is_word(last):
        ready, last = (ready[0], joined([ready[1], *lines])), ""
    if ready:
        yield ready[0], {"text": ready[1]}
    if last:
        yield start, {"text": last}


def _tsv(part: Part) -> Iterator[Row]:
    # In tab-separated values quotation marks are ordinary characters, and no field holds a tab or a line end (IANA).
    lines = ((where, line.rstrip("\n").removesuffix("\r")) for where, line in _lines(part))
    rows = ((where, line.split("\t")) for where, line in lines if line)
    where, header = next(rows, ("", []))
    check_header(where, header)
    for where, values in rows:
        row = _named(where, header, values)
        if any('""' in value[1:-1] and _QUOTED.fullmatch(value) for value in values):
            raise DataError(
                f"{where} has a field in quotation marks with doubled ones inside, as csv writes them; in tsv they are "
                "ordinary characters: write the file without quoting, or as csv or jsonl."
            )
        yield where, row


def _csv(part: Part) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    sign = "\t" if part.kind == "quoted_tsv" else ","
    rows = csv.reader((line for _, line in _lines(part)), strict=True, delimiter=sign)
    header: list[str] = []
    first = 1  # line at which a record begins; a quoted field may span several
    try:
        for values in rows:
            where, first = f"{part.name}:{first}", rows.line_num + 1
            if header and values:
                yield where, _named(where, header, values)
            elif values:
                header = values
                check_header(where, header)
    except csv.Error as error:
        own = {"unexpected end": "a quotation mark opens there and never closes", "new-line": "CR alone ends a line"}
        why = next((text for part_of, text in own.items() if part_of in str(error)), str(error))
        raise DataError(f"{part.name}:{first} is malformed csv ({why}); fix the file.") from None


def _named(where: str, header: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    if len(values) != len(header):
        raise DataError(f"{where} has {len(values)} columns and the header has {len(header)}; fix it.")
    row = dict(zip(header, values, strict=True))
    if len(row) < len(header) and any(value.strip() for name, value in zip(header, values, strict=True) if not name):
        raise DataError(f"{where} has a value in one of several columns without a name; expected a name for each.")
    return row
