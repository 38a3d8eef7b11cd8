"""Saves every N steps, at the last one, and when the run is preempted. Must be added on every rank.

A step waits for the copy to host memory only (a collective); rank 0 writes in a thread. A write that fails is reported
and tried again at the next save; only more than `checkpoint.max_failed_saves` failures in a row end the run.
"""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bridge_ds.checkpoint.best import VALIDATION_LOSS, VALIDATION_TOKENS
from bridge_ds.checkpoint.layout import LOSS_STEPS, LOSS_SUM, step_folder
from bridge_ds.checkpoint.origin import Origin
from bridge_ds.checkpoint.save import gather, prune, write, written_bytes
from bridge_ds.config.schema import CheckpointConfig
from bridge_ds.engine.distributed import agree
from bridge_ds.engine.hooks import Hook, HookList, StepRecord, is_bad
from bridge_ds.errors import CheckpointError, TrainingError
from bridge_ds.world import World

__all__ = ["CheckpointHook"]

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 10.0
"""Pause before the run's last checkpoint is tried again, since no later save follows."""
_LOOK_SECONDS = 1.0
"""Between two looks at whether a write that all ranks wait for proceeds."""


@dataclass(frozen=True)
class _Losses:
    """The finite losses of steps, added in their order, so that a resumed run has the same sum."""

    sum: float = 0.0
    steps: int = 0

    @property
    def mean(self) -> float | None:
        """None where there are none."""
        return self.sum / self.steps if self.steps else None

    def and_of(self, record: StepRecord) -> _Losses:
        """With one more step's."""
        return _Losses(self.sum + record["loss"], self.steps + 1) if math.isfinite(record["loss"]) else self

    def and_those(self, before: _Losses) -> _Losses:
        """With those of steps before."""
        return _Losses(before.sum + self.sum, before.steps + self.steps)


class CheckpointHook(Hook):
    """Writes `<run>/checkpoints/step-...`, keeps the newest few and the best."""

    def __init__(
        self,
        engine: Any,
        root: Path,
        config: CheckpointConfig,
        *,
        state: dict[str, Any],
        manifest: dict[str, Any],
        world: World,
        hooks: HookList,
        mark: Callable[[str], None],
        origin: Origin,
    ) -> None:
        """Args:
        state: constant part of state.json; step, consumed samples, the mean loss since the last regular save and the
            step's validation loss are added.
        manifest: constant part of manifest.json.
        hooks: on_save and on_checkpoint are called on them (on_checkpoint only on rank 0).
        mark: tells the watchdog that this rank is not stuck.
        origin: what the run continues. A checkpoint that was named is not removed.
        """
        self.engine, self.root, self.config, self.world = engine, root, config, world
        self.state, self.manifest, self.hooks = state, manifest, hooks
        self.origin, self.total_steps, self.mark = origin, 0, mark
        self._last: StepRecord | None = None
        self._saved_step = 0
        self._losses = _Losses()
        self._unwritten = _Losses()
        """Those whose mean is in the save in progress."""
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if world.is_main else None
        self._writing: tuple[int, Future[Path]] | None = None
        self._failures = 0
        self._reason = ""
        self._to_prune = False

    def on_start(self, *, step: int, total_steps: int) -> None:
        self.total_steps, self._saved_step = total_steps, step
        if self.origin.checkpoint:
            state = self.origin.checkpoint.state
            self._losses = _Losses(state.get(LOSS_SUM, 0.0), state.get(LOSS_STEPS, 0))

    def on_step(self, record: StepRecord) -> None:
        self._last = record
        self._losses = self._losses.and_of(record)
        if self._writing and self._writing[1].done():
            self._collect()
        if not is_bad(record):
            self._prune()
        if record["step"] == self.total_steps:
            self._save_last()
        elif record["step"] % self.config.every == 0 and not is_bad(record):
            self._save()

    def on_not_finite(self, step: int) -> None:
        """Rename the checkpoint of `step`: the step after it, which used its weights, was not finite."""
        self._wait()
        folder = step_folder(self.root, step)
        if not self._writer or not folder.is_dir():
            return
        aside = folder.with_name(f"{folder.name}.not-finite")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        _log.warning(
            f"{folder} is {aside.name} now: the step after it was not finite, and its weights may be why; the next "
            "start uses the one before it. If the batch is to blame, rename it back."
        )

    def on_stop(self, unvalidated: StepRecord | None = None) -> None:
        """Save the current step. If that fails, the next start uses the newest complete checkpoint."""
        self._wait()  # the losses of one that fails belong to this one
        if unvalidated is not None:
            self._last = unvalidated
        if self._last is not None and not is_bad(self._last):
            # What a run that was not stopped would have in its next checkpoint's loss. (The next start calls on_step
            # for the step that was not validated.)
            more: dict[str, Any] = {LOSS_SUM: self._losses.sum, LOSS_STEPS: self._losses.steps}
            if unvalidated is not None:
                self._losses = self._losses.and_of(unvalidated)
                self._save(more | {"unvalidated": unvalidated})
            elif self._last["step"] != self._saved_step:
                self._save(more)
        self._wait()

    def on_end(self, status: str) -> None:
        """Wait for the write in progress."""
        self._collect()
        if status == "finished":
            self._prune()
        if self._writer:
            self._writer.shutdown()

    def _save(self, more: Mapping[str, Any] = MappingProxyType({})) -> None:
        """Begin to write a checkpoint of the last step; `more` goes into its state.json."""
        assert self._last is not None
        # At most one write is in progress: waiting here is better than filling host memory while the disk is slow.
        self._wait()
        failures: int
        reason: str
        failures, reason = agree((self._failures, self._reason), self.world)  # type: ignore[misc]
        if failures > self.config.max_failed_saves:
            raise CheckpointError(
                f"{failures} saves in a row failed ({reason}); expected at most checkpoint.max_failed_saves "
                f"{self.config.max_failed_saves}; make room or fix {self.root}, then start again."
            )
        step = int(self._last["step"])
        self.hooks.on_save(step)
        snapshot = gather(self.engine)
        fault = agree(snapshot.fault, self.world)
        if fault:
            raise TrainingError(
                f"after step {step} {fault}; expected finite numbers; no checkpoint of it was written, and the "
                "next start uses the one before; lower train.lr."
            )
        state = self.state | {"step": step, "loss": self._losses.mean} | dict(more)
        state |= {name: self._last[name] for name in ("consumed", "bad_samples")}
        # prune() ranks checkpoints by this loss.
        state["best_by"] = "loss"
        if VALIDATION_LOSS in self._last:
            state |= {key: self._last[key] for key in (VALIDATION_LOSS, VALIDATION_TOKENS)}
            state["best_by"] = VALIDATION_LOSS
        self._losses, self._unwritten = _Losses(), self._losses
        self._saved_step, self._to_prune = step, True
        if self._writer:
            future = self._writer.submit(write, snapshot, self.root, state=state, manifest=self.manifest)
            self._writing = step, future

    def _save_last(self) -> None:
        """The final checkpoint: wait for it, and try again while failures are allowed."""
        while True:
            self._save()
            self._wait()
            if not agree(self._failures, self.world):
                return
            time.sleep(_RETRY_SECONDS)

    def _prune(self) -> None:
        """Remove old checkpoints, after the write in progress. Not before a step with the weights of the newest was
        finite: otherwise that one, perhaps the only one, might be renamed (:meth:`on_not_finite`)."""
        if self._writer and self._to_prune:
            self._writer.submit(self._remove_old)
        self._to_prune = False

    def _remove_old(self) -> None:
        try:
            prune(self.root, self.config.keep_last, self.config.keep_best, self.origin.named)
        except OSError as error:
            _log.warning(f"old checkpoints in {self.root} cannot be removed ({error}); remove them by hand.")

    def _wait(self) -> None:
        """Wait for the write in progress (a collective). No rank counts as stuck while files grow: a large checkpoint
        may take longer than run.hang_seconds."""
        size, seen, waits, proceeds = 0, -1, True, True
        while waits:
            waits = False
            if self._writing:
                step, future = self._writing
                waits = not wait_for([future], _LOOK_SECONDS).done
                size = written_bytes(self.root, step)
            waits, proceeds = agree((waits, size != seen), self.world)  # type: ignore[misc]
            seen = size
            if proceeds:
                self.mark("save")
        self._collect()

    def _collect(self) -> None:
        """Wait for the write in progress, on rank 0, and report how it went."""
        if self._writing is None:
            return
        (step, future), self._writing = self._writing, None
        try:
            folder = future.result()
        except Exception as error:  # OSError, and whatever safetensors makes of one
            self._failures += 1
            self._losses = self._losses.and_those(self._unwritten)
            self._reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning(
                f"checkpoint of step {step} was not written ({self._reason}); earlier ones are intact; "
                f"failure {self._failures} in a row, more than {self.config.max_failed_saves} end the run."
            )
            return
        self._failures = 0
        self.hooks.on_checkpoint(step, folder)
