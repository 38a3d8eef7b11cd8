"""Triples become sentences by the templates of their relation and language; what cannot is one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.commands.pack import main as pack
from bridge_ds.data.packing.lines import pack_triples, triple_lines
from bridge_ds.data.packing.triples import RELATIONS, read_templates, triple_rows
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.entry import exit_status
from bridge_ds.errors import DataError

DOG = {"head": "dog", "relation": "IsA", "tail": "animal"}


def table(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_our_own_templates_hold_both_ends() -> None:
    for relation, sentence in RELATIONS.items():
        assert sentence.count("{head}") == sentence.count("{tail}") == 1, relation
    assert read_templates(None) == {"": RELATIONS}


def test_names_of_conceptnet_and_a_users_templates(tmp_path: Path) -> None:
    file = table(
        tmp_path / "k.jsonl",
        DOG,
        {"head": "/c/bo/ཁྱི/n", "relation": "/r/IsA", "tail": "/c/bo/སེམས་ཅན", "weight": 2.0},
        {"head": "/c/en/ice_cream", "relation": "/r/HasProperty", "tail": "/c/en/cold"},
        {"head": "{tail}", "relation": "PartOf", "tail": "{head}", "language": "yo"},
        {"head": "same", "relation": "Synonym", "tail": "same"},
    )
    assert list(triple_rows(file, read_templates(None))) == [
        {"text": "dog is a kind of animal."},
        {"text": "ཁྱི is a kind of སེམས་ཅན.", "language": "bo"},
        {"text": "ice cream is cold.", "language": "en"},
        {"text": "{tail} is a part of {head}.", "language": "yo"},
    ]
    own = written(
        tmp_path / "t.yaml",
        "IsA: 'every {head}: {tail}'\nbo: {IsA: '{head} {tail} རེད'}\nyo:\n  New: '{tail}, {head}'\n",
    )
    found = list(triple_lines(file, own))
    assert found[:3] == ["every dog: animal", "ཁྱི སེམས་ཅན རེད", "ice cream is cold."]
    as_json = written(tmp_path / "t.json", json.dumps({"New": "{tail}!{head}"}))
    assert list(triple_lines(table(tmp_path / "n.jsonl", DOG | {"relation": "New"}), as_json)) == ["animal!dog"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (DOG | {"relation": "Eats"}, r"k.jsonl:1 has the relation 'Eats', for which there is no template"),
        ({"head": "dog", "relation": "IsA"}, r"k.jsonl:1 has no `tail`; expected text in head, relation and tail"),
        (DOG | {"head": 3}, r"k.jsonl:1 has no text \(int\) in `head`"),
        (DOG | {"tail": " "}, r"k.jsonl:1 has no text \(str\) in `tail`"),
        ([1], r"k.jsonl:1 is a list; expected fields head, relation and tail"),
    ],
)
def test_a_triple_that_cannot_be_said(tmp_path: Path, row: Any, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        pack_triples(table(tmp_path / "k.jsonl", row), None, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("IsA: is a kind of", r"the template of IsA is 'is a kind of'; expected a sentence with \{head\} and \{tail\}"),
        ("IsA: '{head} {head} {tail}'", "once each"),
        ("IsA: '{head.x} {tail}'", "no other braces"),
        ("bo: {IsA: 3}", "the template of IsA is '3'"),
        ("- a", "has no templates; expected RELATION: sentence"),
        ("", "has no templates"),
        ("a: [", "is not readable as YAML or JSON"),
    ],
)
def test_templates_that_are_none(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        read_templates(written(tmp_path / "t.yaml", text))


def test_the_command_packs_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = table(tmp_path / "k.jsonl", DOG, DOG | {"head": "cat"}, DOG | {"head": "cow"})
    pack(["--triples", str(file), "--output", str(tmp_path / "shards"), "--limit", "2"])
    index = load_index(tmp_path / "shards")
    texts = [SampleReader(index, "denoise").read(0, row)["text"] for row in range(index.samples)]
    assert texts == ["dog is a kind of animal.", "cat is a kind of animal."]
    for words, sentence in (
        (["--triples", str(table(tmp_path / "e.jsonl"))], "the input holds no sample"),
        (["--triples", str(file), "--input", str(file)], "expected it without --input"),
        (["--input", str(file), "--templates", str(file)], "expected --triples FILE with it"),
        (["--triples", str(tmp_path / "none.jsonl")], "none.jsonl cannot be read"),
    ):
        assert exit_status(lambda words=words: pack([*words, "--output", str(tmp_path / "out")])) == 2  # type: ignore[misc]
        assert sentence in capsys.readouterr().err
    pack_triples(file, None, tmp_path / "again")
    with pytest.raises(DataError, match=r"holds the samples of k\.jsonl"):
        pack_triples(table(tmp_path / "l.jsonl", DOG), None, tmp_path / "again")
