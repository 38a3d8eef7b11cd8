"""Which checkpoint of a run is the best: by the loss on held-out samples, where there is one, else by training's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint import layout
from bridge_ds.errors import CheckpointError

__all__ = ["BEST", "VALIDATION_LOSS", "VALIDATION_TOKENS", "find_folder", "ranked"]

BEST = "best"
"""`RUN/checkpoints/best` names the best checkpoint of a run wherever a checkpoint's folder is expected."""
VALIDATION_LOSS = "validation_loss"
"""Key of it in a step's record and in state.json."""
VALIDATION_TOKENS = "validation_tokens"
"""Key of the number of target tokens that it is the mean of."""


def ranked(folders: Sequence[Path]) -> list[Path]:
    """Checkpoints by their loss in state.json, the best first; those without one are skipped.

    Where some have a validation loss it counts, and those without are skipped: a training loss is of other samples. So
    is a validation loss over another number of tokens than the newest's: `train.validation_samples` may change. Equal
    ones keep their order.

    Args:
        folders: newest first.
    """
    states = [(path, _state(path)) for path in folders]
    validated = [(path, state) for path, state in states if _is_number(state, VALIDATION_LOSS)]
    tokens = validated[0][1].get(VALIDATION_TOKENS) if validated else None
    by_validation = [
        (state[VALIDATION_LOSS], path) for path, state in validated if state.get(VALIDATION_TOKENS) == tokens
    ]
    trained = [(path, state) for path, state in states if _is_number(state, "loss")]
    # That of a checkpoint between regular saves, where a run was stopped, is of fewer steps: a lucky one would win.
    regular = [(path, state) for path, state in trained if layout.LOSS_STEPS not in state]
    by_training = [(state["loss"], path) for path, state in regular or trained]
    return [path for _, path in sorted(by_validation or by_training, key=lambda found: found[0])]


def find_folder(path: Path) -> Path:
    """The checkpoint's folder that `path` names, `RUN/checkpoints/best` included.

    Raises:
        CheckpointError: the run has no checkpoint that says how good it is.
    """
    if path.name != BEST or path.exists():
        return path
    root = path.parent
    # A damaged one may lack its manifest; it must not decide which one is the best.
    found = ranked([folder for _, folder in layout.folders(root) if (folder / layout.MANIFEST).is_file()])
    if not found:
        raise CheckpointError(
            f"{path}: no checkpoint in {root} has a loss in its {layout.STATE}; expected one; name its folder."
        )
    return found[0]


def _state(folder: Path) -> dict[str, Any]:
    try:
        return layout.read_state(folder)
    except CheckpointError:
        return {}


def _is_number(state: dict[str, Any], key: str) -> bool:
    value = state.get(key)
    return value is not None and math.isfinite(value)
