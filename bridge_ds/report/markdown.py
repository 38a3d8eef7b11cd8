"""The report as GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge_ds.report.blocks import Block, Cell, Folded, Items, Picture, Section, TableBlock, Text, holds_words

__all__ = ["markdown"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")
_KINDS = {"warning": "> **Note.** ", "note": "> "}


def markdown(title: str, sections: Sequence[Section]) -> str:
    """All sections; charts and legends are left out, pictures are linked by their file names."""
    lines = [f"# {_escape(title)}"]
    for section in sections:
        lines += ["", f"## {_escape(section.title)}"]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    # Runs of blanks and line ends would break a table's row.
    return _SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;").replace(r"\<", "&lt;")


def _block(block: Block) -> list[str]:
    if isinstance(block, Text):
        return ["", _KINDS.get(block.kind, "") + _escape(block.text)]
    if isinstance(block, Items):
        return ["", *(f"- {_escape(item)}" for item in block.items)]
    if isinstance(block, Picture):
        return ["", f"![{_escape(block.alt)}]({block.file})"]
    if isinstance(block, Folded):
        return ["", f"**{_escape(block.summary)}**", *(line for inner in block.blocks for line in _block(inner))]
    return _table(block) if isinstance(block, TableBlock) else []


def _table(table: TableBlock) -> list[str]:
    shown = [place for place, column in enumerate(table.columns) if not (isinstance(column, Cell) and column.chart)]
    columns = [_cell(table.columns[place]) for place in shown]
    ruler = ["---"] + ["---" if holds_words(table, place) else "---:" for place in shown[1:]]
    rows = [[_cell(row[place]) for place in shown] for row in table.rows]
    return ["", f"*{_escape(table.caption)}*", "", *(f"| {' | '.join(row)} |" for row in (columns, ruler, *rows))]


def _cell(cell: Cell | str) -> str:
    if isinstance(cell, str):
        return _escape(cell) or " "
    text = _escape(cell.text)
    text = f"**{text}**" if text and cell.tone else text
    small = f"({_escape(cell.small)})" if cell.small and text else _escape(cell.small)
    return f"{text} {small}".strip() or " "
