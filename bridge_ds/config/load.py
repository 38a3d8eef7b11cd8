"""From a recipe, overrides and the command line to one frozen :class:`Config`; unknown keys are refused by name."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bridge_ds.config.build import check, flatten, from_dict, to_dict
from bridge_ds.config.changes import completed
from bridge_ds.config.files import is_file, read_text
from bridge_ds.config.renames import new_name, refuse_both, with_new_names
from bridge_ds.config.schema import Config
from bridge_ds.config.text import Typed, Unusable, expand, named, one_line, parse, parsed, short, shown
from bridge_ds.disk import write_text
from bridge_ds.errors import ConfigError
from bridge_ds.reading import NotText

__all__ = [
    "RECIPES",
    "build_config",
    "config_text",
    "flatten",
    "from_dict",
    "load_config",
    "load_run_config",
    "overridden",
    "save_config",
    "to_dict",
]

RECIPES = Path(__file__).parent / "recipes"
"""Folder of the shipped recipes; `--recipe testbed` reads testbed.yaml here."""
_BASES = 20
"""Most recipes of which each inherits from the next."""
_PARTS = 10
"""Most parts of a key with dots; the schema's deepest has five."""


def load_config(recipe: str = "testbed", overrides: Sequence[str] = ()) -> Config:
    """The recipe (a name or a path) with `key.path=value` overrides put over it, checked.

    A recipe may inherit from another, its `base` (a path relative to its folder, or a name in recipes/), key by key.

    Raises:
        ConfigError: no such recipe or base, a cycle of bases, not YAML, an unknown key, a value of the wrong type or
            out of range.
    """
    return build_config(_read_recipe(_find_recipe(recipe)), overrides, expand_paths=True)


def build_config(values: dict[str, Any], overrides: Sequence[str] = (), expand_paths: bool = False) -> Config:
    """Nested values as a recipe has them, with `key.path=value` overrides put over them, checked.

    Args:
        values: nested values.
        overrides: text is taken as typed after the first `=`; in paths `~` and `$NAME` are expanded.
        expand_paths: expand them in `values` too, as in a recipe.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    config = from_dict(_put_overrides(with_new_names(values, note=True), overrides), expand_paths)
    check(config)
    return config


def load_run_config(run: Path, overrides: Sequence[str] = ()) -> Config:
    """The resolved config.yaml of a run folder, with `key.path=value` overrides put over it; not checked.

    Raises:
        ConfigError: there is none, or as :func:`load_config`.
    """
    path = run / "config.yaml"
    if not is_file(path) and not os.path.lexists(run):
        raise ConfigError(f"there is no folder {named(run)}; expected a run folder (run.output of a training run).")
    if not is_file(path):
        raise ConfigError(
            f"{named(run)} holds no config.yaml; expected a run folder; give the run.output of a training run."
        )
    return from_dict(_put_overrides(with_new_names(completed(_read_yaml(path))), overrides))


def overridden(config: Config, overrides: Sequence[str]) -> Config:
    """The config with `key.path=value` overrides put over it; not checked.

    Raises:
        ConfigError: as :func:`load_config`.
    """
    return from_dict(_put_overrides(to_dict(config), overrides))


def save_config(config: Config, path: Path) -> None:
    """Write the resolved config as YAML that :func:`load_config` reads back; the old file is replaced whole.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, config_text(config))


def config_text(config: Config) -> str:
    """What :func:`save_config` writes."""
    text: str = yaml.dump(to_dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)
    return text


class _Dumper(yaml.SafeDumper):
    def represent_text(self, text: str) -> yaml.ScalarNode:
        """Escape line ends other than \\n, which YAML reads back as spaces."""
        style = '"' if set(text) & set("\r\x85\u2028\u2029\ufeff") else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _Dumper.represent_text)


def _find_recipe(recipe: str) -> Path:
    for path in (Path(recipe), RECIPES / f"{recipe.removesuffix('.yaml')}.yaml"):
        if is_file(path):
            return path
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.yaml")))
    raise ConfigError(f"no recipe {shown(recipe)}; expected a YAML file or one of {names}.")


def _read_recipe(path: Path, children: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Nested values of a recipe, merged over those that it inherits, without `base`.

    Args:
        children: the recipes that inherit from this one, the first one first.
    """
    values = _read_yaml(path)
    base = values.pop("base", None)
    try:
        values = with_new_names(values, note=True)
        from_dict(values)
    except ConfigError as error:
        raise ConfigError(f"{named(path)}: {error}") from None
    if base is None:
        return values
    found = _find_base(path, base)
    chain = (*children, path)
    if any(found.samefile(other) for other in chain):
        way = short(" -> ".join(str(other) for other in (*chain, found)))
        raise ConfigError(
            f"{named(path)} has base: {base}, which leads back to {named(found)} ({way}); take one `base` out."
        )
    if len(chain) > _BASES:
        raise ConfigError(
            f"{named(chain[0])} has a base that has a base, {_BASES} times; expected fewer; write a part of them out."
        )
    return _put_over(_read_recipe(found, chain), values)


def _find_base(path: Path, base: Any) -> Path:
    base = expand(f"{named(path)}: base", base) if isinstance(base, str) else base
    if isinstance(base, str):
        names = [path.parent / base, RECIPES / f"{base.removesuffix('.yaml')}.yaml"]
        for candidate in names:
            if is_file(candidate):
                return candidate
        where = f"there is neither {named(names[0])} nor {named(names[1])}"
    else:
        where = "that is no name"
    raise ConfigError(
        f"{named(path)} has base: {short(str(base)) if isinstance(base, str) else shown(base)}, but {where}; expected "
        "the path of a recipe relative to this one, or a name in recipes/."
    )


def _put_over(under: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """`under` with `values` over it: mappings key by key, everything else (lists too) replaced."""
    merged = dict(under)
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _put_over(merged[key], value) if both else value
    return merged


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse(read_text(path))
    except (yaml.YAMLError, NotText) as error:
        where = one_line(error)
        raise ConfigError(f"{named(path)} is not readable as YAML ({where}); expected keys and values.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        kind = "text" if isinstance(values, str) else f"a {type(values).__name__}"
        raise ConfigError(f"{named(path)} holds {kind}; expected keys such as `train:`.")
    return values


def _put_overrides(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    refuse_both(text.partition("=")[0].strip() for text in overrides)
    for text in overrides:
        _override(values, text)
    return values


def _override(values: dict[str, Any], text: str) -> None:
    name, sign, raw = text.partition("=")
    *parts, key = new_name(name.strip(), note=True).split(".")
    if not (sign and parts and all(parts) and key and len(parts) < _PARTS):
        raise ConfigError(f"--set {shown(text)} is not of the form part.key=value, such as train.lr=1e-3.")
    section: Any = values
    for depth, part in enumerate(parts, 1):
        if section.get(part) is None:
            section[part] = {}
        try:
            section[part] = parsed(section[part])
        except Unusable as error:
            raise ConfigError(f"{'.'.join(parts[:depth])} is {shown(error.value)}{error}.") from None
        section = section[part]
        if not isinstance(section, dict):
            raise ConfigError(f"{'.'.join(parts[:depth])} is {shown(section)}; expected keys under it.")
    section[key] = Typed(raw)
