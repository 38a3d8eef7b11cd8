"""MGSM and MSVAMP: word problems whose answer is a number, written out by greedy decoding.

MGSM (arXiv 2210.03057): `juletxara/mgsm`, which has a loading script, so its `refs/convert/parquet` is read; columns
question, answer_number; 250 problems. MSVAMP (arXiv 2310.20246): `Mathoctopus/MSVAMP`, JSON on its default branch;
columns m_query, response; 1,000 problems. Both are parallel and have no English train split to speak of (LangBridge and
MindMerger train on MetaMathQA). The prompt is LangBridge's without an instruction template (arXiv 2401.10695); a bridge
that was trained on other prompts is scored with `evaluation.data.mgsm.prompt`. As there, the last number that is
written counts.
"""

from __future__ import annotations

from typing import ClassVar

from bridge_ds.errors import DataError
from bridge_ds.tasks.numbers import numbers, plain
from bridge_ds.tasks.rows import PARQUET, Record
from bridge_ds.tasks.table import TableTask

__all__ = ["Mgsm", "Msvamp"]


class Mgsm(TableTask):
    """English and ten more languages."""

    name = "mgsm"
    hub = "juletxara/mgsm"
    revision: ClassVar[str | None] = PARQUET
    kind = "number"
    codes: ClassVar[tuple[str, ...]] = ("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "te", "th", "zh")
    prompt = "Question: {question}\nStep-by-Step Answer:"
    columns = {"question": "question", "answer": "answer_number"}  # noqa: RUF012
    has_train = False

    @property
    def chance(self) -> float:
        """Nobody guesses a number."""
        return 0.0

    def read(self, row: Record, language: str) -> tuple[str, int, str, tuple[str, ...], str]:
        """The question; its number as text."""
        found = numbers(str(row.value("answer")))
        if not found:
            raise DataError(
                f"{row.place} has the answer {row.value('answer')!r}; expected a number; mend the data of {self.name}."
            )
        source, null = self.render(row)
        return source, -1, plain(found[-1][0]), (), null


class Msvamp(Mgsm):
    """English and nine more languages."""

    name = "msvamp"
    hub = "Mathoctopus/MSVAMP"
    revision = None
    codes = ("en", "bn", "de", "es", "fr", "ja", "ru", "sw", "th", "zh")
    columns = {"question": "m_query", "answer": "response"}  # noqa: RUF012
