"""What a report is made of: headings, sentences, lists and tables, as Markdown and HTML both can show them.

All text here is plain; whoever renders it escapes it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = [
    "Block",
    "Cell",
    "Chart",
    "Folded",
    "Items",
    "Legend",
    "Mark",
    "Picture",
    "Section",
    "TableBlock",
    "Text",
    "holds_words",
]

_NUMBER = re.compile(r"[+\u2212<≥]? ?[\d.,]+( %| : \d+)?|–|")


@dataclass(frozen=True)
class Mark:
    """One value of a chart with its interval, in the chart's unit."""

    system: int
    """Place of the system: its colour and shape."""
    name: str
    """For those who cannot see it."""
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Chart:
    """Values on one horizontal scale, a line each; only HTML shows it."""

    marks: tuple[Mark, ...]
    scale: tuple[float, float]
    """Left and right end."""
    guide: float | None = None
    """Where a dashed line stands (chance, no difference)."""
    ticks: tuple[float, ...] = ()
    """Labelled places; a chart of ticks alone is an axis."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str = ""
    small: str = ""
    """Second line, in small print (an interval)."""
    tone: str = ""
    """`good`, `bad`, `strong` or nothing; the text must say the same."""
    heat: float | None = None
    """0 to 1: how deep the ground is coloured."""
    chart: Chart | None = None
    is_data: bool = False
    """Text of a benchmark, perhaps written from right to left."""


@dataclass(frozen=True)
class TableBlock:
    """Rows under a caption. The first cell of a row is its heading."""

    caption: str
    columns: Sequence[Cell | str]
    rows: Sequence[Sequence[Cell | str]]
    compact: bool = False
    """Narrow, so that several stand side by side."""


@dataclass(frozen=True)
class Text:
    """One paragraph."""

    text: str
    kind: str = ""
    """`warning`, `note` or nothing."""


@dataclass(frozen=True)
class Items:
    """A list."""

    items: Sequence[str]


@dataclass(frozen=True)
class Legend:
    """Which colour and shape is which system; only HTML shows it."""

    names: Sequence[str]


@dataclass(frozen=True)
class Picture:
    """A PNG beside the report; only Markdown shows it, HTML draws charts into its tables."""

    file: str
    alt: str


@dataclass(frozen=True)
class Folded:
    """Blocks behind a line that opens them."""

    summary: str
    blocks: Sequence[Block]


@dataclass
class Section:
    """A heading and what stands under it."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


Block = Text | Items | TableBlock | Legend | Picture | Folded


def holds_words(table: TableBlock, column: int) -> bool:
    """Whether a column is to be read as words, not as numbers under each other."""
    cells = [row[column] for row in table.rows]
    texts = [cell if isinstance(cell, str) else cell.text for cell in cells]
    return not all(_NUMBER.fullmatch(text) for text in texts)
