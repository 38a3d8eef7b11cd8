"""XNLI: natural language inference in 15 languages, the same 5,010 test pairs in each (arXiv 1809.05053)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

from bridge_ds.errors import ConfigError, DataError
from bridge_ds.tasks.base import Example

__all__ = ["Xnli"]

_PROMPT = "Premise: {premise} Hypothesis: {hypothesis} Label:"
"""As in the paper's public code, without the blank at its end: the target's first token brings its own."""


@dataclass(frozen=True)
class Xnli:
    """The test split, fetched by `datasets` at first use and cached by it."""

    source: str = "facebook/xnli"
    """Hub id, or a local folder with the same files (a clone of the hub repository)."""
    name: str = "xnli"
    """Name of the task."""
    labels: tuple[str, ...] = ("Entailment", "Neutral", "Contradiction")
    """In the order of the label numbers."""
    languages: tuple[str, ...] = (
        "en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh",
    )  # fmt: skip
    """ISO 639-1 codes."""

    @property
    def chance(self) -> float:
        """One in three: the test split is balanced."""
        return 1 / len(self.labels)

    def examples(self, language: str, limit: int) -> list[Example]:
        """The first `limit` pairs (0 = all 5,010), the same pairs in every language.

        Raises:
            ConfigError: no such language in XNLI.
            DataError: the hub cannot be reached and nothing is cached, or the rows have other columns.
        """
        if language not in self.languages:
            raise ConfigError(
                f"language {language!r} is not in XNLI; expected one of {', '.join(self.languages)}; "
                "mend evaluation.languages."
            )
        rows = self._load(language)
        return [self._example(row, number, language) for number, row in enumerate(islice(rows, limit or None))]

    def _load(self, language: str) -> Iterable[dict[str, Any]]:
        from datasets import load_dataset

        try:
            return load_dataset(self.source, language, split="test")
        except Exception as error:  # datasets, the hub client and its transport each have errors of their own
            why = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise DataError(
                f"{self.source} ({language}, test) could not be loaded ({why}); expected the hub, or "
                "a copy in the cache of datasets; run it once where there is network, with the same HF_HOME."
            ) from error

    def _example(self, row: dict[str, Any], number: int, language: str) -> Example:
        try:
            source = _PROMPT.format(premise=row["premise"].strip(), hypothesis=row["hypothesis"].strip())
            label = int(row["label"])
            if label < 0:
                raise IndexError(label)
            return Example(source, self.labels[label], label, language, f"{self.name}-{number}")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self.source} ({language}) row {number} has the columns {sorted(row)} and label "
                f"{row.get('label')!r}; expected the texts premise and hypothesis and a label of 0, 1 or 2; "
                "check the data set."
            ) from error
