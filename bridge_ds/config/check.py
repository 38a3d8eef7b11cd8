"""What no run could use although each value is allowed: settings that contradict each other. Nothing is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

from bridge_ds.config.build import from_dict, other_choice, to_dict
from bridge_ds.config.schema import KINDS, Config
from bridge_ds.config.schema.fields import FUNCTION
from bridge_ds.errors import ConfigError

__all__ = ["NO_PEFT", "check", "one_of"]

NO_PEFT = "lora.rank is {}, which needs the package peft; expected it to be installed; pip install 'bridge_ds[lora]'."
"""Said before anything slow begins, and where a run is loaded."""


def check(config: Config) -> None:
    """Raises ConfigError at the first value, or two values together, that no run could use."""
    from_dict(to_dict(config))
    for sentence in config.conflicts():
        raise ConfigError(sentence)
    if config.lora.rank and importlib.util.find_spec("peft") is None:
        raise ConfigError(NO_PEFT.format(config.lora.rank))
    for name in config.run.allow_changes:
        one_of("run.allow_changes", name, (key for key, kind in KINDS.items() if kind == FUNCTION))


def one_of(path: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError, offering the nearest allowed value, unless `value` is among `choices`."""
    if value not in (choices := list(choices)):
        raise ConfigError(other_choice(path, value, choices))
