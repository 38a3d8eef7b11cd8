"""Weights & Biases: one run there over all attempts. Its own variables hold: WANDB_MODE=offline, WANDB_ENTITY, ..."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge_ds.config.load import flatten
from bridge_ds.config.schema import Config
from bridge_ds.disk import real
from bridge_ds.engine.hooks import StepRecord
from bridge_ds.track.tracker import Tracker, numbers

__all__ = ["WandbRun", "make_tracker"]


class WandbRun(Tracker):
    """The project is `track.experiment`. W&B's own process writes to `<run>/wandb` and sends from there."""

    name = "Weights & Biases"
    file = "wandb.json"
    remedy = "log in with `wandb login`, or set WANDB_MODE=offline"
    patience = 60.0  # what its process has not written or sent yet
    _run: Any = None

    def open(self, facts: Mapping[str, object] | None) -> str:
        """Create the run, or continue it under its id."""
        if self._run is not None:
            return ""
        import wandb

        track, state = self.config.track, self.state
        state.run_id = state.run_id or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=track.experiment, name=track.name or self.folder.absolute().name, id=state.run_id, resume="allow",
            dir=str(real(self.folder)),
            settings=wandb.Settings(console="off", silent=True, init_timeout=30, disable_git=True, save_code=False),
        )  # fmt: skip
        # A kill loses unwritten points: online the server knows the last step, offline the run is written again.
        state.logged_step = max(0, self._run.starting_step - 1)
        old = real(self.folder).glob(f"wandb/offline-run-*-{state.run_id}") if self._run.offline else ()
        for attempt in set(old) - {Path(self._run.dir).parent}:
            shutil.rmtree(attempt)
        self._run.config.update(flatten(self.config), allow_val_change=True)
        if facts is not None:
            state.attempts, state.status = state.attempts + 1, ""
            self._run.config.update({f"attempt.{state.attempts}.{name}": str(fact) for name, fact in facts.items()})
        self.save()
        return ""

    def send(self, records: Iterator[StepRecord]) -> None:
        """One `log` for each step."""
        for record in records:
            when = {} if record.get("time") is None else {"_timestamp": record["time"]}
            self._run.log(numbers(record) | when, step=record["step"], commit=True)
            self.state.logged_step = record["step"]
        self.save()

    def send_results(self) -> None:
        """The scores become the run's summary. W&B shows a run that did not say how it ended as failed."""
        self._end({})

    def finish(self, status: str) -> None:
        """The scores become the run's summary, with the status."""
        self._end({"status": status})
        self.state.status = status
        self.save()

    def _end(self, more: dict[str, str]) -> None:
        """Send the scores and `more`; then wait until all is written (and, online, sent)."""
        self._run.summary.update(self.scored()[0] | more)
        self._run.finish(exit_code=0 if more.get("status") == "finished" else 1)
        self._run = None

    def close(self) -> None:
        """The next :meth:`open` continues the run."""
        super().close()
        self._run = None


def make_tracker(folder: Path, config: Config) -> WandbRun:
    """The tracker of a run folder."""
    offline = os.environ.get("WANDB_MODE") == "offline"
    where = str(Path(folder).absolute() / "wandb") if offline else "https://api.wandb.ai"
    return WandbRun(folder, config, os.environ.get("WANDB_BASE_URL", where))
