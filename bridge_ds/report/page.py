"""The report as one HTML page: no script, nothing loaded from elsewhere, every text of data escaped."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from importlib import resources

from bridge_ds.report.blocks import (
    Block,
    Cell,
    Chart,
    Folded,
    Items,
    Legend,
    Mark,
    Section,
    TableBlock,
    Text,
    holds_words,
)

__all__ = ["page"]

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
"""Nothing is fetched and no script runs, whatever the data holds."""
_SHAPES = (
    "M-4-4H4V4H-4Z",  # square
    "M0-5A5 5 0 1 1 0 5A5 5 0 1 1 0-5Z",  # disc
    "M0-6L6 0L0 6L-6 0Z",  # diamond
    "M0-5.5L5.5 4.5H-5.5Z",  # triangle
    "M0 5.5L5.5-4.5H-5.5Z",  # triangle, upside down
    "M-5-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",  # cross
    "M-5-5L5-5L0 0L5 5L-5 5L0 0Z",  # hourglass
)
"""Of the systems, with a colour each: nobody needs to tell the colours apart."""
_LANE = 14
"""Pixels from one value to the next."""
_PAPER = re.compile(r"arXiv (\d{4}\.\d{4,5})")


def page(title: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    style = resources.files("bridge_ds.report").joinpath("page.css").read_text(encoding="utf-8")
    numbers = itertools.count(1)
    menu = "".join(f'<li><a href="#{escape(s.anchor)}">{escape(s.title)}</a></li>' for s in sections)
    body = "".join(
        f'<section id="{escape(s.anchor)}" aria-labelledby="h-{escape(s.anchor)}">'
        f'<h2 id="h-{escape(s.anchor)}">{escape(s.title)}</h2>'
        f"{''.join(_block(block, numbers) for block in s.blocks)}</section>\n"
        for s in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n<style>\n{style}</style>\n'
        f'</head>\n<body>\n<a class="skip" href="#content">To the report</a>\n<header><h1>{escape(title)}</h1>\n'
        f'<nav aria-label="Contents"><ul>{menu}</ul></nav></header>\n'
        f'<main id="content">\n{body}</main>\n</body>\n</html>\n'
    )


def _block(block: Block, numbers: Iterator[int]) -> str:
    if isinstance(block, Text):
        kind = f' class="{block.kind}"' if block.kind else ""
        return f"<p{kind}>{_prose(block.text)}</p>\n"
    if isinstance(block, Items):
        return f"<ul>{''.join(f'<li>{_prose(item)}</li>' for item in block.items)}</ul>\n"
    if isinstance(block, Legend):
        items = "".join(f"<li>{_key(place)}{escape(name)}</li>" for place, name in enumerate(block.names))
        return f'<ul class="legend" aria-label="Systems">{items}</ul>\n'
    if isinstance(block, Folded):
        inner = "".join(_block(part, numbers) for part in block.blocks)
        return f"<details><summary>{escape(block.summary)}</summary>{inner}</details>\n"
    return _table(block, next(numbers)) if isinstance(block, TableBlock) else ""


def _prose(text: str) -> str:
    return _PAPER.sub(r'<a href="https://arxiv.org/abs/\1">arXiv \1</a>', escape(text))


def _table(table: TableBlock, number: int) -> str:
    words = [holds_words(table, column) for column in range(len(table.columns))]
    head = ""
    for column, cell in enumerate(map(_as_cell, table.columns)):
        # Over a heat map a number stands in the middle.
        is_heat = any(_as_cell(row[column]).heat is not None for row in table.rows)
        kind = _attributes(replace(cell, tone="middle") if is_heat else cell, words[column] and not is_heat)
        head += f'<th scope="col"{kind}>{_content(cell)}</th>'
    rows = "".join(_row([_as_cell(cell) for cell in row], words) for row in table.rows)
    # A table wider than the window scrolls in its own box, which the keyboard can reach, too.
    return (
        f'<div class="scroll{" compact" if table.compact else ""}" role="region" tabindex="0" '
        f'aria-labelledby="t{number}"><table><caption><span id="t{number}">{_prose(table.caption)}</span></caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _as_cell(cell: Cell | str) -> Cell:
    return cell if isinstance(cell, Cell) else Cell(cell)


def _row(cells: Sequence[Cell], words: Sequence[bool]) -> str:
    first = f'<th scope="row"{_attributes(cells[0], False)}>{_content(cells[0])}</th>'
    others = zip(cells[1:], words[1:], strict=True)
    return f"<tr>{first}{''.join(f'<td{_attributes(cell, word)}>{_content(cell)}</td>' for cell, word in others)}</tr>"


def _attributes(cell: Cell, is_word: bool) -> str:
    kinds = {"chart": cell.chart, "text": cell.is_data, "heat": cell.heat is not None, "word": is_word}
    classes = " ".join(filter(None, [cell.tone, *(name for name, holds in kinds.items() if holds)]))
    found = f' class="{classes}"' if classes else ""
    found += f' style="--heat:{100 * max(0.0, min(1.0, cell.heat)):.0f}%"' if cell.heat is not None else ""
    return found + (' dir="auto"' if cell.is_data else "")


def _content(cell: Cell) -> str:
    text = escape(cell.text)
    if not cell.is_data:
        text = text.replace("_", "_<wbr>")  # long names may be broken where they are joined
    if cell.chart:
        text += _chart(cell.chart)
    return text + (f"<small>{escape(cell.small)}</small>" if cell.small else "")


def _key(place: int) -> str:
    shape = f'<path transform="translate(7 7)" d="{_SHAPES[place % len(_SHAPES)]}"/>'
    return f'<svg class="s{place % len(_SHAPES)}" width="14" height="14" aria-hidden="true">{shape}</svg>'


def _chart(chart: Chart) -> str:
    # Places along the scale are shares of the width, so that a chart is as wide as its cell and its shapes are not
    # stretched.
    def place(value: float) -> str:
        low, high = chart.scale
        return f"{100 * min(1.0, max(0.0, (value - low) / (high - low))):.2f}%"

    height = _LANE * max(1, len(chart.marks)) + 2
    parts = []
    if chart.guide is not None:
        parts.append(f'<line class="guide" x1="{place(chart.guide)}" x2="{place(chart.guide)}" y1="0" y2="{height}"/>')
    for lane, mark in enumerate(chart.marks):
        parts.append(_mark(mark, place(mark.low), place(mark.value), place(mark.high), _LANE * lane + _LANE // 2 + 1))
    for tick in chart.ticks:
        end = "start" if tick == chart.scale[0] else "end" if tick == chart.scale[1] else "middle"
        parts.append(f'<text x="{place(tick)}" y="{height - 4}" text-anchor="{end}">{tick:g}</text>')
    said = "; ".join(f"{mark.name}: {mark.value:.1f}, {mark.low:.1f} to {mark.high:.1f}" for mark in chart.marks)
    role = f'role="img" aria-label="{escape(said)}"' if said else 'aria-hidden="true"'
    return f'<svg {role} width="100%" height="{height}">{"".join(parts)}</svg>'


def _mark(mark: Mark, low: str, value: str, high: str, y: int) -> str:
    shape = _SHAPES[mark.system % len(_SHAPES)]
    return (
        f'<g class="s{mark.system % len(_SHAPES)}"><line x1="{low}" x2="{high}" y1="{y}" y2="{y}"/>'
        f'<svg x="{value}" y="{y}" overflow="visible"><path d="{shape}"/></svg></g>'
    )
