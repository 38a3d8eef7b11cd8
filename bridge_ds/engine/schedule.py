"""Learning rate as a pure function of the step, so that a resume needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from bridge_ds.config.schema import TrainConfig

__all__ = ["learning_rate", "set_learning_rate"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Learning rate of optimizer step `step` (1..steps): linear warm-up, then the schedule down to 0 (or constant)."""
    warmup = round(config.warmup_ratio * config.steps)
    if step <= warmup:
        return config.lr * step / warmup
    done = (step - warmup - 1) / max(1, config.steps - warmup)
    if config.schedule == "cosine":
        return config.lr * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return config.lr * (1 - done)
    return config.lr


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    """Set the learning rate of each parameter group: `lr` times the group's `lr_scale`."""
    for group in groups:
        group["lr"] = lr * group["lr_scale"]
