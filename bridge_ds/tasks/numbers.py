"""Numbers in generated text: digits of any script, thousands separators, signs. Pure."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

__all__ = ["answer_of", "is_right", "numbers", "plain"]

_GROUP = ",'’٬，\u00a0\u2009\u202f"
"""Separators of groups of digits (without the plain space, which also separates two numbers)."""
_POINT = ".٫．"
_DIGITS = re.compile(rf"\d+(?:[{re.escape(_GROUP + _POINT)}]\d+)*")
_MINUS = re.compile(r"(?<![^\W_])[-−－﹣][$€£¥₹]?$")
_EXPONENT = re.compile(r"\s*[-+]?[0-9]+(\.[0-9]+)?[eE][-+]?[0-9]{1,3}\s*")
_MOST = 100
"""Most digits of an answer before its point."""


def numbers(text: str) -> list[tuple[Decimal, ...]]:
    """Every number of a text, each with all its readings, the likeliest first.

    Most have one. `1.234` is 1.234 or 1234, `1,234` is 1234 or 1.234, and `0,5` is one half: languages differ in their
    decimal signs. A minus counts where no letter or digit precedes it.

    >>> numbers("between -3 and 1,234.50")
    [(Decimal('-3'),), (Decimal('1234.50'),)]
    """
    found = []
    for match in _DIGITS.finditer(text):
        negative = _MINUS.search(text[max(0, match.start() - 3) : match.start()]) is not None
        for piece in _pieces(match[0]):
            found.append(tuple(-value if negative else value for value in piece))
            negative = False
    return found


def is_right(text: str, answer: str) -> bool:
    """Whether the last number of a text is the answer in one of its readings.

    >>> is_right("so 3 x 400 = $1,200.", "1200")
    True
    """
    found, right = numbers(text), numbers(answer)
    return bool(found and right) and right[-1][0] in found[-1]


def answer_of(value: Any) -> Decimal | None:
    """A number, or the last number of a text; none for all else."""
    if isinstance(value, str) and not _EXPONENT.fullmatch(value):
        found = numbers(value)
        return found[-1][0] if found else None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    number = Decimal(str(value).strip())
    return number if number.is_finite() and number.adjusted() < _MOST else None


def plain(value: Decimal) -> str:
    """A number as its shortest text: no exponent, no trailing zeros."""
    text = f"{value:f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text in ("-0", "") else text


def _pieces(text: str) -> list[tuple[Decimal, ...]]:
    """Readings of digits with separators; a list such as `1,2,3` or `1.5.2` is several numbers."""
    parts = re.split(rf"([{re.escape(_GROUP + _POINT)}])", text)
    digits, signs = parts[::2], parts[1::2]
    kinds = ["." if sign in _POINT else "," for sign in signs]
    if not signs:
        return [(Decimal(text),)]
    if len(signs) == 1:
        return _one_sign(digits, kinds[0], signs[0])
    *front, last = signs
    if len(set(signs)) == 1 and _grouped(digits):
        return [(Decimal("".join(digits)),)]
    if len(set(front)) == 1 and last != front[0] and _grouped(digits[:-1]):
        return [(Decimal("".join(digits[:-1]) + "." + digits[-1]),)]
    return [(Decimal(part),) for part in digits]


def _one_sign(digits: list[str], kind: str, sign: str) -> list[tuple[Decimal, ...]]:
    whole, rest = digits
    broken = Decimal(f"{whole}.{rest}")
    if not _grouped(digits):
        # A comma that cannot separate groups is a decimal comma.
        return [(broken,)] if kind == "." or sign in ",，" else [(Decimal(whole),), (Decimal(rest),)]
    joined = Decimal(whole + rest)
    if kind == ".":
        return [(broken, joined)]
    return [(joined, broken)] if sign in ",，" else [(joined,)]


def _grouped(digits: list[str]) -> bool:
    """Whether these are groups of one number: of three digits, or (India) of two and the last of three."""
    first, *middle, last = digits
    if len(last) != 3 or not 1 <= len(first) <= 3 or (len(digits) == 2 and first.startswith("0")):
        return False
    return all(len(group) == 3 for group in middle) or (len(first) <= 2 and all(len(group) == 2 for group in middle))
