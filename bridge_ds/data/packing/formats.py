"""Reading the rows of an input: JSON lines, plain text, csv, parquet, `datasets`; each row with its location."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import zlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bridge_ds.data.text.words import joined, starts
from bridge_ds.errors import DataError
from bridge_ds.reading import BOM, NotText, decoded, json_value, twice

__all__ = [
    "COMPRESSIONS",
    "FORMATS",
    "Part",
    "Row",
    "load_dataset",
    "numbered",
    "parquet_file",
    "part_rows",
    "plain_lines",
]

_QUOTED = re.compile(r'"(?:[^"]|"")*"')
Row = tuple[str, Any]
"""(location, such as `train.jsonl:17`; the row)."""

FORMATS = ("jsonl", "text", "csv", "tsv", "parquet")
"""Formats of files; all but parquet also with a further `.gz` or `.zst`."""
_VALIDATED = 10_000
"""Rows of a data set that are validated at a time."""
_DEFAULT_SPLIT = "train"
_OLD_MAC = "holds line ends of an old Mac (CR alone); expected LF or CR LF: convert the file"
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
"""Endings of compressed files."""


@dataclass(frozen=True)
class Part:
    """A piece of the input that is read from its beginning to its end by one process."""

    kind: str
    """One of FORMATS, `dataset`, or `quoted_tsv` (quotation marks as in csv, which pandas writes)."""
    name: str
    """Path of the file, or the id of the data set."""
    start: int = 0
    """First byte of a jsonl file, first row group of parquet, first row of a data set."""
    stop: int | None = None
    """One after the last; None = to the end."""
    weight: int = 0
    """Bytes (rows for a data set), to show progress and to size a shuffle."""
    options: tuple[tuple[str, str | None], ...] = ()
    """For a data set: config, split, revision, and `stream`."""


def part_rows(part: Part, fields: Collection[str] = ()) -> Iterator[Row]:
    """The rows of a part, in order.

    Args:
        part: which.
        fields: that are needed; parquet and data sets then read and decode no others, if they have all of these.

    Raises:
        DataError: it is missing, unreadable, not UTF-8, or holds a line that is no row.
    """
    if part.kind in ("parquet", "dataset"):
        yield from (_parquet if part.kind == "parquet" else _dataset)(part, set(fields))
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
            raise DataError(f"{part.name} {_OLD_MAC}.")
        yield where, text


def _paragraphs(part: Part) -> Iterator[Row]:
    # A paragraph of one word is mostly a heading: it is joined to the next, since alone it could not be split in two.
    # The last one is joined to the one before.
    ready: tuple[str, list[str]] | None = None
    lines: list[str] = []
    start = ""
    for where, line in plain_lines(part):
        start = start if lines else where
        if words := line.split():
            lines.append(" ".join(words))
        elif _splits(lines):
            if ready:
                yield ready[0], {"text": joined(ready[1])}
            ready, lines = (start, lines), []
    if ready and not _splits(lines):
        ready, lines = (ready[0], [*ready[1], *lines]), []
    for begin, paragraph in filter(None, (ready, (start, lines) if lines else None)):
        yield begin, {"text": joined(paragraph)}


def _splits(lines: Sequence[str]) -> bool:
    """Whether they are more than one word."""
    return len(starts(joined(lines))) > 1


def _tsv(part: Part) -> Iterator[Row]:
    # In tab-separated values quotation marks are ordinary characters, and no field holds a tab or a line end (IANA).
    lines = ((where, line.rstrip("\n").removesuffix("\r")) for where, line in _lines(part))
    rows = ((where, line.split("\t")) for where, line in lines if line)
    where, header = next(rows, ("", []))
    _check_header(where, header)
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
                _check_header(where, header)
    except csv.Error as error:
        own = {"unexpected end": "a quotation mark opens there and never closes", "new-line": "CR alone ends a line"}
        why = next((text for part_of, text in own.items() if part_of in str(error)), str(error))
        raise DataError(f"{part.name}:{first} is malformed csv ({why}); fix the file.") from None


def _check_header(where: str, names: Sequence[str]) -> None:
    if any("\r" in name.rstrip() for name in names):
        raise DataError(f"{where} {_OLD_MAC}.")
    name = twice(name for name in names if name.strip())  # a spreadsheet may have empty columns at its end
    if name is not None:
        raise DataError(
            f"{where} has two columns named {name!r}, of which one would be lost; expected each name once; rename one."
        )


def _named(where: str, header: Sequence[str], values: Sequence[str]) -> dict[str, str]:
    if len(values) != len(header):
        raise DataError(f"{where} has {len(values)} columns and the header has {len(header)}; fix it.")
    row = dict(zip(header, values, strict=True))
    if len(row) < len(header) and any(value.strip() for name, value in zip(header, values, strict=True) if not name):
        raise DataError(f"{where} has a value in one of several columns without a name; expected a name for each.")
    return row


def _parquet(part: Part, fields: set[str]) -> Iterator[Row]:
    import pyarrow

    file = parquet_file(Path(part.name))
    columns = sorted(fields) if fields and fields <= set(file.schema_arrow.names) else None
    for group in range(part.start, part.stop or file.num_row_groups):
        number = 0
        try:
            for batch in file.iter_batches(batch_size=1024, row_groups=[group], columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{part.name} row group {group} row {number}", row
            wanted = file.metadata.row_group(group).num_rows
            if number != wanted:
                raise ValueError(f"it has {number} rows and says that they are {wanted}")
        # Values that Python cannot hold (text that is not UTF-8, dates after the year 9999) are errors of their own.
        except (OSError, ValueError, OverflowError, IndexError, pyarrow.ArrowException) as error:
            raise DataError(
                f"{part.name} cannot be read in row group {group} after row {number} ({_first_line(error)}); copy it "
                "again, or write it without such values."
            ) from None


def parquet_file(path: Path) -> Any:
    """An open parquet file.

    Raises:
        DataError: it is missing or is none.
    """
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
        names = file.schema_arrow.names
        groups = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path} cannot be read as parquet ({_first_line(error)}); check the file.") from None
    _check_header(f"{path}", names)
    if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
        raise DataError(
            f"{path} says that it has {file.metadata.num_rows} rows, and its row groups have {groups}; copy it again."
        )
    return file


def _dataset(part: Part, fields: set[str]) -> Iterator[Row]:
    rows = load_dataset(part.name, dict(part.options))
    # Audio and images are decoded where they are read, by packages that need not be there.
    if fields and fields <= set(rows.column_names or ()):
        rows = rows.select_columns(sorted(fields))
    if part.stop is not None:
        if len(rows) < part.stop:
            raise DataError(f"the data set {part.name!r} has {len(rows)} rows now and had {part.stop}; start again.")
        rows = rows.select(range(part.start, part.stop))
    yield from numbered(rows, f"{part.name}[{dict(part.options)['split']}]", part.start)


def numbered(rows: Iterable[Any], where: str, start: int = 0) -> Iterator[Row]:
    """The rows of a split that `datasets` has loaded, from the number `start` on.

    Raises:
        DataError: one cannot be had: a damaged file, or a stream that ends early.
    """
    iterator = _validated(rows)
    for number in itertools.count(start):
        try:
            row = dict(next(iterator))
        except StopIteration:
            return
        except Exception as error:  # datasets, its file formats and its transport each have their own errors
            raise DataError(
                f"{where} row {number} cannot be read ({_first_line(error)}); copy the data set again, or choose its "
                "text fields."
            ) from None
        yield f"{where} row {number}", row


def _validated(rows: Any) -> Iterator[Any]:
    # pyarrow reads wherever a damaged offset leads, outside its memory too, unless the table was validated.
    if not hasattr(rows, "select"):  # a stream
        yield from rows
        return
    for start in range(0, len(rows), _VALIDATED):
        piece = rows.select(range(start, min(start + _VALIDATED, len(rows))))
        piece.data.validate(full=True)
        yield from piece


def load_dataset(name: str, options: dict[str, str | None]) -> Any:
    """A split of a `datasets` id or folder; `options` are those of a :class:`Part`.

    Raises:
        DataError: it cannot be loaded.
    """
    import datasets

    split = options["split"]
    try:
        if any((Path(name) / mark).is_file() for mark in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            if isinstance(saved, datasets.DatasetDict):
                return saved[split]
            if split not in (_DEFAULT_SPLIT, str(saved.split)):
                raise ValueError(f"it has no split {split!r}")
            return saved
        return datasets.load_dataset(
            name, options["config"], split=split, revision=options["revision"], streaming=bool(options["stream"])
        )
    except Exception as error:
        raise DataError(
            f"the data set {name!r} could not be loaded ({_first_line(error)}); expected a hub id or a folder that "
            "`datasets` reads: check --dataset, --config, --split and --revision."
        ) from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")[:300]
