"""The errors a user can cause. Each message is one sentence: what was found, what was expected, what to do."""

from __future__ import annotations

__all__ = [
    "EXIT_USER_ERROR",
    "BridgeError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LaunchError",
    "TrainingError",
]

EXIT_USER_ERROR = 2
"""Exit status of every command that ends with a :class:`BridgeError`."""


class BridgeError(Exception):
    """A fault that the user can mend. Entry points print its message without a traceback and exit with 2."""


class ConfigError(BridgeError):
    """A recipe, an override or a DeepSpeed file holds a key or a value that cannot be used."""


class DataError(BridgeError):
    """A shard, an index or a sample is missing, damaged, or not what its index promises."""


class CheckpointError(BridgeError):
    """A checkpoint is absent, damaged, or belongs to another run or other base models."""


class LaunchError(BridgeError):
    """The processes were started in a way that cannot work (ranks, batch sizes, devices, folders)."""


class TrainingError(BridgeError):
    """Training itself went wrong in a way that repeating would repeat (a loss that is not a number)."""
