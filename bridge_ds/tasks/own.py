"""Tasks of the user's own, from `tasks:` of a recipe: a :class:`TableTask` whose facts are settings."""

from __future__ import annotations

import difflib
import functools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

from bridge_ds.config.schema import TaskConfig, TaskDataConfig
from bridge_ds.config.text import short
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.reading import json_value
from bridge_ds.tasks.base import Example
from bridge_ds.tasks.flores import find_variety
from bridge_ds.tasks.record import Record
from bridge_ds.tasks.rows import RowSource, class_names, local_languages
from bridge_ds.tasks.table import TableTask

__all__ = ["OwnTask", "own_task"]

_VALUES = 12
"""Most values of a column that a message lists."""
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class OwnTask(TableTask):
    """Base class of those that :func:`own_task` makes, each a class of its own as the built-in ones are."""

    config: ClassVar[TaskConfig]
    """Its settings."""
    section = "tasks"

    def __post_init__(self) -> None:
        special = (self.config.answer, "id", "language")
        slots = self._slots()
        wrong = next((name for name in slots if not re.fullmatch(r"[^.\[\]\d][^.\[\]]*", name)), None)
        if wrong is not None or self.config.answer in slots:
            why = "the right answer" if wrong is None else "not one column"
            raise ConfigError(
                f"{self.settings}.prompt has {{{self.config.answer if wrong is None else wrong}}}, which is {why}; "
                f"expected columns such as {{text}}, nested ones by a name in {self.settings}.fields; correct it."
            )
        for name in self.config.fields:
            if name not in (*slots, *special):
                near = difflib.get_close_matches(name, (*slots, *special), n=1)
                raise ConfigError(
                    f"{self.settings}.fields has {name!r}; expected names in the prompt's braces, or one of "
                    f"{', '.join(special)}; {f'did you mean {near[0]!r}?' if near else 'take it out.'}"
                )
        super().__post_init__()
        folder = Path(self.source).is_dir()
        if not self.codes and not (folder and (self._together or local_languages(self.source) is not None)):
            what = "a copy from the hub" if folder else "a file" if Path(self.source).is_file() else "no folder here"
            raise ConfigError(
                f"{self.settings}.source is {self.source!r}, {what}, and "
                f"{self.settings}.languages is empty; expected a folder with LANGUAGE.csv (or test.csv with a column "
                "that fields.language names), or a hub id with its languages, such as [en, si]; correct it."
            )

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the settings, else those that there are rows for, English first."""
        if self.codes:
            return self.codes
        return self._languages_in_rows if self._together else super().languages

    @property
    def chance(self) -> float:
        """One of the labels or choices; where their number differs, the mean over the first language's samples."""
        if self.kind == "number":
            return 0.0
        return 1 / len(self.labels or self.config.choices) if len(self.config.choices) != 1 else self._chance_in_rows

    def split_of(self, language: str, split: str) -> str:
        """As the settings name it."""
        return self.config.test_split if split == "test" else self.config.train_split

    def key_of(self, row: Record, number: int, language: str) -> str:
        """By the data's own id, where the settings name its column."""
        own = row.value("id") if "id" in self.config.fields else number
        return f"{self.name}-{own}" if self.parallel else f"{self.name}-{language}-{own}"

    def row_source(self, language: str, split: str) -> RowSource:
        """Where the rows of a split in a language are."""
        return replace(super().row_source(language, split), together=self._together)

    def records(self, source: RowSource) -> Iterator[Record]:
        """The rows of a split in a language. Raises DataError."""
        found = super().records(source)
        return (row for row in found if row.text("language") == source.config) if self._together else found

    def render(self, row: Record, made: Mapping[str, str] = MappingProxyType({})) -> tuple[str, str]:
        """The prompt with the row's texts, and with empty fields. Raises DataError, also where all texts are empty."""
        slots = self._slots()
        if not any(row.text(name) for name in slots):
            columns = ", ".join(repr(row.columns[name]) for name in slots)
            raise DataError(
                f"{row.where} has nothing in {columns}; expected a text for {self.settings}.prompt; fill it in, or "
                "remove the row."
            )
        return super().render(row, made)

    def example(self, row: Record, language: str, key: str) -> Example:
        """The sample of a row. Raises DataError."""
        if self.kind == "labels":
            return super().example(row, language, key)
        source, null = self.render(row)
        if self.kind == "number":
            return Example(source, row.number("answer"), -1, language, key, null=null)
        choices = self._choices_of(row)
        label = self._answer_of(row, choices)
        return Example(source, choices[label], label, language, key, choices, null)

    def label_of(self, row: Record) -> int:
        """Index of the label that the settings give the row's value, or the value's ClassLabel name."""
        for value in self._readings(row):
            if value.casefold() in self._indices:
                return self._indices[value.casefold()]
        raise self._unknown_label(row)

    def train(self) -> Iterator[Example]:
        """The English train split, for packing, by whichever code the task has of English. Raises as of a TableTask."""
        if not self._together:
            return self._examples(self.english("train"), "train")
        if known := find_variety("en", self.codes):  # as the settings name it
            return self._examples(known, "train")
        rows = super().records(self.row_source("en", "train"))
        there = {row.text("language") for row in rows}
        return self._examples(find_variety("en", sorted(there)) or "en", "train")

    @property
    def _together(self) -> bool:
        return "language" in self.config.fields

    @functools.cached_property
    def _indices(self) -> dict[str, int]:
        """Value in the data, or a label's own text, in lower case -> index of the label."""
        places = {label: index for index, label in enumerate(self.labels)}
        found = {label.casefold(): index for label, index in places.items()}
        return found | {value.strip().casefold(): places[label.strip()] for value, label in self.config.labels.items()}

    @functools.cached_property
    def _languages_in_rows(self) -> tuple[str, ...]:
        found = set()
        for row in super().records(self.row_source("en", "test")):
            code = row.text("language")
            if not code:
                raise DataError(
                    f"{row.where} has no language in column {row.columns['language']!r}; expected one in each row, or "
                    f"those to read in {self.settings}.languages; fill it in."
                )
            found.add(code)
        return (*(["en"] if "en" in found else []), *sorted(found - {"en"}))

    @functools.cached_property
    def _chance_in_rows(self) -> float:
        counts = [len(self._choices_of(row)) for row in self.records(self.row_source(self.languages[0], "test"))]
        return sum(1 / count for count in counts) / max(1, len(counts))

    def _readings(self, row: Record) -> list[str]:
        """The row's label as it may stand in the settings."""
        value = row.value("label")
        if not isinstance(value, str | int | float):
            return []
        text = str(value).strip()
        whole = re.fullmatch(r"(-?[0-9]+)\.0*", text)  # pandas writes so where a value is missing
        found: list[str] = [text, whole[1]] if whole else [text]
        if re.fullmatch("[0-9]{1,6}", found[-1]):
            names, number = class_names(row.source, row.columns["label"]), int(found[-1])
            name = list(names[number : number + 1])
            # Where the settings have every name, numbers in them are names too: five ratings from 1 to 5.
            return [*name, *found] if all(each.casefold() in self._indices for each in names) else [*found, *name]
        return found

    def _unknown_label(self, row: Record) -> DataError:
        value, column = row.value("label"), row.columns["label"]
        said = short(repr(value), 80)
        if isinstance(value, list | dict):
            part = next(iter(value), "") if isinstance(value, dict) else 0
            return DataError(
                f"{row.where} has {said} in column {column!r}; expected one value, the label of {self.name}; name a "
                f"part of it in {self.settings}.fields, such as {{label: {column}.{part}}}."
            )
        counts = Counter(" = ".join(self._readings(other)) for other in self.records(row.source) if other.has("label"))
        listed = ", ".join(f"{short(text, 40)} ({count})" for text, count in islice(counts.most_common(), _VALUES))
        more = f", ... ({len(counts)} in all)" if len(counts) > _VALUES else ""
        mapped = ", ".join(
            value if value == label else f"{value} ({label})"
            for value, label in islice(self.config.labels.items(), _VALUES)
        )
        unknown = (self._readings(row) or [""])[-1]
        near = difflib.get_close_matches(unknown, self.labels, n=1)
        return DataError(
            f"{row.where} has the label {said} in column {column!r}; expected one of {mapped}; the values there are "
            f"{listed}{more}: map each in {self.settings}.labels, such as {{{short(unknown, 40) or repr('')}: "
            f"{(near or self.labels)[0]}}}."
        )

    def _choices_of(self, row: Record) -> tuple[str, ...]:
        columns = self.config.choices
        found: list[Any] = []
        for column in columns:
            there, value = row.at(column)
            if value is None:
                raise DataError(
                    f"{row.where} has {'an empty' if there else 'no'} column {column!r}; it has {row.names}; expected "
                    f"a choice of {self.name}: name the columns in {self.settings}.choices."
                )
            found.append(value)
        if len(columns) == 1:
            found = _as_list(found[0])
        texts = tuple(str(value).strip() for value in found if isinstance(value, str | int | float))
        if len(texts) < 2 or len(texts) < len(found) or not all(texts):
            raise DataError(
                f"{row.where} has {short(repr(found), 80)} in {', '.join(map(repr, columns))}; expected two or more "
                f"choices, each a text and none empty; correct the data or {self.settings}.choices."
            )
        return texts

    def _answer_of(self, row: Record, choices: tuple[str, ...]) -> int:
        """By the choice's text, its letter or its number, in this order; a number that is no text is only a number."""
        value, first = row.value("answer"), self.config.first_choice
        text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
        whole = re.fullmatch(r"([0-9]{1,4})(\.0*)?", text)
        number = int(whole[1]) - first if whole else -1
        if isinstance(value, str) and text in choices:
            place = choices.index(text)
            # A csv file does not say which of its values are numbers.
            if (
                place != number
                and 0 <= number < len(choices)
                and all(isinstance(of, str) for of in row.values.values())
            ):
                raise DataError(
                    f"{row.where} has the answer {text!r} in column {row.columns['answer']!r}, the text of choice "
                    f"{_LETTERS[place : place + 1]} and the number of choice {_LETTERS[number : number + 1]} of "
                    f"{short(repr(choices), 160)}; expected one of the two; write the letter."
                )
            return place
        if len(text) == 1 and text.upper() in _LETTERS[: len(choices)]:
            return _LETTERS.index(text.upper())
        if 0 <= number < len(choices):
            return number
        raise DataError(
            f"{row.where} has the answer {short(repr(value), 80)} in column {row.columns['answer']!r}; expected the "
            f"text, the letter or the number ({first} to {len(choices) - 1 + first}) of one of its choices "
            f"{short(repr(choices), 160)}; correct the data, {self.settings}.fields or {self.settings}.first_choice."
        )


def own_task(name: str, config: TaskConfig, given: TaskDataConfig | None = None) -> OwnTask:
    """The task of these settings.

    Args:
        name: of the task.
        config: checked (:meth:`TaskConfig.conflicts`).
        given: `evaluation.data` of the task.

    Raises:
        ConfigError: the prompt is no template, a field has no use, or there is no such folder and no language.
    """
    fields = set(re.findall(r"{([^{}]*)}", (given.prompt if given else "") or config.prompt))
    codes = sorted(config.languages, key=lambda code: code != "en")
    facts = {
        "__doc__": f"`tasks.{name}` of a recipe.",
        "config": config,
        "name": name,
        "kind": config.kind,
        "hub": config.source,
        "revision": config.revision,
        "labels": tuple(dict.fromkeys(label.strip() for label in config.labels.values())),
        "codes": tuple(codes),
        "configs": config.languages,
        "prompt": config.prompt,
        "columns": {field: field for field in (*sorted(fields), config.answer)} | config.fields,
        "parallel": config.parallel,
    }
    return type(name, (OwnTask,), facts)(given or TaskDataConfig())


def _as_list(value: Any) -> list[Any]:
    """A list, also one that is written as JSON in a csv file."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json_value(value)
        except ValueError:
            return [value]
    return value if isinstance(value, list) else [value]
