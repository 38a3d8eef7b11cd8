"""From nested values to the typed config: unknown keys are refused by name, and the schema says what a scalar is."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any

from bridge_ds.config.schema import Config
from bridge_ds.config.text import Plain, Typed, boolean, expand, is_path, number
from bridge_ds.errors import ConfigError

__all__ = ["from_dict", "parsed"]

_RENAMED = {("fusion.backend", "native"): "torch"}
"""Values of older runs and recipes -> what they are now. (native was the torch path in C, for CPUs.)"""


def from_dict(values: Mapping[str, Any], expand_paths: bool = False) -> Config:
    """Build the typed config; keys that are absent keep their defaults.

    Args:
        values: nested values. Of a record (config.yaml, a manifest) paths are taken as they stand.
        expand_paths: replace `~` and `$NAME` in paths; in what was typed after `--set` they always are.

    Raises:
        ConfigError: an unknown key (the nearest known one is offered) or a value of the wrong type.
    """
    return _build(Config, values, "", expand_paths)


def _build(kind: type, values: Mapping[str, Any], prefix: str, expand_paths: bool) -> Any:
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    built = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if key not in known:
            # A wrong part (optim.lr) is named by its first key, which says more about what was meant.
            path = f"{path}.{next(iter(value))}" if isinstance(value, Mapping) and value else path
            raise ConfigError(f"unknown key {path!r}; {_nearest(path, prefix, known)}.")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path} is {value!r}; expected keys under it, such as {path}.{_first(hint)}.")
            built[key] = _build(typing.cast(type, hint), value, f"{path}.", expand_paths)
        else:
            built[key] = _convert(path, _RENAMED.get((path, str(value)), value), hint, expand_paths)
    return kind(**built)


def _first(kind: Any) -> str:
    return dataclasses.fields(kind)[0].name


def _nearest(path: str, prefix: str, known: list[str]) -> str:
    # The key may be right and the part wrong (optim.lr), so names are compared over the whole schema.
    parts = {f.name: f.default_factory for f in dataclasses.fields(Config)}
    everything = [f"{part}.{f.name}" for part, made in parts.items() for f in dataclasses.fields(made)]  # type: ignore[arg-type]
    here = [prefix + name for name in known]
    near = difflib.get_close_matches(path, everything + list(parts) + here, n=1, cutoff=0.5)
    last = path.rsplit(".", 1)[-1]
    same_key = [name for name in everything if name.endswith("." + last)]
    if prefix.count(".") > 1:  # inside a mapping, whose keys no other part has
        near, same_key = difflib.get_close_matches(path, here, n=1, cutoff=0.5), []
    if same_key or near:
        return f"did you mean {(same_key or near)[0]!r}?"
    return f"expected one of {', '.join(here)}"


def _convert(path: str, value: Any, hint: Any, expand_paths: bool) -> Any:
    """`value` as the schema's type. A scalar without quotation marks is what the type makes of its letters."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None or (isinstance(value, Typed) and value.is_null):
            return None
        return _convert(path, value, next(o for o in options if o is not type(None)), expand_paths)
    if origin is dict:
        return _mapping(path, value, options[1], expand_paths)
    if origin is tuple:
        value = _items(path, value)
        if options[-1] is not ... and len(value) != len(options):
            raise ConfigError(f"{path} has {len(value)} values; expected {len(options)}.")
        return tuple(_convert(path, item, options[0], expand_paths) for item in value)
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        mine = is_path(path) and (expand_paths or isinstance(value, Typed))
        return expand(path, str(value)) if mine else str(value)
    found = _scalar(value, hint)
    if found is not None:
        return found
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise ConfigError(f"{path} is {value!r}; expected {names[hint]}.")


def _scalar(value: Any, hint: Any) -> bool | int | float | None:
    """A truth value or a number; none where `value` is neither of the kind that is wanted."""
    if isinstance(value, str) and hint is bool:
        return boolean(value) if isinstance(value, Plain) else None
    if isinstance(value, str) and hint is not str:
        return number(value, hint)
    if isinstance(value, bool):
        return value if hint is bool else None
    if isinstance(value, int | float) and hint is not bool:
        return hint(value) if hint is float or value == value // 1 else None
    return None


def _items(path: str, value: Any) -> list[Any]:
    """The elements of a list, or of a text with commas between them."""
    value = parsed(path, value)
    if isinstance(value, str) and not (isinstance(value, Typed) and value and value.is_null):
        kind = type(value)
        value = [kind(part.strip()) for part in value.split(",") if part.strip()]
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{path} is {value!r}; expected a list such as [a, b].")
    return list(value)


def parsed(path: str, value: Any) -> Any:
    """What was typed, where a list or names with values are wanted; all else as it is.

    Raises:
        ConfigError: brackets that are not closed, and the like.
    """
    import yaml

    if not isinstance(value, Typed):
        return value
    try:
        return value.parsed()
    except yaml.YAMLError as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path} is {str(value)!r}, which is not readable as YAML ({where}).") from None


def _mapping(path: str, value: Any, hint: Any, expand_paths: bool) -> dict[str, Any]:
    value = parsed(path, value)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}; expected names with values, such as {{name: value}}.")
    if not dataclasses.is_dataclass(hint):
        return {str(name): _convert(f"{path}.{name}", item, hint, expand_paths) for name, item in value.items()}
    value = {str(name): parsed(f"{path}.{name}", item) for name, item in value.items()}
    for name, item in value.items():
        if not isinstance(item, Mapping):
            raise ConfigError(
                f"{path}.{name} is {item!r}; expected keys under it, such as {path}.{name}.{_first(hint)}."
            )
    of = typing.cast(type, hint)
    return {name: _build(of, item, f"{path}.{name}.", expand_paths) for name, item in value.items()}
