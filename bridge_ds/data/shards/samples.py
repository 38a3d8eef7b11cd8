"""From the bytes of a sample to its fields, and what can be wrong with them. Nothing is unpickled or run."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge_ds.data.shards.tar import BadTar, members
from bridge_ds.data.text.words import is_word
from bridge_ds.errors import DataError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.reading import NotText, decoded, is_macos, json_value

__all__ = [
    "FIELDS",
    "KINDS",
    "MAPPED",
    "READ",
    "BadSample",
    "check_sample",
    "is_skipped",
    "join_members",
    "parse",
    "split_name",
]

FIELDS = ("source", "target", "prompt", "text")
"""Sample fields that are read as text."""
MAPPED = (*FIELDS, "language")
"""Sample fields that may be filled from another one: these, and the language of the source."""

READ = ("json", "txt")
"""Suffixes of members that are read."""

KINDS = ("malformed", "missing", "empty", "too_long")
"""Kinds of bad samples: no JSON object or not UTF-8 or of wrong type; a field is missing; a text is empty; a text has
more characters than `data.max_characters`."""


_META = re.compile(r"__[^/]*__($|/)")


class BadSample(DataError):
    """A sample that is as it was packed and cannot be used; `data.max_bad_samples` of them may be skipped."""

    def __init__(self, kind: str, message: str) -> None:
        """Args:
        kind: one of :data:`KINDS`.
        message: a sentence, or its end: what comes after the sample's location.
        """
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return BadSample, (self.kind, str(self))


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, as in webdataset: split at the first dot of the base name.

    >>> split_name("a/b.en.JSON")
    ('a/b', 'en.json')
    """
    folder, slash, base = name.rpartition("/")
    key, _, extension = base.partition(".")
    return folder + slash + key, extension.lower()


def parse(raw: bytes, layout: str, fields: Mapping[str, str], skip: Sequence[str] = ()) -> dict[str, Any]:
    """The fields of a sample.

    Args:
        raw: its bytes, as the shard's table gives them.
        layout: `json` or `members`.
        fields: sample field -> field in the shard, where the names differ.
        skip: suffixes (`json`, `txt`) of members that are not read.

    Raises:
        BadSample: (kind `malformed`, without the location) no JSON object, not UTF-8, or a field given twice.
    """
    if layout == "json":
        content = _object(raw)
    else:
        try:
            found = list(members(lambda at, count: raw[at : at + count], len(raw), ended=False))
        except BadTar as error:
            raise BadSample("malformed", str(error)) from None
        content = join_members(
            (split_name(member.name)[1], raw[member.start : member.start + member.size])
            for member in found
            if member.is_file and not is_skipped(member.name) and _is_read(member.name, skip)
        )
    return content | {name: content[there] for name, there in fields.items() if there in content}


def _is_read(name: str, skip: Sequence[str]) -> bool:
    """Whether a member is a `.json` or `.txt` one, of no suffix in `skip`."""
    suffix = name.lower().rpartition(".")[2]
    return "." in name and suffix in READ and suffix not in skip


def is_skipped(name: str) -> bool:
    """Whether a member is never read: `__meta__` names, which webdataset skips too, and files of macOS."""
    return bool(_META.match(name)) or is_macos(name)


def join_members(members: Iterable[tuple[str, bytes]]) -> dict[str, Any]:
    """One object from the members of a sample.

    A `.json` member gives all its fields; `NAME.txt` gives the field NAME, `.txt` alone (or as the only member, under
    any name) gives `text`. A byte-order mark and line ends at the end of a file are removed; other line ends become
    those of Unix.

    Args:
        members: (extension, content) of each.

    Raises:
        BadSample: as :func:`parse`.
    """
    pairs = list(members)
    content: dict[str, Any] = {}
    for extension, raw in pairs:
        name, _, form = extension.rpartition(".")
        if form == "json":
            found = _object(raw)
        else:
            found = {name if name and (len(pairs) > 1 or name in FIELDS) else "text": _text(raw)}
        twice = found.keys() & content.keys()
        if twice:
            raise BadSample("malformed", f"has the field `{sorted(twice)[0]}` in two members; expected it once")
        content |= found
    return content


def check_sample(sample: Any, objective: str, max_characters: int = 0) -> None:
    """Check that a sample can be trained on.

    Args:
        sample: parsed JSON.
        objective: `data.objective`.
        max_characters: longest allowed text in characters; 0 = any.

    Raises:
        BadSample: it cannot; the message comes after the sample's location (has no `target`; expected ...).
    """
    if not isinstance(sample, dict):
        raise BadSample("malformed", f"is a JSON {type(sample).__name__}; expected an object with named fields")
    kind = OBJECTIVES[objective].of(sample)
    if not (read := kind.read(sample)):
        names = " or ".join(f"`{name}`" for name in kind.one_of)
        raise BadSample("missing", f"has no {names}; the objective {objective} needs one of them")
    there = [field for field in kind.optional if sample.get(field) is not None]
    for field in dict.fromkeys((*kind.required, read, *there)):
        if field not in sample:
            names = " and ".join(f"`{name}`" for name in kind.required)
            raise BadSample("missing", f"has no `{field}`; the objective {objective} needs {names}")
        value = sample[field]
        if not isinstance(value, str):
            raise BadSample("malformed", f"has a `{field}` of type {type(value).__name__}; expected text")
        if not value.strip():
            raise BadSample("empty", f"has an empty `{field}`; expected text")
        if max_characters and len(value) > max_characters:
            raise BadSample(
                "too_long", f"has a `{field}` of {len(value)} characters; data.max_characters is {max_characters}"
            )
        if not _is_unicode(value):
            raise BadSample("malformed", f"has an unpaired surrogate in `{field}`; expected text that UTF-8 can hold")
    if objective == "prefix_lm" and is_word(sample["text"]):
        raise BadSample("empty", "has fewer than two words in `text`; a prefix and a rest need at least two")


def _object(raw: bytes) -> dict[str, Any]:
    try:
        content = json_value(raw)
    except (ValueError, RecursionError) as error:
        raise BadSample("malformed", f"is malformed JSON ({error}); expected one object") from None
    if not isinstance(content, dict):
        raise BadSample("malformed", f"is a JSON {type(content).__name__}; expected an object with named fields")
    return content


def _text(raw: bytes) -> str:
    try:
        return decoded(raw).replace("\r\n", "\n").rstrip("\r\n")
    except NotText as error:
        raise BadSample("malformed", str(error)) from None


def _is_unicode(text: str) -> bool:
    # JSON may hold "\ud800" alone; tokenizers then fail with a message that names neither sample nor reason.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
