"""JSON that users and programs wrote: a value, or a ValueError that says why; never another exception."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.reading import json_object, json_value

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON, st.booleans())
def test_values_are_those_of_json(value: object, ascii: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii)
    assert json_value(text) == json_value(text.encode()) == value


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"a": "fine", "b": ["x", {"c": "\\ud83d"}]}', r"holds \ud83d, half of a surrogate pair, at character 1"),
        ('{"\\uDE00": 1}', r"holds \ude00"),
        ("[" * 101 + "]" * 101, "nested more than 100 deep"),
        ('{"a":' * 200_000, "nested more than 100 deep"),
        ('{"a": ' + "9" * 5000 + "}", "thousands of digits"),
        ('{"a": 1, "a": 2}', "has the key 'a' twice"),
        ("{", "Expecting"),
        (b"\xff{}", "utf-8"),
        ("\ud83d", "surrogates not allowed"),
    ],
)
def test_what_cannot_be_used_is_a_value_error(text: str | bytes, told: str) -> None:
    with pytest.raises(ValueError) as error:
        json_value(text)
    assert told in str(error.value)


def test_brackets_and_backslashes_within_texts_are_letters() -> None:
    for value in ("[" * 300, "\\ud83d", '"[{' * 200, "\\" * 7 + '"' + "{" * 200, "😀"):
        assert json_value(json.dumps({"a": value})) == {"a": value}
    assert json_value('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}


@pytest.mark.parametrize(
    "text", ["[1]", '{"a": NaN}', '{"a": -Infinity}', '{"a": 1e999}', '{"a": "\\ud800"}', "", "{]"]
)
def test_an_object_of_a_program_is_finite_and_whole(text: str, tmp_path: Path) -> None:
    path = tmp_path / "index.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"^is not readable as JSON \(.*\)$"):
        json_object(path)
    path.write_text('{"a": 1e3, "b": "Infinity NaN"}')
    assert json_object(path) == {"a": 1000.0, "b": "Infinity NaN"}
