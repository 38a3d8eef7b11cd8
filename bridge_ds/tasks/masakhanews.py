"""MasakhaNEWS: the topic of a news article in 16 languages of Africa (arXiv 2304.09972).

`masakhane/masakhanews` has a loading script, so its `refs/convert/parquet` is read; one configuration a language
(`swa`). Columns: label (a number in the order below; the release's own files have `category`, a name), headline, text,
url. The prompt has the headline, as AfroBench's (arXiv 2311.07978); articles are too long for most encoders.
"""

from __future__ import annotations

from typing import ClassVar

from bridge_ds.tasks.record import Record
from bridge_ds.tasks.rows import PARQUET
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "MasakhaNews"]


class MasakhaNews(TableTask):
    """Not the same articles in every language, and not every label in every language."""

    name = "masakhanews"
    hub = "masakhane/masakhanews"
    revision: ClassVar[str | None] = PARQUET
    labels = ("business", "entertainment", "health", "politics", "religion", "sports", "technology")
    configs = {  # noqa: RUF012
        "en": "eng", "am": "amh", "fr": "fra", "ha": "hau", "ig": "ibo", "ln": "lin", "lg": "lug", "om": "orm",
        "pcm": "pcm", "rn": "run", "sn": "sna", "so": "som", "sw": "swa", "ti": "tir", "xh": "xho", "yo": "yor",
    }  # fmt: skip
    codes = tuple(configs)
    prompt = "Headline: {headline} Topic:"
    columns = {"headline": "headline", "text": "text", "label": "label", "category": "category"}  # noqa: RUF012
    quoted_tsv = True
    parallel = False

    def label_of(self, row: Record) -> int:
        """A number on the hub, a name in the release's own files."""
        return row.label("label" if row.has("label") else "category", self.labels)


TASKS = (MasakhaNews(),)
