"""JSON of a fixed shape (checkpoints, exports, predictions, metrics): typed, or a ValueError that names the key.

A shape is a dataclass. Types are strict: no text where a number belongs, no true or false either.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from annotated_types import Ge, Le, Predicate

from bridge_ds.reading import BOM, decoded, json_value

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from pydantic_core import ErrorDetails

__all__ = ["CLOSED", "Count", "FileName", "Share", "is_file_name", "typed", "typed_object", "typed_value"]

_Shape = TypeVar("_Shape")

CLOSED: Any = {"extra": "forbid"}
"""`__pydantic_config__` of a shape without other keys."""
Count = Annotated[int, Ge(0), Le(2**53)]
"""A number of steps, samples, tokens or bytes, which a float holds too."""
Share = Annotated[float, Ge(0), Le(1)]
"""0 to 1; not NaN."""
_MOST_BYTES = 2**27
_SHOWN = 60


def is_file_name(text: str) -> bool:
    """Whether a text can name a file or folder, and is no path to it."""
    return text not in ("", ".", "..") and not set(text) & set("/\\\0")


FileName = Annotated[str, Predicate(is_file_name)]
"""Of a file or folder, without a path that leads to it."""


def typed(text: str, shape: type[_Shape]) -> _Shape:
    """JSON text as `shape`.

    Raises:
        ValueError: it is not such JSON, or of another shape; the message can follow a file's name.
    """
    return _both(text, shape)[1]


def typed_value(text: str, shape: type[Any]) -> Any:
    """The value of a JSON text whose known keys are as in `shape`; other keys are kept unless it is CLOSED.

    Raises:
        ValueError: as :func:`typed`.
    """
    return _both(text, shape)[0]


def typed_object(path: Path, shape: type[Any]) -> dict[str, Any]:
    """:func:`typed_value` of a file, for a shape that is an object.

    Raises:
        ValueError: not such JSON, or of another shape; the message completes a sentence that begins with the file.
        OSError: it cannot be opened or read.
    """
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"has {size} bytes; expected at most {_MOST_BYTES}")
    return typed_value(decoded(path.read_bytes()), shape)  # type: ignore[no-any-return]


def _both(text: str, shape: type[_Shape]) -> tuple[Any, _Shape]:
    from pydantic import ValidationError

    text = text.removeprefix(BOM)
    try:
        value = json_value(text)  # pydantic's own reader takes a key twice, and other things that are refused there
    except ValueError as error:
        raise ValueError(f"is not readable as JSON ({error})") from None
    try:
        return value, _adapter(shape).validate_json(text, strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ValueError(_fault(error.errors(include_url=False)[0])) from None


@functools.cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter  # not where --help is shown

    return TypeAdapter(shape)


def _fault(error: ErrorDetails) -> str:
    key, kind, value = ".".join(map(str, error["loc"])), error["type"], error["input"]
    if kind == "missing":
        return f"has no {key}"
    if kind == "unexpected_keyword_argument":
        return f"has the unknown key {key}"
    expected = error["msg"].removeprefix("Input should be ").replace("String should match", "a text of the")
    if not key:
        return f"holds {type(value).__name__}; expected {expected}"
    if kind.startswith(("greater", "less")):
        expected = f"a number {expected}"
    elif kind == "predicate_failed":
        expected = "a name without a folder"
    shown = repr(value)
    return f"has {key} {shown if len(shown) <= _SHOWN else shown[:_SHOWN] + ' ...'}; expected {expected}"
