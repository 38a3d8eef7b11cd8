"""TensorBoard: event files in `<run>/tensorboard`. Look at many runs with `tensorboard --logdir runs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge_ds.config.load import config_text
from bridge_ds.config.schema import Config
from bridge_ds.disk import real
from bridge_ds.engine.hooks import StepRecord
from bridge_ds.track.tracker import Tracker, numbers, units_table

__all__ = ["TensorBoardEvents", "make_tracker"]


class TensorBoardEvents(Tracker):
    """Written again from metrics.jsonl at every start: no step twice after a resume, none lost after a kill."""

    name = "TensorBoard"
    file = "tensorboard.json"
    remedy = "make room or let the folder be written"
    patience = 60.0  # the import of the writer, if training was too short for it
    _writer: Any = None

    def is_at(self, uri: str) -> bool:
        """Its files are in the run folder, wherever that is."""
        return True

    def open(self, facts: Mapping[str, object] | None) -> str:
        """Begin a new event file, in place of those of earlier attempts."""
        if self._writer is not None:
            return ""
        from torch.utils.tensorboard import SummaryWriter

        folder = real(self.where)
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        self.state.run_id, self.state.logged_step = self.config.track.name or self.folder.absolute().name, 0
        self._writer = SummaryWriter(str(folder))
        self._writer.add_text("units", units_table())
        self._writer.add_text("config", f"```yaml\n{config_text(self.config)}\n```")
        for name, fact in (facts or {}).items():
            self._writer.add_text(f"attempt/{name}", str(fact))
        return ""

    def send(self, records: Iterator[StepRecord]) -> None:
        """One scalar for each number."""
        for record in records:
            for name, value in numbers(record).items():
                self._writer.add_scalar(name, value, record["step"], walltime=record.get("time"))
            self.state.logged_step = record["step"]
        self._writer.flush()

    def send_results(self) -> None:
        """Write the scores."""
        scores, step = self.scored()
        for name, value in scores.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, status: str) -> None:
        """Write the scores, and end the file."""
        self.send_results()
        self._writer.add_text("status", status)
        self._writer.close()
        self._writer, self.state.status = None, status
        self.save()

    def close(self) -> None:
        """The next :meth:`open` begins a new file."""
        super().close()
        self._writer = None


def make_tracker(folder: Path, config: Config) -> TensorBoardEvents:
    """The tracker of a run folder."""
    return TensorBoardEvents(folder, config, str(Path(folder).absolute() / "tensorboard"))
