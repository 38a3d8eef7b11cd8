"""Reading the rows of parquet files and of `datasets`, each with its location."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from bridge_ds.data.packing.part import Part, Row, check_header
from bridge_ds.errors import DataError

__all__ = ["dataset_rows", "load_dataset", "numbered", "parquet_file", "parquet_rows"]

_VALIDATED = 10_000
"""Rows of a data set that are validated at a time."""
_DEFAULT_SPLIT = "train"


def parquet_rows(part: Part, fields: set[str]) -> Iterator[Row]:
    """Of row groups; arguments and errors as of :func:`.formats.part_rows`."""
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
    check_header(f"{path}", names)
    if min(groups, default=0) < 0 or sum(groups) != file.metadata.num_rows:
        raise DataError(
            f"{path} says that it has {file.metadata.num_rows} rows, and its row groups have {groups}; copy it again."
        )
    return file


def dataset_rows(part: Part, fields: set[str]) -> Iterator[Row]:
    """Of a split; arguments and errors as of :func:`.formats.part_rows`."""
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
