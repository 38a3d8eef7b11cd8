"""From a recipe, overrides and the command line to one frozen :class:`Config`; unknown keys are refused by name."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge_ds.config.check import check
from bridge_ds.config.schema import Config
from bridge_ds.errors import ConfigError
from bridge_ds.reading import NotText, decoded, yaml_value

__all__ = [
    "RECIPES",
    "build_config",
    "flatten",
    "from_dict",
    "load_config",
    "load_run_config",
    "save_config",
    "to_dict",
]

RECIPES = Path(__file__).parent / "recipes"
"""Folder of the shipped recipes; `--recipe testbed` reads testbed.yaml here."""


_RENAMED = {("fusion.path", "native"): "torch"}
"""Values of older runs and recipes -> what they are now. (native was the torch path in C, for CPUs.)"""


def load_config(recipe: str = "testbed", overrides: Sequence[str] = ()) -> Config:
    """The recipe (a name or a path) with `key.path=value` overrides put over it, checked.

    A recipe may name another as its `base` (a path relative to its own folder, or a name in recipes/): what it does not
    say itself is taken from there, key by key.

    Raises:
        ConfigError: no such recipe or base, bases in a circle, not YAML, an unknown key, a value of the wrong type or
            out of range.
    """
    return build_config(_read_recipe(_find_recipe(recipe)), overrides)


def build_config(values: dict[str, Any], overrides: Sequence[str] = ()) -> Config:
    """Nested values as a recipe has them, with `key.path=value` overrides put over them, checked.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    for text in overrides:
        _override(values, text)
    config = from_dict(values)
    check(config)
    return config


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config.yaml of a run folder, with `key.path=value` overrides put over it; not checked.

    Raises:
        ConfigError: there is none, or as :func:`load_config`.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ConfigError(f"{run} holds no config.yaml; expected a run folder; give the run.output of a training run.")
    values = _read_yaml(path)
    for text in overrides:
        _override(values, text)
    return from_dict(values)


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML that :func:`load_config` reads back."""
    import yaml

    path.write_text(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True), encoding="utf-8")


def to_dict(config: Any) -> dict[str, Any]:
    """Plain lists, numbers and strings, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        return list(value) if isinstance(value, tuple) else value

    return plain(config)


def flatten(config: Config) -> dict[str, Any]:
    """`{"train.lr": 3e-5, ...}`: every key as a user types it."""
    return {f"{part}.{key}": value for part, keys in to_dict(config).items() for key, value in keys.items()}


def from_dict(values: Mapping[str, Any]) -> Config:
    """Build the typed config; keys that are absent keep their defaults.

    Raises:
        ConfigError: an unknown key (the nearest known one is offered) or a value of the wrong type.
    """
    return _build(Config, values, "")


def _build(kind: type, values: Mapping[str, Any], prefix: str) -> Any:
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
            built[key] = _build(typing.cast(type, hint), value, f"{path}.")
        else:
            built[key] = _convert(path, _RENAMED.get((path, str(value)), value), hint)
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


def _convert(path: str, value: Any, hint: Any) -> Any:
    """`value` as the schema's type; YAML's own types decide, plus 1e-3 (a string to YAML 1.1) and lists for tuples."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        return _convert(path, value, next(o for o in options if o is not type(None)))
    if origin is dict:
        return _mapping(path, value, options[1])
    if origin is tuple:
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path} is {value!r}; expected a list such as [a, b].")
        if options[-1] is not ... and len(value) != len(options):
            raise ConfigError(f"{path} has {len(value)} values; expected {len(options)}.")
        return tuple(_convert(path, item, options[0]) for item in value)
    if hint is bool and isinstance(value, bool):
        return value
    if hint is str and isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if hint in (int, float) and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = None
        if number is not None and (hint is float or number.is_integer()):
            return hint(number)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    raise ConfigError(f"{path} is {value!r}; expected {names[hint]}.")


def _mapping(path: str, value: Any, hint: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {value!r}; expected names with values, such as {{name: value}}.")
    if not dataclasses.is_dataclass(hint):
        return {str(name): _convert(f"{path}.{name}", item, hint) for name, item in value.items()}
    for name, item in value.items():
        if not isinstance(item, Mapping):
            raise ConfigError(
                f"{path}.{name} is {item!r}; expected keys under it, such as {path}.{name}.{_first(hint)}."
            )
    return {str(name): _build(typing.cast(type, hint), item, f"{path}.{name}.") for name, item in value.items()}


def _find_recipe(recipe: str) -> Path:
    path = Path(recipe)
    if path.is_file():
        return path
    shipped = RECIPES / f"{recipe.removesuffix('.yaml')}.yaml"
    if shipped.is_file():
        return shipped
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise ConfigError(f"no recipe {recipe!r}; expected a YAML file or one of {names}.")


def _read_recipe(path: Path, heirs: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Nested values of a recipe, what it inherits put under its own; `base` itself is gone.

    Args:
        heirs: the recipes that led here, the first one first.
    """
    values = _read_yaml(path)
    base = values.pop("base", None)
    try:
        from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    if base is None:
        return values
    found = _find_base(path, base)
    chain = (*heirs, path)
    if any(found.samefile(other) for other in chain):
        way = " -> ".join(str(other) for other in (*chain, found))
        raise ConfigError(f"{path} has base: {base}, which leads back to {found} ({way}); take one `base` out.")
    return _put_over(_read_recipe(found, chain), values)


def _find_base(path: Path, base: Any) -> Path:
    names = [path.parent / str(base), RECIPES / f"{str(base).removesuffix('.yaml')}.yaml"]
    for place in names:
        if isinstance(base, str) and place.is_file():
            return place
    raise ConfigError(
        f"{path} has base: {base}, but there is neither {names[0]} nor {names[1]}; expected the path of a recipe "
        "relative to this one, or a name in recipes/."
    )


def _put_over(under: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with `values` over it: mappings key by key, all else (lists too) whole."""
    merged = dict(under)
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _put_over(merged[key], value) if both else value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml_value(decoded(path.read_bytes())) or {}
    except (yaml.YAMLError, NotText) as error:
        where = " ".join(str(error).split())
        raise ConfigError(f"{path} is not readable as YAML ({where}); expected keys and values.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds {type(values).__name__}; expected keys such as `train:`.")
    return values


def _override(values: dict[str, Any], text: str) -> None:
    import yaml

    name, sign, raw = text.partition("=")
    *parts, key = name.strip().split(".")
    if not (sign and parts and all(parts) and key):
        raise ConfigError(f"--set {text!r} is not of the form part.key=value, such as train.lr=1e-3.")
    try:
        value = yaml.safe_load(raw) if raw else ""
    except yaml.YAMLError:
        value = raw
    section: Any = values
    for depth, part in enumerate(parts, 1):
        if section.get(part) is None:
            section[part] = {}
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{'.'.join(parts[:depth])} is {section!r}; expected keys under it.")
    section[key] = value
