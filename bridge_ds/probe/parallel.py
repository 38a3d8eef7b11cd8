"""The same sentences in several languages: from a benchmark that is parallel, a folder of text files, or one table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.config.build import offered
from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.reading import NotText, decoded, is_macos
from bridge_ds.report.languages import find_language
from bridge_ds.tasks import TableTask, find_tasks
from bridge_ds.tasks.flores import find_variety

__all__ = ["LEAST", "PARALLEL_TASKS", "Parallel", "read_parallel"]

LEAST = 20
"""Fewest sentences: of fewer, retrieval says nothing."""


@dataclass(frozen=True)
class ParallelTask:
    """How the sentences of a benchmark are found."""

    text: str
    """Field of the text."""
    number: str
    """Field that is the same for a text in every language."""
    splits: tuple[tuple[str, str], ...]
    """Splits to read: in local files, on the hub. The next is read where one has too few."""


PARALLEL_TASKS = {
    "sib200": ParallelTask("text", "number", (("train", "train"), ("dev", "validation"))),
    "belebele": ParallelTask("passage", "link", (("test", "test"),)),
}
"""Test texts of `sib200` are left out: runs are scored on them. Belebele has no others."""


@dataclass(frozen=True)
class Parallel:
    """The same sentences in every language."""

    name: str
    """For messages."""
    english: str
    """Code of English, as the data writes it."""
    texts: dict[str, list[str]]
    """Code -> sentences; English first."""


def read_parallel(
    data: str, count: int, languages: Sequence[str] = (), given: Mapping[str, TaskDataConfig] | None = None
) -> Parallel:
    """Read `count` sentences that every language has, evenly spread over the data, for neighbors are often of one
    article.

    Args:
        data: a name in :data:`PARALLEL_TASKS`; a folder of LANGUAGE.txt whose lines are parallel; or a table (tsv, csv,
            jsonl, parquet) with a column for each language.
        count: most sentences.
        languages: codes as the data writes them; English is read anyway. Empty = all.
        given: `evaluation.data`: where a benchmark's rows are.

    Raises:
        ConfigError: no such data, or a language that it lacks.
        DataError: it cannot be read, has no English, or fewer than :data:`LEAST` sentences that all languages have.
    """
    path = Path(data)
    if data in PARALLEL_TASKS:
        name, found = _of_task(data, count, languages, given or {})
    elif path.is_dir():
        name, found = data, _of_folder(path, languages)
    elif path.is_file():
        name, found = data, _of_table(path, languages)
    else:
        raise ConfigError(
            f"--data is {data!r}; expected {' or '.join(PARALLEL_TASKS)}, a folder of LANGUAGE.txt, or a table with a "
            "column for each language; correct it."
        )
    english = _english(list(found), name)
    keys = [key for key in found[english] if all(key in texts for texts in found.values())]
    if len(keys) < LEAST:
        fewest = min(found, key=lambda code: len(found[code].keys() & found[english].keys()))
        raise DataError(
            f"{name} has {len(keys)} sentences that all {len(found)} languages have (fewest: {fewest}); expected "
            f"{LEAST} or more; leave languages out with --languages, or add sentences."
        )
    count = min(count, len(keys))
    kept = [keys[number * len(keys) // count] for number in range(count)]
    codes = [english, *(code for code in found if code != english)]
    return Parallel(name, english, {code: [found[code][key] for key in kept] for code in codes})


def _english(codes: Sequence[str], name: str) -> str:
    """The code of English."""
    found = next((code for code in codes if find_language(code).group == "English"), None)
    if found is None:
        shown = ", ".join(codes[:8])
        raise DataError(
            f"{name} has the languages {shown or '(none)'}{', ...' if len(codes) > 8 else ''}; expected English among "
            "them (en, eng or eng_Latn); add it."
        )
    return found


def _chosen(there: Sequence[str], languages: Sequence[str], name: str) -> list[str]:
    """The languages to read, English first."""
    languages = [code if code in there else find_variety(code, there) or code for code in languages]
    missing = [code for code in languages if code not in there]
    if missing:
        raise ConfigError(
            f"--languages names {missing[0]!r}, which {name} does not have; expected some of "
            f"{offered(missing[0], there)}"
        )
    english = _english(there, name)
    return list(dict.fromkeys([english, *(languages or there)]))


def _of_task(
    name: str, count: int, languages: Sequence[str], given: Mapping[str, TaskDataConfig]
) -> tuple[str, dict[str, dict[Any, str]]]:
    (task,) = find_tasks([name], {name: given[name]} if name in given else None)
    assert isinstance(task, TableTask)
    how = PARALLEL_TASKS[name]
    found: dict[str, dict[Any, str]] = {}
    for code in _chosen(task.languages, [task.code_of(each) for each in languages], f"{name} ({task.source})"):
        texts: dict[str, str] = {}
        for split, hub_split in how.splits:
            source = dataclasses.replace(task.row_source(code, split), hub_split=hub_split)
            for row in task.records(source):
                texts.setdefault(str(row.value(how.number)), row.text(how.text))
            if len(texts) >= count:
                break
        found[code] = {key: text for key, text in texts.items() if text}
    return f"{name} ({task.source})", found


def _of_folder(folder: Path, languages: Sequence[str]) -> dict[str, dict[Any, str]]:
    files = {path.stem: path for path in sorted(folder.glob("*.txt")) if not is_macos(path.name)}
    if not files:
        raise DataError(
            f"{folder} has no file LANGUAGE.txt; expected one for each language; write them, or, for a copy of a "
            f"benchmark, give --data {next(iter(PARALLEL_TASKS))} --source {folder}."
        )
    found: dict[str, dict[Any, str]] = {}
    counts: dict[str, int] = {}
    for code in _chosen(list(files), languages, str(folder)):
        try:
            lines = decoded(files[code].read_bytes()).replace("\r\n", "\n").removesuffix("\n").split("\n")
        except NotText as error:
            raise DataError(f"{files[code]} {error}.") from None
        except OSError as error:
            raise DataError(f"{files[code]} cannot be read ({error.strerror}); check the file.") from None
        counts[code] = len(lines)
        found[code] = {number: line.strip() for number, line in enumerate(lines) if line.strip()}
    english, *others = counts
    for code in others:
        if counts[code] != counts[english]:
            raise DataError(
                f"{files[code]} has {counts[code]} lines and {files[english].name} {counts[english]}; expected line N "
                "to be the same sentence in every language; leave an empty line where there is no translation."
            )
    return found


def _of_table(path: Path, languages: Sequence[str]) -> dict[str, dict[Any, str]]:
    rows = [row for part in file_parts([path]) for row in part_rows(part)]
    columns: dict[str, None] = {}  # a line of jsonl leaves out what it lacks
    for where, row in rows:
        if not isinstance(row, dict):
            raise DataError(f"{where} is a {type(row).__name__}; expected a column for each language; correct it.")
        columns |= dict.fromkeys(name for name in row if name)
    if not rows:
        raise DataError(f"{path} has no rows; expected a sentence in each, in a column for each language; add some.")
    found: dict[str, dict[Any, str]] = {code: {} for code in _chosen(list(columns), languages, str(path))}
    for number, (where, row) in enumerate(rows):
        for code, texts in found.items():
            value = row.get(code)
            if not isinstance(value, str | None):
                raise DataError(
                    f"{where} has {type(value).__name__} in the column {code!r}; expected a sentence; name the columns "
                    "that are languages with --languages."
                )
            if value and value.strip():
                texts[number] = value.strip()
    for code, texts in found.items():
        if texts and not any(sign.isalpha() for text in texts.values() for sign in text):
            raise DataError(
                f"{path} has no letter in the column {code!r}; expected sentences; name the columns that are languages "
                "with --languages."
            )
    return found
