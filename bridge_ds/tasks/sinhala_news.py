"""Sinhala news: topics of sentences, trained in English and tested in Sinhala (arXiv 2508.09091).

`Themira/en_si_news_classification_with_label_name`, parquet on its default branch, one configuration with the splits
train_en, test_en and test_si. Columns: sentence, label (the label's name; a number in the order below is accepted too).
Prompt and labels are those of the paper's code.
"""

from __future__ import annotations

from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "SinhalaNews"]


class SinhalaNews(TableTask):
    """English and Sinhala, not the same sentences."""

    name = "sinhala_news"
    hub = "Themira/en_si_news_classification_with_label_name"
    labels = ("Business", "Entertainment", "Political", "Sports", "Science")
    codes = ("en", "si")
    prompt = "News Sentence: {sentence} Category:"
    columns = {"sentence": "sentence", "label": "label"}  # noqa: RUF012
    parallel = False

    def config_of(self, language: str) -> str | None:
        """One configuration for both languages."""
        return None

    def split_of(self, language: str, split: str) -> str:
        """`test_si`."""
        return f"{split}_{language}"


TASKS = (SinhalaNews(),)
