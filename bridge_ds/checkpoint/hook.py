"""Saves every N steps and at the last one. Must be added on every rank: saving is a collective."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint.save import prune, save
from bridge_ds.config.schema import CheckpointConfig
from bridge_ds.engine.hooks import Hook, StepRecord
from bridge_ds.world import World

__all__ = ["CheckpointHook"]


class CheckpointHook(Hook):
    """Writes `<run>/checkpoints/step-...` and keeps the newest few."""

    def __init__(
        self,
        engine: Any,
        root: Path,
        config: CheckpointConfig,
        *,
        state: dict[str, Any],
        manifest: dict[str, Any],
        world: World,
        saved: Callable[[int, Path], None],
    ) -> None:
        """Args:
        state: constant part of state.json; step and consumed samples are added.
        manifest: constant part of manifest.json.
        saved: called with (step, folder) after each save.
        """
        self.engine, self.root, self.config, self.world = engine, root, config, world
        self.state, self.manifest, self.saved = state, manifest, saved
        self.total_steps = 0

    def on_start(self, *, step: int, total_steps: int) -> None:
        self.total_steps = total_steps

    def on_step(self, record: StepRecord) -> None:
        step = record["step"]
        if step % self.config.every and step != self.total_steps:
            return
        state = self.state | {"step": step, "consumed": record["consumed"], "bad_samples": record["bad_samples"]}
        folder = save(self.engine, self.root, state=state, manifest=self.manifest, world=self.world)
        if self.world.is_main:
            prune(self.root, self.config.keep)
        self.saved(step, folder)
