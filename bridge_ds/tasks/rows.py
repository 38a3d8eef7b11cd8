"""Rows of benchmarks: from a local folder, or from the hub by `datasets`. Loading scripts are never run.

A local folder has, for each language, files of one of these names (the first that exists is taken; EXT: jsonl, csv,
tsv, parquet, and the first three also with .gz or .zst):

    SPLIT/LANGUAGE.EXT   LANGUAGE/SPLIT.EXT   LANGUAGE/SPLIT-*.EXT   LANGUAGE/SPLIT/*.EXT   data/SPLIT_LANGUAGE-*.EXT
    LANGUAGE.SPLIT.EXT
    LANGUAGE.EXT   data/LANGUAGE.EXT                                             (these two for the test split only)

LANGUAGE is the task's code, or that of the hub's repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from bridge_ds.data.packing.formats import Row, load_dataset, numbered, part_rows
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.errors import DataError
from bridge_ds.reading import is_macos, refuse_surrogates

__all__ = ["PARQUET", "Record", "RowSource", "local_languages", "rows"]

PARQUET = "refs/convert/parquet"
"""Revision that the hub converts repositories with a loading script to: CONFIG/SPLIT/*.parquet."""
_ENDING = re.compile(r"(?P<stem>.+?)\.(?:(?:jsonl|csv|tsv)(?:\.gz|\.zst)?|parquet)$")
_PATTERNS = (
    "{split}/{name}.*", "{name}/{split}.*", "{name}/{split}-*", "{name}/{split}/*", "data/{split}_{name}-*",
    "{name}.{split}.*",
)  # fmt: skip
_TEST_ONLY = ("{name}.*", "data/{name}.*")


@dataclass(frozen=True)
class RowSource:
    """One split of a benchmark in one language."""

    task: str
    """The task's name, for messages."""
    source: str
    """Hub id or local folder."""
    revision: str | None
    """Hub revision."""
    language: str
    """The task's language code."""
    split: str
    """`test` or `train`."""
    config: str | None
    """The hub's name of the configuration; none = there is only one."""
    hub_split: str
    """The hub's name of the split."""
    files: str = ""
    """Pattern of files in the hub's repository, where these are read directly."""
    quoted_tsv: bool = False
    """Whether local tsv files have quotation marks as csv has them."""


class Record:
    """One row, read by the task's names of fields."""

    def __init__(self, task: str, where: str, values: Any, columns: dict[str, str]) -> None:
        """Args:
        where: file and line, for messages.
        columns: field of the task -> column of the data.
        """
        if not isinstance(values, dict):
            raise DataError(f"{where} is a {type(values).__name__}; expected named columns; correct {task}'s data.")
        self.task, self.where, self.values, self.columns = task, where, values, columns

    def value(self, field: str) -> Any:
        """The value of the field's column.

        Raises:
            DataError: there is no such column, or it is empty.
        """
        column = self.columns[field]
        if self.values.get(column) is None:
            found = "an empty" if column in self.values else "no"
            raise DataError(
                f"{self.where} has {found} column {column!r}; it has {', '.join(map(str, self.values))}; expected the "
                f"{field} of {self.task}: name its column in evaluation.data.{self.task}.fields."
            )
        return self.values[column]

    def has(self, field: str) -> bool:
        """Whether the row has the field's column."""
        return self.values.get(self.columns[field]) is not None

    def text(self, field: str) -> str:
        """The field as text without leading and trailing white space.

        Raises:
            DataError: as :meth:`value`, or it is no text.
        """
        value = self.value(field)
        if not isinstance(value, str):
            raise DataError(
                f"{self.where} has {type(value).__name__} in column {self.columns[field]!r}; expected text, the "
                f"{field} of {self.task}; correct the data or evaluation.data.{self.task}.fields."
            )
        return value.strip()

    def label(self, field: str, labels: tuple[str, ...], first: int = 0) -> int:
        """The field as an index into `labels`: a whole number counted from `first`, or a label's text.

        Raises:
            DataError: as :meth:`value`, or not one of the labels.
        """
        value = self.value(field)
        text = str(value).strip() if isinstance(value, str | int | float) else ""
        names = [label.casefold() for label in labels]
        if text.casefold() in names:
            return names.index(text.casefold())
        number = float(text) if re.fullmatch(r"[0-9]{1,3}(\.0*)?", text) else -1.0
        if isinstance(value, bool) or not 0 <= number - first < len(labels):
            named = ", ".join(f"{index} ({label})" for index, label in enumerate(labels, first))
            raise DataError(
                f"{self.where} has the label {repr(value)[:80]}; expected one of {named}; correct the data of "
                f"{self.task}."
            )
        return int(number) - first


def rows(source: RowSource) -> Iterator[Row]:
    """All rows, each with its file and line for messages.

    Raises:
        DataError: they cannot be loaded.
    """
    folder = Path(source.source)
    if not folder.is_dir():
        return _hub_rows(source)
    found = _local_files(folder, [source.language, source.config or source.language], source.split)
    if found:
        parts = file_parts(found)
        if source.quoted_tsv:
            parts = [replace(part, kind="quoted_tsv") if part.kind == "tsv" else part for part in parts]
        return (row for part in parts for row in part_rows(part))
    if _is_repository(folder):
        options = {"config": source.config, "split": source.hub_split, "revision": None, "stream": ""}
        return numbered(load_dataset(source.source, options), f"{source.source} ({source.language}, {source.split})")
    example = f"{source.language}.jsonl" if source.split == "test" else f"{source.split}/{source.language}.jsonl"
    raise DataError(
        f"{folder} has no {source.split} file for the language {source.language!r} of {source.task}; expected "
        f"{example} or csv, tsv, parquet; add it, or leave the language out."
    )


def local_languages(source: str) -> list[str] | None:
    """Languages that a local folder has test files for, sorted; none = not such a folder, so they are unknown.

    Raises:
        DataError: a name is not UTF-8.
    """
    folder = Path(source)
    if not folder.is_dir():
        return None
    content = [path for path in folder.iterdir() if not is_macos(path.name)]
    stems = {found["stem"] for path in content if path.is_file() and (found := _ENDING.match(path.name))}
    # en.train and en.dev are other splits of en.test.
    tested = {stem.removesuffix(".test") for stem in stems if stem.endswith(".test")}
    names = tested | {stem for stem in stems if stem.rpartition(".")[0] not in tested}
    for sub in filter(Path.is_dir, content):
        inside = [
            found["stem"] for path in sub.iterdir() if (found := _ENDING.match(path.name)) and not is_macos(path.name)
        ]
        if sub.name == "test":
            names |= set(inside)
        elif sub.name == "data":
            split = [re.fullmatch(r"test_(.+?)-\d.*", stem) for stem in inside]
            names |= {found[1] for found in split if found} or {stem for stem in inside if "-" not in stem}
        elif _local_files(folder, [sub.name], "test"):
            names.add(sub.name)
    for name in names:
        try:
            refuse_surrogates(name)
        except ValueError:
            raise DataError(f"{folder} has a file for the language {name!r}, which is not UTF-8; rename it.") from None
    return sorted(names) if names or not _is_repository(folder) else None


def _local_files(folder: Path, names: Iterable[str], split: str) -> list[Path]:
    for pattern in (*_PATTERNS, *(_TEST_ONLY if split == "test" else ())):
        for name in names:
            found = [
                path
                for path in sorted(folder.glob(pattern.format(name=escape(name), split=split)))
                if _ENDING.match(path.name) and not is_macos(path.name)
            ]
            if len(found) > 1 and pattern.endswith(".*"):
                raise DataError(
                    f"{folder} has both {found[0].name} and {found[1].name}, which would count each sample twice; "
                    "expected one of them; remove the other."
                )
            if found:
                return found
    return []


def _is_repository(folder: Path) -> bool:
    """Whether `datasets` reads the folder: a copy of a hub repository, or a data set that it saved."""
    return any((folder / name).is_file() for name in ("README.md", "state.json", "dataset_dict.json"))


def _hub_rows(source: RowSource) -> Iterator[Row]:
    from datasets import load_dataset as load

    where = f"{source.source} ({source.language}, {source.split})"
    try:
        if source.files:
            revision = f"@{source.revision}" if source.revision else ""
            url = f"hf://datasets/{source.source}{revision}/{source.files}"
            kind = "parquet" if source.files.endswith("parquet") else "json"
            found = load(kind, data_files={source.split: url}, split=source.split)
        else:
            found = load(source.source, source.config, split=source.hub_split, revision=source.revision)
    except Exception as error:  # datasets, the hub client and its transport each have their own errors
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{where} could not be loaded ({why}); expected the hub, or a copy in the cache of datasets; run it once "
            f"where there is network, with the same HF_HOME, or set evaluation.data.{source.task}.source to a folder."
        ) from error
    return numbered(found, where)
