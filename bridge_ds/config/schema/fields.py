"""Annotations of the schema's fields: types that read text as typed, bounds, and what a change means on resume.

Types are pydantic validators over :mod:`bridge_ds.config.text`, bounds are `annotated_types`. What they refuse becomes
one sentence in :mod:`bridge_ds.config.build`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, Predicate
from pydantic import AfterValidator, BeforeValidator, ValidationInfo

from bridge_ds.config.renames import new_name
from bridge_ds.config.text import Plain, Typed, Unusable, boolean, expanded, number, parsed, printable

__all__ = [
    "FUNCTION",
    "MOST",
    "NEITHER",
    "ORDER",
    "TRAINING",
    "Flag",
    "Keys",
    "Kind",
    "Listed",
    "NonNegativeFloat",
    "NonNegativeInt",
    "NonNegativeInts",
    "OptionalText",
    "OrNone",
    "Pair",
    "Path",
    "Paths",
    "PositiveFloat",
    "PositiveInt",
    "Probability",
    "Real",
    "Rule",
    "Section",
    "Table",
    "Text",
    "Texts",
    "Whole",
    "read_path",
]


class Kind(enum.Enum):
    """What a change of a setting means for a run that resumes."""

    FUNCTION = "function"
    """Decides what the bridge computes or what the models read: weights trained under another value mean something
    else. A run resumes with another value only where run.allow_changes names the key, and a trained bridge is used
    with the value in its checkpoint."""
    TRAINING = "training"
    """Decides how the weights are trained: a run resumes with another value, logs it and records it in the manifest of
    its checkpoints."""
    ORDER = "order"
    """Decides which sample is at which step: a run resumes with the same value alone (state.json holds it)."""
    NEITHER = "neither"
    """Paths, recording, speed and scoring. What is at a path (base models, shards) is verified by hash instead."""


FUNCTION, TRAINING, ORDER, NEITHER = Kind
MOST = 10**9
"""Most of a count (steps, samples) that costs nothing by itself; what costs memory or processes has a lower one."""
_LARGEST = 1e300
_CHARACTERS = 100_000
"""Most characters of a text, such as a system message."""
_PATH = 4096
"""Most bytes of a path or URL (Linux's PATH_MAX)."""
_NAME = 255
"""Most bytes of a name in a path (Linux's NAME_MAX)."""
_ITEMS = 10_000
"""Most values of a list or mapping."""


@dataclass(frozen=True)
class Rule(Predicate):
    """A bound that is no interval."""

    text: str = ""
    """Which values may be, after "expected"."""


def _flag(value: Any) -> bool:
    found = boolean(value) if isinstance(value, Plain) else value
    if not isinstance(found, bool):
        raise Unusable(value, "; expected true or false")
    return found


def _real(value: Any) -> float:
    found = number(value, float) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise Unusable(value, "; expected a number")
    if not -_LARGEST <= found <= _LARGEST:  # NaN is refused by it too
        raise Unusable(value, "; expected a finite number")
    return float(found)


def _whole(value: Any) -> int:
    found = number(value, int) if isinstance(value, str) else value
    if isinstance(found, bool) or not isinstance(found, int | float) or found != found // 1:
        raise Unusable(value, "; expected a whole number")
    if not -_LARGEST <= found <= _LARGEST:
        raise Unusable(value, "; expected a whole number of less than 300 digits")
    return int(found)


def _text(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unusable(value, "; expected text")
    if not isinstance(value, str) and not -_LARGEST <= value <= _LARGEST:
        raise Unusable(value, "; expected text")
    text = printable(str(value))
    if len(text) > _CHARACTERS:
        raise Unusable(value, f", {len(text):,} characters; expected at most {_CHARACTERS:,}")
    return text


def read_path(value: Any, info: ValidationInfo) -> str:
    """Text, with `~` and `$NAME` expanded if it was typed or is in a recipe."""
    text = _text(value)
    text = expanded(text) if info.context or isinstance(value, Typed) else text
    if "://" not in text and any(len(name.encode()) > _NAME for name in text.split("/")):
        raise Unusable(value, f"; expected names of at most {_NAME} bytes, which is what file systems hold")
    if len(text.encode()) > _PATH:
        raise Unusable(value, f"; expected at most {_PATH:,} bytes")
    return text


def _null(value: Any) -> Any:
    return None if isinstance(value, Typed) and value.is_null else value


def _items(value: Any) -> tuple[Any, ...]:
    """The elements of a list, or of a text with commas between them."""
    value = parsed(value)
    if isinstance(value, str) and not (isinstance(value, Typed) and value and value.is_null):
        value = [type(value)(part.strip()) for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise Unusable(value, "; expected a list such as [a, b]")
    if len(value) > _ITEMS:
        raise Unusable(value, f", {len(value):,} values; expected at most {_ITEMS:,}")
    return tuple(value)


def _pair(value: Any) -> tuple[Any, ...]:
    items = _items(value)
    if len(items) != 2:
        raise Unusable(value, "; expected 2 values")
    return items


def _table(value: Any) -> dict[str, Any]:
    value = parsed(value)
    if not isinstance(value, Mapping):
        raise Unusable(value, "; expected names with values, such as {name: value}")
    if len(value) > _ITEMS:
        raise Unusable(value, f", {len(value):,} values; expected at most {_ITEMS:,}")
    return {str(name): item for name, item in value.items()}


Flag = Annotated[bool, BeforeValidator(_flag)]
Whole = Annotated[int, BeforeValidator(_whole)]
NonNegativeInt = Annotated[Whole, Ge(0), Le(MOST)]
PositiveInt = Annotated[Whole, Ge(1), Le(MOST)]
Real = Annotated[float, BeforeValidator(_real)]
NonNegativeFloat = Annotated[Real, Ge(0), Le(1e6)]
PositiveFloat = Annotated[Real, Gt(0), Le(1e6)]
Probability = Annotated[Real, Ge(0), Lt(1)]
Pair = BeforeValidator(_pair)
Text = Annotated[str, BeforeValidator(_text)]
OrNone = BeforeValidator(_null)
OptionalText = Annotated[Text | None, OrNone]
Listed = BeforeValidator(_items)
Texts = Annotated[tuple[Text, ...], Listed]
NonNegativeInts = Annotated[tuple[NonNegativeInt, ...], Listed]
Keys = Annotated[Texts, AfterValidator(lambda keys: tuple(new_name(key) for key in keys))]
Path = Annotated[str, BeforeValidator(read_path)]
Paths = Annotated[tuple[Path, ...], Listed]
Table = BeforeValidator(_table)
Section = BeforeValidator(parsed)
