"""From nested values to the typed config and back: pydantic checks them, and the first fault becomes one sentence."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from annotated_types import Ge, Gt, Le, Lt
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from bridge_ds.config.renames import RENAMED, new_name, with_new_names
from bridge_ds.config.schema import KINDS, SECTIONS, Config, metadata
from bridge_ds.config.schema.fields import FUNCTION, Rule
from bridge_ds.config.text import named, shown
from bridge_ds.errors import ConfigError

__all__ = ["adapter", "bounds", "check", "flatten", "from_dict", "offered", "one_of", "to_dict"]

_CHOICES = 12
"""Most choices that a message lists."""


def from_dict(values: Mapping[str, Any], expand_paths: bool = False) -> Config:
    """Build the typed config; keys that are absent keep their defaults.

    Args:
        values: nested values; old names are accepted.
        expand_paths: expand `~` and `$NAME` in paths, as in a recipe and not in a record (config.yaml, a manifest).
            What was typed after `--set` is always expanded.

    Raises:
        ConfigError: an unknown key (the nearest known one is offered), or a value of the wrong type or out of range.
    """
    try:
        return adapter().validate_python(with_new_names(values), context=expand_paths)
    except ValidationError as error:
        raise ConfigError(_sentence(error.errors()[0])) from None


def to_dict(config: Any) -> dict[str, Any]:
    """Plain lists, numbers and strings, ready for YAML or JSON."""
    return dataclasses.asdict(
        config, dict_factory=lambda items: {key: list(v) if isinstance(v, tuple) else v for key, v in items}
    )


def flatten(config: Config) -> dict[str, Any]:
    """`{"train.lr": 3e-5, ...}`: every key of the sections as a user types it."""
    values = to_dict(config)
    return {f"{part}.{key}": value for part in SECTIONS for key, value in values[part].items()}


@functools.cache
def adapter() -> TypeAdapter[Config]:
    """Pydantic's reader of the schema."""
    return TypeAdapter(Config)


def bounds(of: Sequence[Any]) -> str:
    """Which values the metadata of a field allow, in words; empty = all of its type."""
    for rule in of:
        if isinstance(rule, Rule):
            return rule.text
    low = max((typing.cast(Any, bound.ge) for bound in of if isinstance(bound, Ge)), default=None)
    if low is None:
        low = next((f"above {_number(bound.gt)}" for bound in of if isinstance(bound, Gt)), None)
    high = next((f"below {_number(bound.lt)}" for bound in of if isinstance(bound, Lt)), None)
    if high is None:
        most = min((typing.cast(Any, bound.le) for bound in of if isinstance(bound, Le)), default=None)
        high = None if most is None else _number(most)
    if low is None or high is None:
        return ""
    return f"{low} to {high}" if isinstance(low, str) else f"from {_number(low)} to {high}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def check(config: Config) -> None:
    """Raises ConfigError at the first value, or two values together, that no run could use. Nothing is loaded."""
    from_dict(to_dict(config))
    for sentence in config.conflicts():
        raise ConfigError(sentence)
    for name in config.run.allow_changes:
        one_of("run.allow_changes", name, (key for key, kind in KINDS.items() if kind == FUNCTION))


def one_of(key: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError, offering the nearest allowed value, unless `value` is among `choices`."""
    if value not in (choices := list(choices)):
        raise ConfigError(_other_choice(key, value, choices))


def _other_choice(key: str, value: Any, choices: Sequence[str]) -> str:
    return f"{key} is {shown(value)}; expected one of {offered(value, choices)}"


def offered(value: Any, choices: Sequence[str]) -> str:
    """The allowed values (some of them, if they are many) and the one that is nearest, to end a message."""
    near = difflib.get_close_matches(str(value), choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
    more = f", ... ({len(choices)} in all)" if len(choices) > _CHOICES else ""
    return f"{', '.join(choices[:_CHOICES])}{more}; {hint}"


def _sentence(error: ErrorDetails) -> str:
    """What was found, what was expected, what to do."""
    value, kind, loc = error["input"], error["type"], error["loc"]
    key = named(".".join(part for part in loc if isinstance(part, str)))
    if kind == "unexpected_keyword_argument":
        # A wrong section (optim.lr) is named by its first key, which says more about what was meant.
        key = f"{key}.{next(iter(value))}" if isinstance(value, Mapping) and value else key
        if "." in str(loc[-1]):
            part, _, name = str(loc[-1]).partition(".")
            return f"unknown key {shown(key)}; a file has no dots in its keys; write {named(name)} under {named(part)}."
        return f"unknown key {shown(key)}; {_nearest(key, loc)}"
    if loc[-2:] == (value, "[key]"):  # so says pydantic of a key, which it gives as the value
        where = named(".".join(part for part in loc[:-2] if isinstance(part, str)))
        return f"{where} has the key {shown(value)}{error.get('ctx', {}).get('error', '; expected text')}."
    of = metadata(loc)
    if kind == "value_error":
        fault = error["ctx"]["error"]
        return f"{key} is {shown(fault.value)}{fault}."
    if kind == "dataclass_type":
        return f"{key} is {shown(value)}; expected keys under it, such as {key}.{dataclasses.fields(of[0])[0].name}."
    if kind == "literal_error":
        return _other_choice(key, value, typing.get_args(of[0]))
    return f"{key} is {shown(value)}; expected {bounds(of)}."


def _nearest(key: str, loc: tuple[int | str, ...]) -> str:
    here = [".".join(map(str, (*loc[:-1], f.name))) for f in dataclasses.fields(metadata(loc[:-1])[0])]
    everything = [f"{section}.{f.name}" for section, of in SECTIONS.items() for f in dataclasses.fields(of)]
    # The key may be right and the section wrong (optim.lr), so names are compared over the whole schema.
    same_key = [name for name in everything if name.endswith("." + key.rsplit(".", 1)[-1])]
    near = difflib.get_close_matches(key, everything + list(SECTIONS) + here + list(RENAMED), n=1, cutoff=0.5)
    if len(loc) > 2:  # inside a mapping, whose keys no other section has
        near, same_key = difflib.get_close_matches(key, here, n=1, cutoff=0.5), []
    if same_key or near:
        return f"did you mean {new_name((same_key or near)[0])!r}?"
    return f"expected one of {', '.join(here)}."
