"""Global-MMLU: 14,042 exam questions of 57 subjects in 42 languages, Sinhala among them (arXiv 2412.03304).

`CohereLabs/Global-MMLU`, parquet on its default branch, one configuration a language; splits test and dev (285), none
to train on. Columns: sample_id, subject, question, option_a to option_d, answer (A to D). The prompt is that of the
paper and of lm-evaluation-harness; the log-probabilities of the letters are compared.
"""

from __future__ import annotations

from bridge_ds.tasks.record import Record
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "GlobalMmlu"]


class GlobalMmlu(TableTask):
    """The same questions in every language."""

    name = "global_mmlu"
    hub = "CohereLabs/Global-MMLU"
    labels = ("A", "B", "C", "D")
    codes = (
        "en", "am", "ar", "bn", "cs", "de", "el", "es", "fa", "fil", "fr", "ha", "he", "hi", "id", "ig", "it", "ja",
        "ko", "ky", "lt", "mg", "ms", "ne", "nl", "ny", "pl", "pt", "ro", "ru", "si", "sn", "so", "sr", "sv", "sw",
        "te", "tr", "uk", "vi", "yo", "zh",
    )  # fmt: skip
    prompt = "{question}\nA. {option_a}\nB. {option_b}\nC. {option_c}\nD. {option_d}\nAnswer:"
    columns = {  # noqa: RUF012
        "question": "question", "option_a": "option_a", "option_b": "option_b", "option_c": "option_c",
        "option_d": "option_d", "label": "answer", "id": "sample_id",
    }  # fmt: skip
    has_train = False

    def key_of(self, row: Record, number: int, language: str) -> str:
        """By the question's own id, where the data has it."""
        return f"{self.name}-{row.value('id')}" if row.has("id") else super().key_of(row, number, language)


TASKS = (GlobalMmlu(),)
