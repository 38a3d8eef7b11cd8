"""Triples of a knowledge graph as sentences, by a template for each relation (arXiv 2502.10140)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from bridge_ds.config.files import read_text
from bridge_ds.config.text import named, one_line, parse
from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.errors import DataError
from bridge_ds.reading import NotText

__all__ = ["RELATIONS", "Templates", "read_templates", "triple_rows"]

RELATIONS: Mapping[str, str] = {
    "Antonym": "{head} is the opposite of {tail}.",
    "AtLocation": "{head} can be found at {tail}.",
    "CapableOf": "{head} can {tail}.",
    "Causes": "{head} causes {tail}.",
    "CausesDesire": "{head} makes one want {tail}.",
    "CreatedBy": "{head} is created by {tail}.",
    "DefinedAs": "{head} is defined as {tail}.",
    "DerivedFrom": "{head} comes from the word {tail}.",
    "Desires": "{head} wants {tail}.",
    "DistinctFrom": "{head} is not the same as {tail}.",
    "Entails": "{head} implies {tail}.",
    "EtymologicallyDerivedFrom": "the word {head} was formed from {tail}.",
    "EtymologicallyRelatedTo": "the words {head} and {tail} have the same origin.",
    "FormOf": "{head} is a form of the word {tail}.",
    "HasA": "{head} has {tail}.",
    "HasContext": "{head} is a word of {tail}.",
    "HasFirstSubevent": "{head} begins with {tail}.",
    "HasLastSubevent": "{head} ends with {tail}.",
    "HasPrerequisite": "{head} needs {tail} first.",
    "HasProperty": "{head} is {tail}.",
    "HasSubevent": "{head} includes {tail}.",
    "InstanceOf": "{head} is an example of {tail}.",
    "IsA": "{head} is a kind of {tail}.",
    "LocatedNear": "{head} is found near {tail}.",
    "MadeOf": "{head} is made of {tail}.",
    "MannerOf": "{head} is a way of {tail}.",
    "MotivatedByGoal": "one does {head} for the sake of {tail}.",
    "NotCapableOf": "{head} cannot {tail}.",
    "NotDesires": "{head} does not want {tail}.",
    "NotHasProperty": "{head} is not {tail}.",
    "ObstructedBy": "{head} is hindered by {tail}.",
    "PartOf": "{head} is a part of {tail}.",
    "ReceivesAction": "{head} can be {tail}.",
    "RelatedTo": "{head} is related to {tail}.",
    "SimilarTo": "{head} is similar to {tail}.",
    "SymbolOf": "{head} is a symbol of {tail}.",
    "Synonym": "{head} means the same as {tail}.",
    "UsedFor": "{head} is used for {tail}.",
}
"""Relations of ConceptNet, read in its direction (head before tail), in words of ours."""
Templates = Mapping[str, Mapping[str, str]]
"""Language, or empty for all -> relation -> sentence with `{head}` and `{tail}`."""

_FIELDS = ("head", "relation", "tail")
_BRACES = re.compile(r"\{[^{}]*\}")
_SHOWN = 80
"""Most characters of a relation in a message."""


def read_templates(file: Path | None) -> Templates:
    """Those of a user's YAML or JSON file over our own: `RELATION: sentence`, or `LANGUAGE: {RELATION: sentence}`.

    Args:
        file: None = our own, in English.

    Raises:
        ConfigError: the file cannot be read.
        DataError: it is no such file, or a sentence lacks `{head}` or `{tail}`.
    """
    own: dict[str, dict[str, str]] = {"": dict(RELATIONS)}
    if file is None:
        return own
    try:
        values = parse(read_text(file))
    except (yaml.YAMLError, NotText) as error:
        raise DataError(f"{named(file)} is not readable as YAML or JSON ({one_line(error)}); correct it.") from None
    if not isinstance(values, dict) or not values:
        raise DataError(f"{named(file)} has no templates; expected RELATION: sentence with {{head}} and {{tail}}.")
    for key, value in values.items():
        of = value if isinstance(value, dict) else {key: value}
        place = own.setdefault(str(key) if isinstance(value, dict) else "", {})
        for relation, sentence in of.items():
            if not isinstance(sentence, str) or sorted(_BRACES.findall(sentence)) != ["{head}", "{tail}"]:
                raise DataError(
                    f"{named(file)}: the template of {relation} is {str(sentence)[:_SHOWN]!r}; expected a sentence "
                    "with {head} and {tail}, once each, and no other braces; correct it."
                )
            place[str(relation)] = str(sentence)
    return own


def triple_rows(file: Path, templates: Templates) -> Iterator[dict[str, Any]]:
    """Each triple of a jsonl (csv, tsv, parquet) as a sentence: `text`, and `language` where it has one.

    Names as ConceptNet writes them (`/r/IsA`, `/c/bo/some_word/n`) are read too; its language is then the triple's. A
    triple whose head is its tail is left out, as in the paper's code.

    Args:
        file: its rows hold `head`, `relation` and `tail`, perhaps `language`, and other fields, which nothing reads.
        templates: of :func:`read_templates`.

    Raises:
        DataError: it cannot be read, a field is missing or no text, or a relation has no template.
    """
    for part in file_parts([file]):
        for where, row in part_rows(part):
            head, relation, tail = _fields(where, row)
            language = row.get("language") or _language(head)
            relation, head, tail = relation.removeprefix("/r/"), _words(head), _words(tail)
            sentence = templates.get(str(language or ""), {}).get(relation) or templates[""].get(relation)
            if sentence is None:
                raise DataError(
                    f"{where} has the relation {relation[:_SHOWN]!r}, for which there is no template; expected one of "
                    "ConceptNet's, such as IsA, or one of --templates FILE; add it there."
                )
            if head != tail:
                text = _BRACES.sub(lambda match: head if match[0] == "{head}" else tail, sentence)  # noqa: B023
                yield {"text": text} | ({"language": language} if language else {})


def _fields(where: str, row: Any) -> tuple[str, str, str]:
    if not isinstance(row, dict):
        raise DataError(f"{where} is a {type(row).__name__}; expected fields head, relation and tail; correct it.")
    for name in _FIELDS:
        if not isinstance(row.get(name), str) or not row[name].strip():
            found = "no" if row.get(name) is None else f"no text ({type(row[name]).__name__}) in"
            raise DataError(f"{where} has {found} `{name}`; expected text in head, relation and tail; correct it.")
    head, relation, tail = (row[name].strip() for name in _FIELDS)
    return head, relation, tail


def _language(head: str) -> str:
    """Of a name of ConceptNet's; empty = it is none."""
    parts = head.split("/")
    return parts[2] if head.startswith("/c/") and len(parts) > 3 else ""


def _words(name: str) -> str:
    return name.split("/")[3].replace("_", " ") if _language(name) else name
