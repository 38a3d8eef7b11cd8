"""A benchmark that comes as rows with columns: what all of them share, so that each is a few lines."""

from __future__ import annotations

import difflib
import re
import string
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import ClassVar

from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.errors import ConfigError
from bridge_ds.tasks.base import Example
from bridge_ds.tasks.rows import PARQUET, Record, RowSource, local_languages, rows

__all__ = ["TableTask"]


@dataclass(frozen=True)
class TableTask:
    """Base of the benchmarks with rows. A task of labels sets the class variables; others also :meth:`read`."""

    given: TaskDataConfig = field(default_factory=TaskDataConfig)
    """What the recipe says of the task's data."""

    name: ClassVar[str]
    """Name in ``TASKS``."""
    hub: ClassVar[str]
    """Hub id."""
    revision: ClassVar[str | None] = None
    """Hub revision of `hub`; none = its default branch."""
    hub_files: ClassVar[str] = ""
    """Files of `hub`, with {config} and {split}, where its default branch has a script that hides them."""
    kind: ClassVar[str] = "labels"
    """One of `bridge_ds.evaluation.predictions.KINDS`."""
    labels: ClassVar[tuple[str, ...]] = ()
    """The label texts."""
    codes: ClassVar[tuple[str, ...]]
    """Languages of the hub's data, English first."""
    prompt: ClassVar[str]
    """With fields in braces. No blank at its end: the target's first token brings its own."""
    columns: ClassVar[dict[str, str]]
    """Field -> column on the hub. Every field of the prompt stands here, and the answer's."""
    parallel: ClassVar[bool] = True
    """Whether row N is the same sample in every language."""
    has_train: ClassVar[bool] = True
    """Whether there is an English train split."""

    def __post_init__(self) -> None:
        wrong = [name for name in self.given.fields if name not in self.columns]
        if wrong:
            near = difflib.get_close_matches(wrong[0], self.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "rename it."
            raise ConfigError(
                f"evaluation.data.{self.name}.fields has {wrong[0]!r}; expected some of "
                f"{', '.join(self.columns)}; {hint}"
            )
        unknown = [name for name in self._slots() if name not in self.columns]
        if unknown:
            raise ConfigError(
                f"evaluation.data.{self.name}.prompt has {{{unknown[0]}}}; expected some of "
                f"{', '.join(f'{{{name}}}' for name in self.columns)}; mend the prompt."
            )

    @property
    def source(self) -> str:
        """Hub id or local folder."""
        return self.given.source or self.hub

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the hub's data; of a local folder, those that it has files for."""
        found = local_languages(self.source)
        if found is None:
            return self.codes
        own = {self.config_of(code): code for code in self.codes}
        there = {own.get(name, name) for name in found}
        known = [code for code in ("en", *self.codes) if code in there]
        return tuple(dict.fromkeys(known + sorted(there)))

    @property
    def chance(self) -> float:
        """One among the labels."""
        return 1 / len(self.labels)

    def config_of(self, language: str) -> str | None:
        """The hub's name of the configuration that holds a language."""
        return language

    def split_of(self, language: str, split: str) -> str:
        """The hub's name of a split."""
        return split

    def key_of(self, row: Record, number: int, language: str) -> str:
        """Name of a sample."""
        return f"{self.name}-{number}" if self.parallel else f"{self.name}-{language}-{number}"

    def read(self, row: Record, language: str) -> tuple[str, int, str, tuple[str, ...], str]:
        """(source, label, target, choices, null source) of a row; here, of a task of labels.

        Raises:
            DataError: the row lacks a column, or its label is outside of the labels.
        """
        label = self.label_of(row)
        source, null = self.render(row)
        return source, label, self.labels[label], (), null

    def label_of(self, row: Record) -> int:
        """RowSource of the right label.

        Raises:
            DataError: as :meth:`read`.
        """
        return row.label("label", self.labels)

    def render(self, row: Record, made: Mapping[str, str] = MappingProxyType({})) -> tuple[str, str]:
        """The prompt with the row's texts in it, and with nothing in it.

        Args:
            made: texts of fields that are not the row's own; a `connective` stays in the empty prompt.
        """
        template, slots = self.given.prompt or self.prompt, self._slots()
        texts = {name: made[name] if name in made else row.text(name) for name in slots}
        kept = {name: texts[name] if name == "connective" else "" for name in slots}
        empty = re.sub(r"\s+", " ", template.format(**kept))
        return template.format(**texts).strip(), empty.strip()

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` test samples of a language (0 = all).

        Raises:
            ConfigError: the data lacks the language.
            DataError: the data cannot be had or is not as expected.
        """
        if language not in self.languages:
            raise ConfigError(
                f"language {language!r} is not in {self.name} ({self.source}); expected one of "
                f"{', '.join(self.languages) or 'those with a file'}; mend evaluation.languages."
            )
        return list(islice(self._stream(language, "test"), limit or None))

    def train(self) -> Iterator[Example]:
        """The English train split, to pack.

        Raises:
            ConfigError: the benchmark has none.
            DataError: as :meth:`examples`.
        """
        if not self.has_train and not self.given.source:
            raise ConfigError(
                f"{self.name} has no English train split; expected a task that has one, such as xnli; pack other "
                "English samples with --input or --dataset."
            )
        return self._stream("en", "train")

    def place(self, language: str, split: str) -> RowSource:
        """Where a split in a language is."""
        config = self.config_of(language)
        revision, files = self.given.revision, ""
        if not self.given.source:
            revision, files = revision or self.revision, self.hub_files
        if revision == PARQUET:
            files = "{config}/{split}/*.parquet"
        hub_split = self.split_of(language, split)
        files = files.format(config=config or "default", split=hub_split)
        return RowSource(self.name, self.source, revision, language, split, config, hub_split, files)

    def _stream(self, language: str, split: str) -> Iterator[Example]:
        columns = self.columns | self.given.fields
        keys: dict[str, int] = {}
        for number, (place, values) in enumerate(rows(self.place(language, split))):
            row = Record(self.name, place, values, columns)
            key = self.key_of(row, number, language)
            keys[key] = keys.get(key, 0) + 1
            if keys[key] > 1:
                key = f"{key}-{keys[key]}"  # a sample is found again by its key alone
            source, label, target, choices, null = self.read(row, language)
            yield Example(source, target, label, language, key, choices, null)

    def _slots(self) -> list[str]:
        template = self.given.prompt or self.prompt
        try:
            return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise ConfigError(
                f"evaluation.data.{self.name}.prompt {template!r} is no template ({error}); expected fields in braces."
            ) from None
