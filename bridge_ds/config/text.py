"""Scalars as typed: the schema, and not YAML's guess, decides what `0123456`, `no` or `/d/run #2` is.

What YAML can hold and no setting needs is a yaml.YAMLError: values nested deeply, aliases that repeat a value until it
fills the memory or that lead back to where they stand, tags of Python or of dates, and keys that are not text.
"""

from __future__ import annotations

import os
import re
from typing import Any, ClassVar

import yaml

from bridge_ds.errors import ConfigError

__all__ = [
    "Plain", "Typed", "Unusable", "boolean", "expand", "expanded", "named", "number", "one_line", "parse", "parsed",
    "printable", "short", "shown",
]  # fmt: skip

_DEPTH = 20
"""Most levels of lists and mappings in YAML; the schema has five."""
_VALUES = 100_000
"""Most values in YAML, each one counted again for each alias that repeats it."""
_SHOWN = 160
"""Most characters of a value in a message."""
_UNWRITABLE = re.compile("[\0\ud800-\udfff]")

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
    """YAML with plain scalars as :class:`Plain`, null as None, and keys as text; a key twice is an error.

    Raises:
        yaml.YAMLError: not YAML, or more than a setting needs (above).
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except (ValueError, OverflowError) as error:  # PyYAML's own: "\\U00110000", %YAML 1.999...
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Values in and under a node; 0 is noted for one that is being counted, to which an alias inside it leads back."""
    if id(node) in known:
        if not known[id(node)]:
            raise yaml.composer.ComposerError(
                None, None, "an alias leads back to the value that it is in; write the value out", node.start_mark
            )
        return known[id(node)]
    known[id(node)] = 0
    under: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        under = node.value
    elif isinstance(node, yaml.MappingNode):
        under = [part for pair in node.value for part in pair]
    found = 1
    for each in under:
        found += _count(each, known)
        if found > _VALUES:
            raise yaml.composer.ComposerError(
                None, None, f"there are more than {_VALUES:,} values, aliases written out; write fewer", node.start_mark
            )
    known[id(node)] = found
    return found


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in pairs if tag.rsplit(":", 1)[-1] in ("null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors: ClassVar[dict[Any, Any]] = {}
    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Refuse what is nested deeply, before Python's own limit is reached."""
        if self._depth > _DEPTH:
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, f"values are nested more than {_DEPTH} deep", mark)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that is given twice; overriding a key merged by `<<` is allowed."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(
                        None, None, f"the key {shown(key.value)} is given twice; keep one of them", key.start_mark
                    )
                seen.add((key.tag, key.value))
        return node

    def construct_plain(self, node: Any) -> str:
        """A scalar as text, without quotation marks as :class:`Plain`."""
        value: str = self.construct_scalar(node)
        return value if node.style else Plain(value)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A mapping from texts."""
        found = super().construct_mapping(node, deep)
        if other := [key for key in found if not isinstance(key, str)]:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {shown(other[0])} is not text; put it in quotation marks", node.start_mark
            )
        return found

    def construct_other(self, node: Any) -> Any:
        """No other tag: a date, bytes or an object of Python is no setting."""
        raise yaml.constructor.ConstructorError(
            None, None, f"the tag {shown(node.tag)} has no use here; write the value without it", node.start_mark
        )


_Loader.add_constructor("tag:yaml.org,2002:null", _Loader.construct_yaml_null)  # type: ignore[type-var]
_Loader.add_constructor("tag:yaml.org,2002:seq", _Loader.construct_yaml_seq)  # type: ignore[type-var]
_Loader.add_constructor("tag:yaml.org,2002:map", _Loader.construct_yaml_map)  # type: ignore[type-var]
for _kind in ("str", "int", "float", "bool"):  # the schema reads them, whatever they are called here
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_plain)
_Loader.add_constructor(None, _Loader.construct_other)


def short(text: str, most: int = _SHOWN) -> str:
    """`text` with its middle left out where it is longer than `most` characters, for messages."""
    if len(text) <= most:
        return text
    return f"{text[: most * 3 // 4]}... ({len(text):,} characters) ...{text[-most // 4 :]}"


def one_line(error: Exception) -> str:
    """What a parser says of a text, on one line, cut."""
    words = " ".join(str(error).split())
    return short("".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in words), 300)


def shown(value: Any) -> str:
    """`repr` of a value, cut, for messages."""
    if isinstance(value, str) and len(value) > 10 * _SHOWN:
        return short(repr(str(value)))
    try:
        return short(repr(value))
    except (RecursionError, ValueError):  # nested deeply, or an integer of thousands of digits
        return f"a {type(value).__name__}"


def named(name: object) -> str:
    """A path or key in a message: cut where it is long, in quotation marks where it holds what a line cannot."""
    text = str(name)
    return text if text.isprintable() and len(text) <= _SHOWN else shown(text)


def printable(text: str) -> str:
    """`text`, which a file, a path and a request can hold.

    Raises:
        Unusable: it holds NUL or half of a surrogate pair (a name that is not UTF-8 has such halves in Python).
    """
    if found := _UNWRITABLE.search(text):
        what = "the character NUL" if found[0] == "\0" else "a byte or a character that is not UTF-8"
        raise Unusable(text, f", with {what} at position {found.start() + 1}; expected text without; take it out")
    return text


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
        raise Unusable(str(value), f", which is not readable as YAML ({one_line(error)})") from None


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
        raise ConfigError(f"{key} is {shown(error.value)}{error}.") from None


def expanded(text: str) -> str:
    """`text` with `~` at its start, `$NAME` and `${NAME}` replaced, as a shell would.

    Raises:
        Unusable: no such user or variable (a folder of that very name is not meant), or as :func:`printable`.
    """
    printable(text)

    def value_of(found: re.Match[str]) -> str:
        name = found[1].strip("{}")
        if name not in os.environ:
            raise Unusable(
                str(text),
                f", and the environment has no {named(name)}; expected a variable that is set; export it, or write "
                "the path out",
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
                f"{named(f'./{rest}')} for a folder that is called so",
            )
        rest = home
    return printable(_VARIABLE.sub(value_of, head + rest))
