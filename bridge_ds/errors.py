"""User errors. Each message is one sentence: what was found, what was expected, what to do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

__all__ = [
    "EXIT_HUNG",
    "EXIT_LOST",
    "EXIT_PREEMPTED",
    "EXIT_USER_ERROR",
    "BridgeError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "LaunchError",
    "Preempted",
    "TrainingError",
    "brief",
    "last_words",
]

EXIT_USER_ERROR = 2
"""Exit status of every command that ends with a :class:`BridgeError`."""
EXIT_PREEMPTED = 75
"""Exit status of a preempted run that has saved a checkpoint: start it again."""
EXIT_LOST = 74
"""Exit status of a rank whose collective broke because another rank is gone."""
EXIT_HUNG = 70
"""Exit status after the watchdog has found a hang."""


class BridgeError(Exception):
    """A user error. Commands print its message without a traceback and exit with 2."""


class ConfigError(BridgeError):
    """A recipe, an override or a DeepSpeed file holds a key or a value that cannot be used."""


class DataError(BridgeError):
    """A shard, an index or a sample is missing, damaged, or differs from its index."""


class CheckpointError(BridgeError):
    """A checkpoint is absent, damaged, or belongs to another run or other base models."""


class LaunchError(BridgeError):
    """The processes were started in a way that cannot work (ranks, batch sizes, devices, folders)."""


class TrainingError(BridgeError):
    """Training failed in a way that a restart would repeat (a loss that is not finite)."""


class Preempted(Exception):
    """All ranks have agreed to stop early (a signal asked for it); a checkpoint is saved if one could be."""


def brief(error: object, most: int = 200) -> str:
    """What a library said, on one line, its first `most` characters: for a sentence in parentheses."""
    return " ".join(str(error).split())[:most]


def last_words(text: str, status: int) -> None:
    """Write the exit status and the final message of a run to the file BRIDGE_DS_LAST_WORDS, if that is set.

    The job script reads it: the launcher ends the other ranks by signals, so its own exit status is not ours, and its
    lines about them come last in the job's log.
    """
    if os.environ.get("BRIDGE_DS_LAST_WORDS"):
        with contextlib.suppress(OSError):
            Path(os.environ["BRIDGE_DS_LAST_WORDS"]).write_text(f"{status}\n{text}\n", encoding="utf-8")
