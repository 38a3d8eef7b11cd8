"""What a run has recorded of its settings, and what a run that goes on from it takes from there. Pure.

A setting that came later has a default for new runs. A run that was made before it did something, too, which may be
something else: where a record lacks the key, that holds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bridge_ds.config.schema import Config, DataConfig

__all__ = ["BEFORE", "completed", "followed"]

BEFORE: dict[str, dict[str, Any]] = {"data": {"bos": "unless_eos"}}
"""Part -> key -> what runs did before the key existed, where that is not the key's default."""
_OPEN = ("bos", "target_space")
"""Keys of `data` whose default, auto, means what the run has that is gone on from."""


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a recorded config, those of :data:`BEFORE` put where it has none."""
    found = dict(values)
    for part, before in BEFORE.items():
        there = {} if found.get(part) is None else found[part]
        found[part] = {**before, **there} if isinstance(there, Mapping) else there
    return found


def followed(config: Config, recorded: Mapping[str, Any]) -> Config:
    """The config of a run that goes on from another one's weights: what it leaves open is what that one had.

    Args:
        config: of the run that starts.
        recorded: nested values of the other's config, as its checkpoint holds them.
    """
    theirs = completed(recorded)["data"]
    open_ = [key for key in _OPEN if getattr(config.data, key) == "auto"]
    defaults = DataConfig()
    return replace(config, data=replace(config.data, **{key: theirs.get(key, getattr(defaults, key)) for key in open_}))
