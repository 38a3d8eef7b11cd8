"""What an input is cut into, and what readers of several formats need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ds.errors import DataError
from bridge_ds.reading import twice

__all__ = ["COMPRESSIONS", "FORMATS", "OLD_MAC", "Part", "Row", "check_header"]

Row = tuple[str, Any]
"""(location, such as `train.jsonl:17`; the row)."""

FORMATS = ("jsonl", "text", "csv", "tsv", "parquet")
"""Formats of files; all but parquet also with a further `.gz` or `.zst`."""
OLD_MAC = "holds line ends of an old Mac (CR alone); expected LF or CR LF: convert the file"
"""What is said of a file whose lines end so."""
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


def check_header(where: str, names: Sequence[str]) -> None:
    """Raises DataError unless the columns' names can be told apart."""
    if any("\r" in name.rstrip() for name in names):
        raise DataError(f"{where} {OLD_MAC}.")
    name = twice(name for name in names if name.strip())  # a spreadsheet may have empty columns at its end
    if name is not None:
        raise DataError(
            f"{where} has two columns named {name!r}, of which one would be lost; expected each name once; rename one."
        )
