"""XNLI and IndicXNLI: natural language inference, the same 5,010 test pairs in every language.

XNLI (arXiv 1809.05053): `facebook/xnli`, parquet on its default branch, one configuration a language. IndicXNLI (arXiv
2204.08776): `Divyanshu/indicxnli`, which has a loading script, so its `refs/convert/parquet` is read. Columns of both:
premise, hypothesis, label (0, 1, 2). Prompt and labels are those of arXiv 2508.09091, trained on English XNLI.
"""

from __future__ import annotations

from typing import ClassVar

from bridge_ds.tasks.rows import PARQUET
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "IndicXnli", "Xnli"]


class Xnli(TableTask):
    """15 languages; 392,702 English pairs to train on."""

    name = "xnli"
    hub = "facebook/xnli"
    labels = ("Entailment", "Neutral", "Contradiction")
    codes: ClassVar[tuple[str, ...]] = (
        "en", "ar", "bg", "de", "el", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh",
    )  # fmt: skip
    prompt = "Premise: {premise} Hypothesis: {hypothesis} Label:"
    columns = {"premise": "premise", "hypothesis": "hypothesis", "label": "label"}  # noqa: RUF012


class IndicXnli(Xnli):
    """11 languages of India, no English: train on task:xnli, which has the same prompt."""

    name = "indicxnli"
    hub = "Divyanshu/indicxnli"
    revision = PARQUET
    codes = ("as", "bn", "gu", "hi", "kn", "ml", "mr", "or", "pa", "ta", "te")
    has_train = False


TASKS = (Xnli(), IndicXnli())
