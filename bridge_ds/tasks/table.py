"""Base class of the benchmarks that are rows with columns."""

from __future__ import annotations

import difflib
import re
import string
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from types import MappingProxyType
from typing import ClassVar

from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.errors import ConfigError
from bridge_ds.tasks.base import Example
from bridge_ds.tasks.flores import find_variety
from bridge_ds.tasks.record import Record
from bridge_ds.tasks.rows import PARQUET, RowSource, has_files, local_languages, rows

__all__ = ["TableTask"]


@dataclass(frozen=True)
class TableTask:
    """A benchmark with rows. A task of labels sets the class variables; others also override :meth:`example`."""

    given: TaskDataConfig = field(default_factory=TaskDataConfig)
    """The recipe's `evaluation.data` of the task."""

    name: ClassVar[str]
    """Name in ``TASKS``."""
    section: ClassVar[str] = "evaluation.data"
    """Where its settings are, for messages."""
    hub: ClassVar[str]
    """Hub id."""
    revision: ClassVar[str | None] = None
    """Hub revision of `hub`; none = its default branch."""
    hub_files: ClassVar[str] = ""
    """Pattern of files in `hub`, with {config} and {split}, where its default branch has a loading script."""
    null_keeps: ClassVar[tuple[str, ...]] = ()
    """Fields whose text stays in the empty prompt."""
    kind: ClassVar[str] = "labels"
    """As of :class:`~bridge_ds.tasks.base.Task`."""
    labels: ClassVar[tuple[str, ...]] = ()
    """The label texts."""
    codes: ClassVar[tuple[str, ...]]
    """Languages of the hub's data, English first."""
    configs: ClassVar[dict[str, str]] = {}
    """Language -> the hub's name of its configuration, where that is another one; both name the language."""
    prompt: ClassVar[str]
    """With fields in braces. No space at its end: the target's first token has its own."""
    columns: ClassVar[dict[str, str]]
    """Field -> column on the hub, for every field of the prompt and the answer's."""
    quoted_tsv: ClassVar[bool] = False
    """Whether its tsv files have quotation marks as csv has them (pandas writes such)."""
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
                f"{self.settings}.fields has {wrong[0]!r}; expected some of {', '.join(self.columns)}; {hint}"
            )
        unknown = [name for name in self._slots() if name not in self.columns]
        if unknown:
            raise ConfigError(
                f"{self.settings}.prompt has {{{unknown[0]}}}; expected some of "
                f"{', '.join(f'{{{name}}}' for name in self.columns)}; correct the prompt."
            )

    @property
    def settings(self) -> str:
        """The key of its settings, for messages."""
        return f"{self.section}.{self.name}"

    @property
    def source(self) -> str:
        """Hub id or local folder."""
        return self.given.source or self.hub

    @property
    def languages(self) -> tuple[str, ...]:
        """Those of the hub's data; for a local folder, those that it has files for."""
        found = local_languages(self.source)
        if found is None:
            return self.codes
        own = {self.config_of(code): code for code in self.codes}
        there = {own.get(name, name) for name in found}
        known = [code for code in ("en", *self.codes) if code in there]
        return tuple(dict.fromkeys(known + sorted(there)))

    @property
    def on_request(self) -> tuple[str, ...]:
        """All are in `languages`."""
        return ()

    @property
    def chance(self) -> float:
        """One of the labels."""
        return 1 / len(self.labels)

    def code_of(self, language: str) -> str:
        """The task's code of a language that may be given by the hub's name of it (`sin_Sinh` -> `si`) or another ISO
        639 code of it (`quy` -> `qu`)."""
        own = next((code for code, config in self.configs.items() if config == language), language)
        known = (*self.languages, *self.on_request)
        return own if own in known else find_variety(language, known) or language

    def config_of(self, language: str) -> str | None:
        """The hub's name of the configuration that holds a language."""
        return self.configs.get(language, language)

    def split_of(self, language: str, split: str) -> str:
        """The hub's name of a split."""
        return split

    def key_of(self, row: Record, number: int, language: str) -> str:
        """Id of a sample."""
        return f"{self.name}-{number}" if self.parallel else f"{self.name}-{language}-{number}"

    def example(self, row: Record, language: str, key: str) -> Example:
        """The sample of a row; here, of a task of labels.

        Raises:
            DataError: the row lacks a column, or its label is not one of the labels.
        """
        label = self.label_of(row)
        source, null = self.render(row)
        return Example(source, self.labels[label], label, language, key, null=null)

    def label_of(self, row: Record) -> int:
        """Index of the right label.

        Raises:
            DataError: as :meth:`example`.
        """
        return row.label("label", self.labels)

    def render(self, row: Record, made: Mapping[str, str] = MappingProxyType({})) -> tuple[str, str]:
        """The prompt with the row's texts, and with empty fields.

        Args:
            made: texts of fields in place of the row's.
        """
        template, slots = self.given.prompt or self.prompt, self._slots()
        texts = {name: made[name] if name in made else row.text(name) for name in slots}
        kept = {name: texts[name] if name in self.null_keeps else "" for name in slots}
        empty = re.sub(r"\s+", " ", template.format(**kept))
        return template.format(**texts).strip(), empty.strip()

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` test samples of a language (0 = all).

        Raises:
            ConfigError: the data lacks the language.
            DataError: the data cannot be loaded or is not as expected.
        """
        language = self.code_of(language)
        if language not in self.languages:
            raise ConfigError(
                f"language {language!r} is not in {self.name} ({self.source}); expected one of "
                f"{', '.join(self.languages) or 'those with a file'}; correct evaluation.languages."
            )
        return list(islice(self._examples(language, "test"), limit or None))

    def train(self) -> Iterator[Example]:
        """The English train split, for packing.

        Raises:
            ConfigError: the benchmark has none.
            DataError: as :meth:`examples`.
        """
        if not self.has_train and not self.given.source:
            raise ConfigError(
                f"{self.name} has no English train split; expected a task that has one, such as xnli; pack other "
                "English samples with --input or --dataset."
            )
        return self._examples(self.english("train"), "train")

    def english(self, split: str) -> str:
        """The code by which the files of a split have English: `en`, or the one of the test files (`eng`)."""
        code = self.code_of("en")
        if code != "en" and has_files(self.row_source("en", split)):
            return "en"
        return code

    def row_source(self, language: str, split: str) -> RowSource:
        """Where the rows of a split in a language are."""
        config = self.config_of(language)
        revision, files = self.given.revision, ""
        if not self.given.source:
            revision, files = revision or self.revision, self.hub_files
        if revision == PARQUET:
            files = "{config}/{split}/*.parquet"
        hub_split = self.split_of(language, split)
        files = files.format(config=config or "default", split=hub_split)
        place = (self.source, revision, language, split, config, hub_split, files)
        return RowSource(self.name, self.settings, *place, quoted_tsv=self.quoted_tsv)

    def records(self, source: RowSource) -> Iterator[Record]:
        """The rows of a split in a language.

        Raises:
            DataError: they cannot be loaded, or one is no row.
        """
        columns = self.columns | self.given.fields
        return (Record(source, where, values, columns) for where, values in rows(source))

    def _examples(self, language: str, split: str) -> Iterator[Example]:
        keys: Counter[str] = Counter()
        for number, row in enumerate(self.records(self.row_source(language, split))):
            own = key = self.key_of(row, number, language)
            while keys[key]:  # runs are compared by keys
                keys[own] += 1
                key = f"{own}-{keys[own]}"
            keys[key] += 1
            yield self.example(row, language, key)

    def _slots(self) -> list[str]:
        template = self.given.prompt or self.prompt
        try:
            found = [slot for slot in string.Formatter().parse(template) if slot[1] is not None]
            if any(form or conversion for _, _, form, conversion in found):
                raise ValueError("a field has a format of its own")
            return [str(name) for _, name, _, _ in found]
        except ValueError as error:
            raise ConfigError(
                f"{self.settings}.prompt {template!r} is no template ({error}); expected fields in braces; correct it."
            ) from None
