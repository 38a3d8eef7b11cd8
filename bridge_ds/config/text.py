"""Scalars as typed: the schema, and not YAML's guess, decides what `0123456`, `no` or `/d/run #2` is."""

from __future__ import annotations

import os
import re
from typing import Any

import yaml

from bridge_ds.errors import ConfigError

__all__ = ["Plain", "Typed", "Unusable", "boolean", "expand", "expanded", "number", "parse", "parsed"]

_BOOLEANS = {
    form: value
    for word, value in {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}.items()
    for form in (word, word.capitalize(), word.upper())
}
_NULLS = ("", "~", "null", "Null", "NULL")
_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


class Unusable(ValueError):
    """A value that a setting cannot take. The text follows `KEY is VALUE` in the message."""

    def __init__(self, value: Any, text: str) -> None:
        super().__init__(text)
        self.value = value


class Plain(str):
    """A scalar without quotation marks in YAML, as typed."""

    def __repr__(self) -> str:
        """As YAML would read it, for messages: numbers and truth values without quotation marks."""
        known = boolean(self)
        if known is not None:
            return str(known)
        return str(self) if number(self, float) is not None else str.__repr__(self)


class Typed(Plain):
    """What follows `key=` on a command line, as typed."""

    @property
    def is_null(self) -> bool:
        """Whether it means none, where a setting may be none."""
        return self in _NULLS


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(item) for item in value]
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    return Typed(value) if isinstance(value, str) else value


def parse(text: str) -> Any:
    """YAML with plain scalars as :class:`Plain`, and null as None; a key twice is an error. Raises yaml.YAMLError."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if tag.rsplit(":", 1)[-1] in ("null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Reject a key that is given twice; overriding a key merged by `<<` is allowed."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {key.value!r} is given twice; keep one of them", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def construct_plain(self, node: Any) -> str:
        """A scalar as text, without quotation marks as :class:`Plain`."""
        value: str = self.construct_scalar(node)
        return value if node.style else Plain(value)


_Loader.add_constructor("tag:yaml.org,2002:str", _Loader.construct_plain)


def parsed(value: Any) -> Any:
    """A list or mapping that was typed in YAML's brackets, with :class:`Typed` elements; other values as they are.

    Raises:
        Unusable: brackets that are not closed, and the like.
    """
    if not (isinstance(value, Typed) and value.lstrip().startswith(("[", "{"))):
        return value
    try:
        return _typed(parse(value))
    except yaml.YAMLError as error:
        raise Unusable(str(value), f", which is not readable as YAML ({' '.join(str(error).split())})") from None


def boolean(text: str) -> bool | None:
    """YAML 1.1's words for yes and no; none for others."""
    return _BOOLEANS.get(text)


def number(text: str, kind: type) -> float | int | None:
    """A number as people and YAML write it (1e-3, 1_000, .5, .inf); none for all else, and for a fraction as an int."""
    text = text.strip()
    if re.fullmatch(r"[-+]?\.(inf|nan)", text, re.IGNORECASE):
        text = text.replace(".", "")
    try:
        if kind is int and re.fullmatch(r"[-+]?[\d_]+", text):
            return int(text)  # not by way of a float, which has 53 bits
        value = float(text)
    except ValueError:
        return None
    if kind is float:
        return value
    return int(value) if value.is_integer() else None


def expand(key: str, text: str) -> str:
    """As :func:`expanded`, for the text of a setting or an option. Raises ConfigError, which names `key`."""
    try:
        return expanded(text)
    except Unusable as error:
        raise ConfigError(f"{key} is {error.value!r}{error}.") from None


def expanded(text: str) -> str:
    """`text` with `~` at its start, `$NAME` and `${NAME}` replaced, as a shell would.

    Raises:
        Unusable: no such user or variable; a folder of that very name is not meant.
    """

    def value_of(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        if name not in os.environ:
            raise Unusable(
                str(text),
                f", and the environment has no {name}; expected a variable that is set; export it, or write the path "
                "out",
            )
        return os.environ[name]

    scheme = re.match(r"(?:sqlite|file):///(?=~)", text)  # a URI with a path of the user's own
    start = scheme.end() if scheme else 0
    head, rest = text[:start], text[start:]
    if rest.startswith("~"):
        home = os.path.expanduser(rest)
        if home == rest:
            raise Unusable(
                str(text),
                ", and there is no user of that name; expected ~ or ~USER before a path; write "
                f"./{rest} for a folder that is called so",
            )
        rest = home
    return _VARIABLE.sub(value_of, head + rest)
