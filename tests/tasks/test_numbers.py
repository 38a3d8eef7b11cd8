"""Numbers are found in every way in which people and models write them."""

from __future__ import annotations

import unicodedata
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.tasks.numbers import is_right, numbers, plain

ZEROS = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) == "Nd" and chr(code).isdecimal()
         and unicodedata.decimal(chr(code)) == 0]  # fmt: skip
"""Zero in each script that has decimal digits; the other nine follow it."""


def in_script(text: str, zero: str) -> str:
    return "".join(chr(ord(zero) + int(sign)) if sign.isdigit() else sign for sign in text)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is: 18", "18"),
        ("So he pays $1,200.50.", "1200.5"),
        ("= 70.000 Dollar", "70000"),
        ("1.234.567", "1234567"),
        ("1 234 und dann 1\u202f234", "1234"),
        ("12,34,567 रुपये", "1234567"),
        ("उत्तर १२ है", "12"),
        ("الجواب ۱٬۲۰۰", "1200"),
        ("٣٫٥", "3.5"),
        ("答案是１，２００。", "1200"),
        ("x = −4", "-4"),
        ("costs -$3", "-3"),
        ("10-3", "3"),
        ("3, 4, 5", "5"),
        ("0,5", "0.5"),
        ("18.0", "18"),
        ("1'000'000", "1000000"),
    ],
)
def test_written_numbers(text: str, answer: str) -> None:
    assert is_right(text, answer)
    assert not is_right(text, str(Decimal(answer) + 1))


@pytest.mark.parametrize("text", ["", "no number", ".", "-", "twelve"])
def test_no_number_is_never_right(text: str) -> None:
    assert numbers(text) == []
    assert not is_right(text, "0")


whole = st.integers(min_value=-(10**12), max_value=10**12)


@given(whole, st.sampled_from(ZEROS), st.sampled_from([",", ".", "'", "\u00a0", "\u202f", "٬", ""]))
def test_grouped_digits_of_any_script(value: int, zero: str, sign: str) -> None:
    text = f"so it is {in_script(f'{value:,}', zero).replace(',', sign)}."
    assert is_right(text, str(value))
    assert not is_right(text, str(value + 1))


@given(st.decimals(min_value=-(10**9), max_value=10**9, places=2), st.booleans())
def test_decimals_with_point_or_comma(value: Decimal, comma: bool) -> None:
    text = f"{value:,.2f}"
    text = text.translate(str.maketrans(",.", ".,")) if comma else text
    assert numbers(f"({text})")[-1][0] == value
    assert is_right(text, plain(value))


@given(st.text(), st.lists(whole, min_size=1, max_size=4))
def test_the_last_number_counts_whatever_stands_before_it(before: str, values: list[int]) -> None:
    assert is_right(before + " " + "; ".join(map(str, values)) + " .", str(values[-1]))


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    for readings in numbers(text):
        assert readings and all(reading.is_finite() for reading in readings)


@given(whole, st.integers(min_value=0, max_value=4))
def test_the_shortest_text(value: int, zeros: int) -> None:
    assert plain(Decimal(f"{value}.{'0' * zeros}") if zeros else Decimal(value)) == str(value)
