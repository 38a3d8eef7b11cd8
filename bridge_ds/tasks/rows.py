"""Where a benchmark's rows come from: a local folder, or the hub by `datasets`. Loading scripts are never run.

A local folder holds, for each language, the first of these that is there (EXT: jsonl, csv, tsv, parquet, and the first
three also with .gz or .zst):

    SPLIT/LANGUAGE.EXT   LANGUAGE/SPLIT.EXT   LANGUAGE/SPLIT-*.EXT   LANGUAGE/SPLIT/*.EXT   data/SPLIT_LANGUAGE-*.EXT
    LANGUAGE.EXT   data/LANGUAGE.EXT                                             (these two for the test split only)

LANGUAGE is the task's code, or the name that the hub's repository has for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.data.packing.formats import Row, load_dataset, part_rows
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.errors import DataError
from bridge_ds.reading import is_macos

__all__ = ["PARQUET", "Record", "RowSource", "local_languages", "rows"]

PARQUET = "refs/convert/parquet"
"""Revision that the hub makes of repositories with a loading script: CONFIG/SPLIT/*.parquet."""
_ENDING = re.compile(r"(?P<stem>.+?)\.(?:(?:jsonl|csv|tsv)(?:\.gz|\.zst)?|parquet)$")
_PATTERNS = {
    "train": ("{split}/{name}.*", "{name}/{split}.*", "{name}/{split}-*", "{name}/{split}/*", "data/{split}_{name}-*"),
    "test": (
        "{split}/{name}.*", "{name}/{split}.*", "{name}/{split}-*", "{name}/{split}/*", "data/{split}_{name}-*",
        "{name}.*", "data/{name}.*",
    ),
}  # fmt: skip


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
    """The hub's name of the configuration; none = it has but one."""
    hub_split: str
    """The hub's name of the split."""
    files: str = ""
    """Files in the hub's repository, a pattern, where they are read as files."""


class Record:
    """One row, read by the task's names of its fields."""

    def __init__(self, task: str, place: str, values: Any, columns: dict[str, str]) -> None:
        """Args:
        columns: field of the task -> column of the data.
        """
        if not isinstance(values, dict):
            raise DataError(f"{place} is a {type(values).__name__}; expected named columns; mend the data of {task}.")
        self.task, self.place, self.values, self.columns = task, place, values, columns

    def value(self, field: str) -> Any:
        """What the field's column holds.

        Raises:
            DataError: there is no such column, or it is empty here.
        """
        column = self.columns[field]
        if self.values.get(column) is None:
            found = "an empty" if column in self.values else "no"
            raise DataError(
                f"{self.place} has {found} column {column!r}; it has {', '.join(map(str, self.values))}; expected the "
                f"{field} of {self.task}: name its column in evaluation.data.{self.task}.fields."
            )
        return self.values[column]

    def has(self, field: str) -> bool:
        """Whether the row has the field's column."""
        return self.values.get(self.columns[field]) is not None

    def text(self, field: str) -> str:
        """The field as one text without white space at its ends.

        Raises:
            DataError: as :meth:`value`, or it holds no text.
        """
        value = self.value(field)
        if not isinstance(value, str):
            raise DataError(
                f"{self.place} has {type(value).__name__} in column {self.columns[field]!r}; expected text, the "
                f"{field} of {self.task}; mend the data or evaluation.data.{self.task}.fields."
            )
        return value.strip()

    def label(self, field: str, labels: tuple[str, ...], first: int = 0) -> int:
        """The field as a place in `labels`: a whole number counted from `first`, or a label's text.

        Raises:
            DataError: as :meth:`value`, or outside of the labels.
        """
        value = self.value(field)
        text = str(value).strip()
        names = [label.casefold() for label in labels]
        if text.casefold() in names:
            return names.index(text.casefold())
        try:
            number = float(text)
        except ValueError:
            number = -1.0
        if not number.is_integer() or not 0 <= number - first < len(labels):
            named = ", ".join(f"{place} ({label})" for place, label in enumerate(labels, first))
            raise DataError(
                f"{self.place} has the label {value!r}; expected one of {named}; mend the data of {self.task}."
            )
        return int(number) - first


def rows(place: RowSource) -> Iterator[Row]:
    """All rows, each with its place for messages.

    Raises:
        DataError: they cannot be had.
    """
    folder = Path(place.source)
    if not folder.is_dir():
        return _hub_rows(place)
    found = _local_files(folder, [place.language, place.config or place.language], place.split)
    if found:
        return (row for part in file_parts(found) for row in part_rows(part))
    if _is_repository(folder):
        options = {"config": place.config, "split": place.hub_split, "revision": None, "stream": ""}
        return _numbered(load_dataset(place.source, options), f"{place.source} ({place.language}, {place.split})")
    example = f"{place.language}.jsonl" if place.split == "test" else f"{place.split}/{place.language}.jsonl"
    raise DataError(
        f"{folder} has no {place.split} file for the language {place.language!r} of {place.task}; expected {example} "
        "or csv, tsv, parquet; add it, or leave the language out."
    )


def local_languages(source: str) -> list[str] | None:
    """Names for which a local folder has test files, sorted; none = it is no such folder, and who knows."""
    folder = Path(source)
    if not folder.is_dir():
        return None
    content = [path for path in folder.iterdir() if not is_macos(path.name)]
    names = {found["stem"] for path in content if path.is_file() and (found := _ENDING.match(path.name))}
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
    return sorted(names) if names or not _is_repository(folder) else None


def _local_files(folder: Path, names: Iterable[str], split: str) -> list[Path]:
    for pattern in _PATTERNS[split]:
        for name in names:
            found = [
                path
                for path in sorted(folder.glob(pattern.format(name=name, split=split)))
                if _ENDING.match(path.name) and not is_macos(path.name)
            ]
            if len(found) > 1 and pattern.endswith(".*"):
                raise DataError(
                    f"{folder} has both {found[0].name} and {found[1].name}, so that each sample would count twice; "
                    "expected one of them; remove the other."
                )
            if found:
                return found
    return []


def _is_repository(folder: Path) -> bool:
    """Whether `datasets` knows more about a folder than we do: a copy of a hub repository, or one that it saved."""
    return any((folder / name).is_file() for name in ("README.md", "state.json", "dataset_dict.json"))


def _hub_rows(place: RowSource) -> Iterator[Row]:
    from datasets import load_dataset as load

    where = f"{place.source} ({place.language}, {place.split})"
    try:
        if place.files:
            revision = f"@{place.revision}" if place.revision else ""
            url = f"hf://datasets/{place.source}{revision}/{place.files}"
            kind = "parquet" if place.files.endswith("parquet") else "json"
            found = load(kind, data_files={place.split: url}, split=place.split)
        else:
            found = load(place.source, place.config, split=place.hub_split, revision=place.revision)
    except Exception as error:  # datasets, the hub client and its transport each have errors of their own
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{where} could not be loaded ({why}); expected the hub, or a copy in the cache of datasets; run it once "
            f"where there is network, with the same HF_HOME, or set evaluation.data.{place.task}.source to a folder."
        ) from error
    return _numbered(found, where)


def _numbered(found: Iterable[Any], where: str) -> Iterator[Row]:
    for number, row in enumerate(found):
        yield f"{where} row {number}", row
