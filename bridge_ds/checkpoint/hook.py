"""Saves every N steps, at the last one, and when the run is preempted. Must be added on every rank.

A step waits for the copy to host memory only (a collective); rank 0 writes in a thread. A write that fails is reported
and tried again at the next save; only more than `checkpoint.max_failed_saves` failures in a row end the run.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bridge_ds.checkpoint.best import VALIDATION_LOSS, VALIDATION_TOKENS
from bridge_ds.checkpoint.layout import step_folder
from bridge_ds.checkpoint.save import gather, prune, write
from bridge_ds.config.schema import CheckpointConfig
from bridge_ds.engine.distributed import agree
from bridge_ds.engine.hooks import Hook, HookList, StepRecord, is_bad
from bridge_ds.errors import CheckpointError, TrainingError
from bridge_ds.world import World

__all__ = ["CheckpointHook"]

_log = logging.getLogger(__name__)

_RETRY_SECONDS = 10.0
"""Pause before the run's last checkpoint is tried again, since no later save follows."""


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
        spared: Path | None = None,
    ) -> None:
        """Args:
        state: constant part of state.json; step, consumed samples, the mean loss since the last save and the step's
            validation loss are added.
        manifest: constant part of manifest.json.
        spared: a checkpoint that is not removed.
        hooks: on_save and on_checkpoint are called on them (on_checkpoint only on rank 0).
        """
        self.engine, self.root, self.config, self.world = engine, root, config, world
        self.state, self.manifest, self.hooks = state, manifest, hooks
        self.spared, self.total_steps = spared, 0
        self._last: StepRecord | None = None
        self._saved_step = 0
        self._losses: list[float] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if world.is_main else None
        self._writing: tuple[int, Future[Path]] | None = None
        self._failures = 0
        self._reason = ""
        self._to_prune = False

    def on_start(self, *, step: int, total_steps: int) -> None:
        self.total_steps, self._saved_step = total_steps, step

    def on_step(self, record: StepRecord) -> None:
        self._last = record
        self._losses.append(record["loss"])
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
        self._collect()
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
        if unvalidated is not None:
            self._last = unvalidated
            self._losses.append(unvalidated["loss"])
        if self._last is not None and not is_bad(self._last):
            if unvalidated is not None:
                self._save({"unvalidated": unvalidated})
            elif self._last["step"] != self._saved_step:
                self._save()
        self._collect()

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
        self._collect()
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
        finite = [loss for loss in self._losses if loss == loss]
        mean = sum(finite) / len(finite) if finite else None
        state = self.state | {"step": step, "loss": mean} | dict(more)
        state |= {name: self._last[name] for name in ("consumed", "bad_samples")}
        # prune() ranks checkpoints by this loss.
        state["best_by"] = "loss"
        if VALIDATION_LOSS in self._last:
            state |= {key: self._last[key] for key in (VALIDATION_LOSS, VALIDATION_TOKENS)}
            state["best_by"] = VALIDATION_LOSS
        self._losses, self._saved_step, self._to_prune = [], step, True
        if self._writer:
            future = self._writer.submit(write, snapshot, self.root, state=state, manifest=self.manifest)
            self._writing = step, future

    def _save_last(self) -> None:
        """The final checkpoint: wait for it, and try again while failures are allowed."""
        while True:
            self._save()
            self._collect()
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
            prune(self.root, self.config.keep_last, self.config.keep_best, self.spared)
        except OSError as error:
            _log.warning(f"old checkpoints in {self.root} cannot be removed ({error}); remove them by hand.")

    def _collect(self) -> None:
        """Wait for the write in progress, on rank 0, and report how it went."""
        if self._writing is None:
            return
        (step, future), self._writing = self._writing, None
        try:
            folder = future.result()
        except Exception as error:  # OSError, and whatever safetensors makes of one
            self._failures += 1
            self._reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            _log.warning(
                f"checkpoint of step {step} was not written ({self._reason}); earlier ones are intact; "
                f"failure {self._failures} in a row, more than {self.config.max_failed_saves} end the run."
            )
            return
        self._failures = 0
        self.hooks.on_checkpoint(step, folder)
