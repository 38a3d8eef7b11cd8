"""Tasks of the user's own: files of rows that become a benchmark without Python."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from pydantic import BeforeValidator

from bridge_ds.config.schema.fields import Flag, OptionalText, Path, Table, Text, Texts, Whole
from bridge_ds.config.text import Typed, Unusable, parsed, shown
from bridge_ds.reading import twice

__all__ = ["TaskConfig"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,99}")


def _numbered(value: Any) -> Any:
    """A list as a mapping from its indices."""
    value = _listed(value)
    if not isinstance(value, list | tuple):
        return value
    for index, item in enumerate(value):
        text = str(item).strip()
        if text != str(index) and text in map(str, range(len(value))):
            raise Unusable(
                [str(each) for each in value],
                f", where {text} is a label and the number of another one; expected a mapping from what the data has, "
                f"such as {{{text}: {text}}}; write one",
            )
    return {str(index): item for index, item in enumerate(value)}


def _same(value: Any) -> Any:
    """A list as a mapping of each value to itself."""
    value = _listed(value)
    return {str(item): item for item in value} if isinstance(value, list | tuple) else value


def _listed(value: Any) -> Any:
    """A list that was typed with or without brackets."""
    value = parsed(value)
    return [Typed(part.strip()) for part in value.split(",")] if isinstance(value, Typed) else value


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """A task of your own, declared as `tasks: {NAME: {...}}` in a recipe, or in a YAML file that holds nothing else.
    Its name can stand wherever a built-in task's can."""

    kind: Literal["labels", "choices", "number"] = "labels"
    """`labels`: the same labels for every sample; `choices`: choices of each sample's own; `number`: the model writes a
    solution, and the last number in it counts."""
    source: Path = ""
    """A folder with LANGUAGE.csv (jsonl, tsv, parquet; also .gz, .zst) for the test and train/en.csv to pack, or any
    other layout that a benchmark's folder may have; or a hub id."""
    revision: OptionalText = None
    """Hub revision (commit, tag, branch; refs/convert/parquet where a repository has a loading script, which is never
    run); null = the default branch."""
    prompt: Text = ""
    """The prompt with columns in braces, such as "News: {text} Topic:"; no space at its end."""
    fields: Annotated[dict[Text, Text], Table] = field(default_factory=dict)
    """Name -> column, where they differ. Names are those in braces in the prompt; `label` (kind labels) or `answer`
    (kinds choices and number), the column with the right answer; `id`, a sample's own id; `language`, where the rows of
    all languages are in the same files (test.csv, train.csv). A dot leads into a nested column: {label: answers.label},
    {answer: answers.0}."""
    labels: Annotated[dict[Text, Text], Table, BeforeValidator(_numbered)] = field(default_factory=dict)
    """Value in the data -> label that the model answers, such as {0: Business, 1: Sports} or {biz: Business}; or a
    list, whose labels the data names or numbers from 0. Several values may have one label. For ClassLabel columns of
    `datasets`: numbers or names."""
    choices: Texts = ()
    """The column that holds a sample's choices as a list, or several columns with one choice each (kind choices)."""
    first_choice: Annotated[Whole, Ge(0), Le(1)] = 0
    """Number of the first choice, where the column `answer` has numbers. (It may also have letters, or the choices'
    own texts.)"""
    languages: Annotated[dict[Text, Text], Table, BeforeValidator(_same)] = field(default_factory=dict)
    """Language code -> the name of its files, of its configuration on the hub, or its value in the column `language`,
    such as {si: sin_Sinh}; or a list of codes. Empty = as the files are named."""
    test_split: Text = "test"
    """The hub's name of the split that is scored."""
    train_split: Text = "train"
    """The hub's name of the split that is packed."""
    parallel: Flag = False
    """Whether row N (or the same `id`) is the same sample in every language."""

    @property
    def answer(self) -> str:
        """Name of the field that holds the right answer."""
        return "label" if self.kind == "labels" else "answer"

    def conflicts(self, name: str) -> Iterator[str]:
        """A sentence for each thing that is missing, or that has no use."""
        key = f"tasks.{name}"
        if not _NAME.fullmatch(name):
            yield f"tasks has {shown(name)}; expected a name of letters, digits, _ and -, at most 100; rename it."
        if not self.source:
            yield f"{key}.source is empty; expected a folder such as data/news, or a hub id; add it."
        if "{" not in self.prompt:
            yield (
                f"{key}.prompt is {shown(self.prompt)}; expected a text with columns in braces, such as "
                '"News: {text} Topic:"; write one.'
            )
        for kind, setting, example in (
            ("labels", "labels", "{0: Business, 1: Sports}"),
            ("choices", "choices", "[a, b]"),
        ):
            if self.kind == kind and not getattr(self, setting):
                yield f"{key}.{setting} is empty; expected something such as {example} for kind {kind}; add it."
            if self.kind != kind and getattr(self, setting):
                yield (
                    f"{key} has {setting} and is of kind {self.kind}; expected them for kind {kind} only; set "
                    f"{key}.kind to {kind}, or take them out."
                )
        texts = list(dict.fromkeys(self.labels.values()))
        if self.labels and (len(texts) < 2 or not all(text.strip() for text in texts)):
            yield f"{key}.labels has {shown(texts)}; expected two or more, none empty; correct it."
        again = twice(value.strip().casefold() for value in self.labels)
        again = again or twice({text.strip(): text.strip().casefold() for text in texts}.values())
        if again is not None:
            yield f"{key}.labels has {shown(again)} twice, in other letters; expected each once; take one out."
        again = twice(self.languages.values())
        if again is not None:
            yield f"{key}.languages has {shown(again)} twice; expected each once; take one out."
