"""What a recorded config means where it lacks a key, and what a run that continues from it takes from there.

A setting that was added later has a default for new runs. Runs from before it may have done something else, which is
what a record without the key means.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from bridge_ds.config.schema import Config, DataConfig

__all__ = ["BEFORE", "completed", "followed"]

BEFORE: dict[str, dict[str, Any]] = {"data": {"bos": "unless_eos"}}
"""Section -> key -> what runs did before the key existed, where that is not the key's default."""
_OPEN = ("bos", "target_space")
"""Keys of `data` whose default, auto, means the recorded value where a run continues from a record."""


def completed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested values of a recorded config, with those of :data:`BEFORE` where a key is absent."""
    found = dict(values)
    for part, before in BEFORE.items():
        there = {} if found.get(part) is None else found[part]
        found[part] = {**before, **there} if isinstance(there, Mapping) else there
    return found


def followed(config: Config, recorded: Mapping[str, Any]) -> Config:
    """The config of a run that continues from a checkpoint, or begins with its weights: `auto` is what was recorded.

    Args:
        config: of the run that starts.
        recorded: nested values of the config in the checkpoint's manifest.
    """
    theirs = completed(recorded)["data"]
    open_ = [key for key in _OPEN if getattr(config.data, key) == "auto"]
    defaults = DataConfig()
    return replace(config, data=replace(config.data, **{key: theirs.get(key, getattr(defaults, key)) for key in open_}))
