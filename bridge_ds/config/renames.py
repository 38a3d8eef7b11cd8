"""Settings that had another name once. The old name is accepted wherever a config is read; only the new one is written.

A recipe or `--set` that uses an old name gets a note. Records (config.yaml, a checkpoint's manifest, config.json of an
export) are read without one.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from bridge_ds.errors import ConfigError

__all__ = ["RENAMED", "RENAMED_VALUES", "new_name", "refuse_both", "with_new_names", "with_old_names"]

RENAMED = {
    "fusion.path": "fusion.backend",
    "fusion.normalize": "fusion.state_norm",
    "mapping.calibrate": "mapping.match_embedding_rms",
    "train.clip": "train.max_grad_norm",
    "train.warmup": "train.warmup_ratio",
    "checkpoint.keep": "checkpoint.keep_last",
    "evaluation.calibrate": "evaluation.null_scores",
}
"""Old key -> key. A section keeps its name."""
RENAMED_VALUES = {("fusion.backend", "native"): "torch"}
"""Key and old value -> value. (native was the torch backend in C, for CPUs.)"""

_log = logging.getLogger(__name__)


def new_name(key: str, note: bool = False) -> str:
    """Today's name of `section.key`; with `note`, the first use of an old one is logged."""
    if note and key in RENAMED:
        _note(key)
    return RENAMED.get(key, key)


def refuse_both(keys: Iterable[str]) -> None:
    """Raises ConfigError where one setting is given under both its names."""
    given = set(keys)
    for old, new in RENAMED.items():
        if {old, new} <= given:
            raise ConfigError(f"{old} and {new} are both given, and {old} is the old name of {new}; take {old} out.")


def with_new_names(values: Mapping[str, Any], note: bool = False) -> dict[str, Any]:
    """Nested values under today's names, in the same order; values that have another name today are replaced too.

    Raises:
        ConfigError: one setting is given under both its names.
    """
    refuse_both(f"{part}.{key}" for part, keys in values.items() if isinstance(keys, Mapping) for key in keys)
    named = _with_names(values, functools.partial(new_name, note=note))
    for (key, old), value in RENAMED_VALUES.items():
        section, _, name = key.partition(".")
        if isinstance(named.get(section), Mapping) and named[section].get(name) == old:
            named[section][name] = value
    return named


def with_old_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values under the names that settings had first: for hashes that must not change with a name."""
    old = {new: old for old, new in RENAMED.items()}
    return _with_names(values, lambda key: old.get(key, key))


def _with_names(values: Mapping[str, Any], name: Any) -> dict[str, Any]:
    return {
        str(section): {name(f"{section}.{key}").partition(".")[2]: value for key, value in keys.items()}
        if isinstance(keys, Mapping)
        else keys
        for section, keys in values.items()
    }


@functools.cache
def _note(old: str) -> None:
    _log.info("note: %s is now called %s; the old name still works.", old, RENAMED[old])
