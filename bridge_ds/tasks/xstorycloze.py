"""XStoryCloze: which of two endings a story of four sentences has (arXiv 2112.10668).

`juletxara/xstory_cloze`, which has a loading script, so its `refs/convert/parquet` is read; columns story_id,
input_sentence_1 to input_sentence_4, sentence_quiz1, sentence_quiz2, answer_right_ending (1 or 2); 1,511 stories in
the split eval, 360 in train, parallel. The prompt is the four sentences, as in lm-evaluation-harness.
"""

from __future__ import annotations

from typing import ClassVar

from bridge_ds.tasks.base import Example
from bridge_ds.tasks.record import Record
from bridge_ds.tasks.rows import PARQUET
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "XStoryCloze"]


class XStoryCloze(TableTask):
    """English and ten more languages, Burmese and Telugu among them."""

    name = "xstorycloze"
    hub = "juletxara/xstory_cloze"
    revision: ClassVar[str | None] = PARQUET
    kind = "choices"
    codes = ("en", "ar", "es", "eu", "hi", "id", "my", "ru", "sw", "te", "zh")
    prompt = "{sentence1} {sentence2} {sentence3} {sentence4}"
    columns = {  # noqa: RUF012
        **{f"sentence{number}": f"input_sentence_{number}" for number in range(1, 5)},
        "ending1": "sentence_quiz1", "ending2": "sentence_quiz2", "label": "answer_right_ending", "id": "story_id",
    }  # fmt: skip

    @property
    def chance(self) -> float:
        """One in two."""
        return 0.5

    def split_of(self, language: str, split: str) -> str:
        """`eval` is scored."""
        return "eval" if split == "test" else split

    def key_of(self, row: Record, number: int, language: str) -> str:
        """By the story's own id, where the data has it."""
        return f"{self.name}-{row.value('id')}" if row.has("id") else super().key_of(row, number, language)

    def example(self, row: Record, language: str, key: str) -> Example:
        """The story; the endings continue it."""
        choices = (row.text("ending1"), row.text("ending2"))
        label = row.label("label", ("ending1", "ending2"), first=1)
        source, null = self.render(row)
        return Example(source, choices[label], label, language, key, choices, null)


TASKS = (XStoryCloze(),)
