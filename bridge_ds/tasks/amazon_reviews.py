"""Amazon reviews: one to five stars from the text, 5,000 test reviews a language (arXiv 2010.02573).

`mteb/amazon_reviews_multi`; its default branch has a loading script, so the files beside it (LANGUAGE/test.jsonl) are
read directly. Columns: text (title and body), label (0 to 4). The files are sorted by label: where only a part of the
train split is taken, shuffle. Prompt and labels are those of arXiv 2508.09091.
"""

from __future__ import annotations

from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "AmazonReviews"]


class AmazonReviews(TableTask):
    """Six languages, not the same reviews; 200,000 English ones to train on."""

    name = "amazon_reviews"
    hub = "mteb/amazon_reviews_multi"
    hub_files = "{config}/{split}.jsonl"
    labels = ("Very Negative", "Negative", "Neutral", "Positive", "Very Positive")
    codes = ("en", "de", "es", "fr", "ja", "zh")
    prompt = "Review: {text} Label:"
    columns = {"text": "text", "label": "label"}  # noqa: RUF012
    parallel = False


TASKS = (AmazonReviews(),)
