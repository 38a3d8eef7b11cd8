"""Rows of benchmarks: from a local folder, or from the hub by `datasets`. Loading scripts are never run.

A local folder has, for each language, files of one of these names (the first that exists is taken; EXT: jsonl, csv,
tsv, parquet, and the first three also with .gz or .zst):

    SPLIT/LANGUAGE.EXT   LANGUAGE/SPLIT.EXT   LANGUAGE/SPLIT-*.EXT   LANGUAGE/SPLIT/*.EXT   data/SPLIT_LANGUAGE-*.EXT
    LANGUAGE.SPLIT.EXT
    LANGUAGE.EXT   data/LANGUAGE.EXT                                             (these two for the test split only)

LANGUAGE is the task's code, or that of the hub's repository. Where the rows of all languages are together, the files
are SPLIT.EXT, SPLIT-*.EXT or SPLIT/*.EXT, in the folder or in its folder data.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any

from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.part import Part, Row
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.data.packing.tables import load_dataset, numbered, parquet_file
from bridge_ds.errors import DataError
from bridge_ds.reading import is_macos, json_value, refuse_surrogates

__all__ = ["PARQUET", "RowSource", "class_names", "has_files", "local_languages", "rows"]

PARQUET = "refs/convert/parquet"
"""Revision that the hub converts repositories with a loading script to: CONFIG/SPLIT/*.parquet."""
_SPLIT = re.compile(r"(test|train|validation)([-_.].*)?")
_PART = re.compile(r"(test|train|validation)(_.+?)?-\d.*|.+-\d+-of-\d+")
"""Of a split in several files, as the hub names them."""
_OTHERS = (".train", ".dev", ".validation")
_ENDING = re.compile(r"(?P<stem>.+?)\.(?:(?:jsonl|csv|tsv)(?:\.gz|\.zst)?|parquet)$")
_PATTERNS = (
    "{split}/{name}.*", "{name}/{split}.*", "{name}/{split}-*", "{name}/{split}/*", "data/{split}_{name}-*",
    "{name}.{split}.*",
)  # fmt: skip
_TEST_ONLY = ("{name}.*", "data/{name}.*")
_TOGETHER = ("{split}.*", "{split}-*", "{split}/*", "data/{split}.*", "data/{split}-*")


@dataclass(frozen=True)
class RowSource:
    """One split of a benchmark in one language."""

    task: str
    """The task's name, for messages."""
    settings: str
    """Where its settings are, for messages: `evaluation.data.xnli`."""
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
    together: bool = False
    """Whether the rows of all languages are in the same files; all of them are read."""


def rows(source: RowSource) -> Iterator[Row]:
    """All rows, each with its file and line for messages.

    Raises:
        DataError: they cannot be loaded.
    """
    parts = _local_parts(source)
    if parts:
        return (row for part in parts for row in part_rows(part))
    return numbered(_data_set(source), f"{source.source} ({source.language}, {source.split})")


@functools.lru_cache(maxsize=32)
def class_names(source: RowSource, column: str) -> tuple[str, ...]:
    """Names of the numbers in a ClassLabel column of `datasets`, which its parquet files have too; else none.

    Args:
        source: which rows.
        column: a dot leads into a nested one.

    Raises:
        DataError: as :func:`rows`.
    """
    parts = _local_parts(source)
    try:
        if parts:
            described = parquet_file(Path(parts[0].name)).schema_arrow.metadata if parts[0].kind == "parquet" else None
            found = json_value((described or {})[b"huggingface"])["info"]["features"]
        else:
            found = _data_set(source).features.to_dict()
        for part in column.split("."):
            found = found[part]
        return tuple(map(str, found["names"])) if found["_type"] == "ClassLabel" else ()
    except (KeyError, TypeError, ValueError):  # nothing is said of the column
        return ()


def local_languages(source: str) -> list[str] | None:
    """Languages that a local folder has test files for, sorted; none = not such a folder, so they are unknown.

    Raises:
        DataError: a name is not UTF-8, or files have the names of splits and not of languages.
    """
    folder = Path(source)
    if not folder.is_dir():
        return None
    content = [path for path in folder.iterdir() if not is_macos(path.name)]
    stems = {found["stem"] for path in content if path.is_file() and (found := _ENDING.match(path.name))}
    # en.train and en.dev are other splits of en.test.
    tested = {stem.removesuffix(".test") for stem in stems if stem.endswith(".test")}
    names = tested | {stem for stem in stems if stem.rpartition(".")[0] not in tested and not stem.endswith(_OTHERS)}
    for sub in filter(Path.is_dir, content):
        inside = [
            found["stem"] for path in sub.iterdir() if (found := _ENDING.match(path.name)) and not is_macos(path.name)
        ]
        if sub.name == "test":
            names |= set(inside)
        elif sub.name == "data":
            split = [re.fullmatch(r"test_(.+?)-\d.*", stem) for stem in inside]
            names |= {found[1] for found in split if found} or {stem for stem in inside if not _PART.fullmatch(stem)}
        elif _local_files(folder, [sub.name], "test"):
            names.add(sub.name)
    for name in names:
        try:
            refuse_surrogates(name)
        except ValueError:
            raise DataError(f"{folder} has a file for the language {name!r}, which is not UTF-8; rename it.") from None
    if (splits := sorted(filter(_SPLIT.fullmatch, names))) and not _is_repository(folder):
        raise DataError(
            f"{folder} has {splits[0]}.*, which names no language; expected LANGUAGE.csv for the test and "
            "train/en.csv to pack (or other endings); rename it, or name the column of the language in fields.language "
            "of a task of your own."
        )
    names -= set(splits)
    return sorted(names) if names or not _is_repository(folder) else None


def has_files(source: RowSource) -> bool:
    """Whether a local folder has files of this split and language.

    Raises:
        DataError: it has several.
    """
    folder, names = Path(source.source), [source.language, source.config or source.language]
    return folder.is_dir() and bool(_local_files(folder, names, source.split))


def _local_files(folder: Path, names: Iterable[str], split: str, patterns: tuple[str, ...] = _PATTERNS) -> list[Path]:
    for pattern in (*patterns, *(_TEST_ONLY if split == "test" and patterns is _PATTERNS else ())):
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


def _local_parts(source: RowSource) -> list[Part]:
    """The files of a local folder; none where `datasets` is to read it, or the hub."""
    folder = Path(source.source)
    if not folder.is_dir():
        return []
    names = [source.language, source.config or source.language]
    found = _local_files(folder, names, source.split, _TOGETHER if source.together else _PATTERNS)
    if not found and not _is_repository(folder):
        example = f"{source.language}.jsonl" if source.split == "test" else f"{source.split}/{source.language}.jsonl"
        example = f"{source.split}.jsonl" if source.together else example
        raise DataError(
            f"{folder} has no {source.split} file for the language {source.language!r} of {source.task}; expected "
            f"{example} or csv, tsv, parquet; add it, or leave the language out."
        )
    parts = file_parts(found)
    return [replace(part, kind="quoted_tsv") if source.quoted_tsv and part.kind == "tsv" else part for part in parts]


def _data_set(source: RowSource) -> Any:
    """What `datasets` loads."""
    config = None if source.together else source.config
    if Path(source.source).is_dir():
        options = {"config": config, "split": source.hub_split, "revision": None, "stream": ""}
        return load_dataset(source.source, options)
    if Path(source.source).is_file():
        raise DataError(
            f"{source.settings}.source is the file {source.source}; expected a folder with a file a language, or "
            "with test.csv and train.csv that have a column for it, or a hub id; name the folder."
        )
    from datasets import load_dataset as load

    try:
        if source.files:
            revision = f"@{source.revision}" if source.revision else ""
            url = f"hf://datasets/{source.source}{revision}/{source.files}"
            kind = "parquet" if source.files.endswith("parquet") else "json"
            return load(kind, data_files={source.split: url}, split=source.split)
        return load(source.source, config, split=source.hub_split, revision=source.revision)
    except Exception as error:  # datasets, the hub client and its transport each have their own errors
        why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(
            f"{source.source} ({source.language}, {source.split}) could not be loaded ({why}); expected the hub, or a "
            "copy in the cache of datasets; run it once where there is network, with the same HF_HOME, or name a "
            f"folder of the data ({source.settings}.source in a recipe or --set; pack: --dataset; probe: --source)."
        ) from error
