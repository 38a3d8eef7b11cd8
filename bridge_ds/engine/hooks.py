"""Callbacks of the training loop. The engine owns this interface; checkpoint and track implement it.

Hooks run on every rank unless they are added on rank 0 only, in the order in which they were added; a hook that
talks to other ranks must be added on all of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.typed import Count

__all__ = ["FinishedStep", "Hook", "HookList", "RecordedStep", "StepRecord", "is_bad", "step_of_checkpoint"]

StepRecord = dict[str, Any]
"""One line of metrics.jsonl. Keys and units are in README.md and in :mod:`bridge_ds.engine.loop`."""


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """Shape of a :data:`StepRecord` that was read from a file: the keys whose types somebody relies on. None = the
    number was not finite."""

    step: Count
    time: float | None = None
    loss: float | None = None
    lr: float | None = None
    grad_norm: float | None = None
    seconds: float | None = None
    skipped_steps: Count | None = None
    bad_samples: dict[str, Count] | None = None
    layer_weights: list[float | None] | None = None
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedStep(RecordedStep):
    """Shape of the record of a step for which the hooks are still to be called."""

    loss: float
    grad_norm: float
    skipped: bool
    consumed: Count
    bad_samples: dict[str, Count]


_CHECKPOINT = re.compile(r"step-(\d{8,15})")
"""More digits are no step of any run, and no number that trackers hold."""


def step_of_checkpoint(name: str) -> int | None:
    """The step in the name of a checkpoint's folder; None = not such a name."""
    found = _CHECKPOINT.fullmatch(name)
    return int(found[1]) if found else None


def is_bad(record: StepRecord) -> bool:
    """Whether a step's loss or gradient was not finite."""
    # DeepSpeed itself leaves out the update when the gradient norm is not finite (`skipped`), on every rank alike.
    return bool(record["skipped"]) or not (math.isfinite(record["loss"]) and math.isfinite(record["grad_norm"]))


class Hook:
    """Every callback does nothing by default; override those you need."""

    def on_start(self, *, step: int, total_steps: int) -> None:
        """Training is about to begin; `step` optimizer steps are already done."""

    def on_step(self, record: StepRecord) -> None:
        """One optimizer step is done and its numbers are known (already reduced over the ranks)."""

    def on_save(self, step: int) -> None:
        """A checkpoint of `step` is about to be written."""

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """A checkpoint has been written and is valid (called at the end of a later step: writing takes a while)."""

    def on_stop(self, unvalidated: StepRecord | None = None) -> None:
        """All ranks have agreed to stop early: save what is not saved. `on_end` follows.

        Args:
            unvalidated: a finished step for which `on_step` was not called, as its validation was interrupted: it is
                called when the run is resumed.
        """

    def on_not_finite(self, step: int) -> None:
        """Steps after `step` were not finite, which ends the run: the weights of `step` may be the cause."""

    def on_evaluation(self, results: dict[str, Any]) -> None:
        """The final scores are there: the content of evaluation.json."""

    def on_end(self, status: str) -> None:
        """The run is over: `finished`, `failed` or `killed`. Called once, also after an error."""


class HookList(Hook):
    """Calls each of its hooks, in order."""

    def __init__(self) -> None:
        self.hooks: list[Hook] = []


def _calling_each(name: str) -> Callable[..., None]:
    def call(self: HookList, *args: Any, **options: Any) -> None:
        for hook in self.hooks:
            getattr(hook, name)(*args, **options)

    return call


for _name in [name for name in vars(Hook) if name.startswith("on_")]:
    setattr(HookList, _name, _calling_each(_name))
