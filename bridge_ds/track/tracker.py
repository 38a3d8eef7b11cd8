"""One run in one tracking system: what is the same for all of them, and what each has to do. A reader of metrics.jsonl.

A tracker is a file with a subclass of :class:`Tracker`, and a line in :data:`bridge_ds.track.trackers.TRACKERS`.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

from pydantic import StringConstraints

from bridge_ds.config.schema import Config
from bridge_ds.disk import write_text
from bridge_ds.engine.hooks import StepRecord, step_of_checkpoint
from bridge_ds.errors import BridgeError, LaunchError
from bridge_ds.metrics import current_names, read_results
from bridge_ds.track.metrics_file import not_a_record, parse_line
from bridge_ds.typed import Count, typed_object

__all__ = [
    "MLFLOW_STATE", "UNITS", "Tracker", "TrackerState", "Unsent", "is_due", "numbers", "one_line", "score_points",
    "units_table", "without_password",
]  # fmt: skip

_log = logging.getLogger(__name__)

UNITS = {
    "loss": "nats a target token",
    "kl": "nats a target token: divergence of the bridge from the LLM alone (self-teaching)",
    "validation_loss": "nats a target token, on held-out samples",
    "validation_kl": "nats a target token, on held-out samples",
    "validation_accuracy": "0 to 1, of their target tokens, the likeliest one is right",
    "validation_samples": "held-out samples, all ranks",
    "validation_tokens": "their target tokens",
    "validation_seconds": "s, beside the step's",
    "lr": "learning rate",
    "grad_norm": "global norm before clipping",
    "target_tokens": "LLM tokens with a loss in the step, all ranks",
    "source_tokens": "encoder tokens in the step (of the LLM alone: prompt tokens), all ranks",
    "consumed": "samples since the start of the run",
    "seconds": "s, wall time of the step",
    "target_tokens_per_s": "tokens/s, all ranks",
    "source_tokens_per_s": "tokens/s, all ranks",
    "padding_share": "0 to 1: padding in encoder and LLM, of it and all tokens",
    "data_wait_share": "0 to 1, of the step's wall time, the slowest rank",
    "peak_memory_gib": "GiB, the fullest rank",
    "layer_weights_entropy": "nats",
    "layer_weight/NN": "0 to 1, of encoder layer NN",
    "bad_samples/KIND": "samples left out since the start of the run",
    "skipped_steps": "steps since this start of the run",
    "accuracy_percent/TASK/LANGUAGE/SYSTEM_METRIC": "%",
}
"""Units of the metrics; shown in the description of each run."""


@dataclass
class TrackerState:
    """A JSON file in the run folder: what a later attempt must know to go on with the same run."""

    run_id: str = ""
    uri: str = ""
    """Without a password."""
    experiment: str = ""
    logged_step: Count = 0
    """The last step whose metrics the tracker has."""
    attempts: Count = 0
    """Processes that have logged to this run so far."""
    status: Annotated[str, StringConstraints(pattern="^(finished|failed|killed)?$")] = ""
    """How the last attempt ended (finished, failed, killed), if it ended."""

    @classmethod
    def load(cls, path: Path) -> TrackerState:
        """The saved state; a new one if there is none, or, with a warning, if it cannot be read."""
        try:
            values = typed_object(path, cls)
        except FileNotFoundError:
            return cls()
        except (OSError, ValueError) as error:
            _log.warning(f"{path} {error}; a new run is begun; to continue the old one, restore the file.")
            return cls()
        return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})


MLFLOW_STATE = "mlflow.json"
"""File of MLflow's state."""


class Unsent(LaunchError):
    """Scores or files that a tracker did not take; it has all else, and the status."""


class Tracker:
    """Keeps one run of a tracking system up to date with one run folder.

    `open`, `send`, `send_results`, `finish` and `close` are called by one thread. They may block or raise, and each is
    called again after an error: first `close`, then `open`.
    """

    name = ""
    """For messages."""
    file = ""
    """Name of the state's file in the run folder."""
    remedy = "fix it"
    """What to do if it cannot be reached, for a message."""
    patience = 0.0
    """Seconds that the end of a run waits at least, for one that writes files and therefore does get ready."""
    hurried = False
    """The job is being taken away: :meth:`finish` leaves what takes long to the next start or a sync."""

    def __init__(self, folder: Path, config: Config, where: str) -> None:
        """Reads the state; contacts nobody.

        Args:
            folder: the run folder, with metrics.jsonl in it.
            config: the resolved config.
            where: URI or folder of the tracker's data. A saved run of another one, or of another experiment, is not
                continued.
        """
        self.folder, self.config, self.where = Path(folder), config, without_password(where)
        self.results: dict[str, Any] | None = None
        self.state = TrackerState.load(self.folder / self.file)
        if not (self.is_at(self.state.uri) and self.state.experiment == config.track.experiment):
            if self.state.run_id:
                _log.warning(
                    f"{self.folder / self.file} names run {self.state.run_id} of {self.state.experiment!r} at "
                    f"{self.state.uri}; a new run is begun in {config.track.experiment!r} at {self.where}."
                )
            self.begin_anew()
        self._offset = 0
        self._lock = threading.Lock()

    def begin_anew(self) -> None:
        """Begin a new run, with all steps of metrics.jsonl; the one before stays as it is."""
        self.state = TrackerState(uri=self.where, experiment=self.config.track.experiment)

    def is_at(self, uri: str) -> bool:
        """Whether a recorded place is this one."""
        return uri == self.where

    def open(self, facts: Mapping[str, object] | None) -> str:
        """Connect, and create the run or continue it, unless it is open.

        Args:
            facts: what may differ between attempts (ranks, nodes, job); None = no new attempt.

        Returns:
            a warning for the user, mostly empty.

        Raises:
            LaunchError: the store answers, and something there must be changed first.
        """
        raise NotImplementedError

    def send(self, records: Iterator[StepRecord]) -> None:
        """Log these steps, and set `state.logged_step` to the last one that the tracker has."""
        raise NotImplementedError

    def send_results(self) -> None:
        """Send scores and files alone: how the run ended is not known."""

    def finish(self, status: str) -> None:
        """Send scores and files, and set the run's status: finished, failed or killed.

        Raises:
            Unsent: scores or files were not taken; the status is set.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Forget the connection; the next :meth:`open` makes a new one, and metrics.jsonl is read again."""
        self._offset = 0

    def is_due(self, record: StepRecord) -> bool:
        """Whether a step is one of those that are logged."""
        return is_due(record, self.config.track.every, self.config.train.steps)

    def send_new(self) -> None:
        """Send the due steps of metrics.jsonl above `logged_step`."""
        self.send(self._new())

    def save(self) -> None:
        """Write the state."""
        with self._lock:  # two threads save when a run ends while the tracker does not answer
            write_text(self.folder / self.file, json.dumps(asdict(self.state), indent=2) + "\n")

    def scored(self) -> tuple[dict[str, float], int]:
        """The accuracies as metrics, empty if there are none, and the step of the checkpoint that was scored."""
        saved, checkpoint = read_results(self.folder)
        step = step_of_checkpoint(checkpoint)
        found = score_points(saved if self.results is None else self.results)
        return found, self.config.train.steps if step is None else step

    def missing(self) -> str:
        """What metrics.jsonl has above `logged_step`, in words."""
        path = self.folder / "metrics.jsonl"
        last = 0
        if path.is_file():
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 2**17))
                lines = file.read().decode(errors="replace").splitlines(keepends=True)
            last = max((record["step"] for line in lines if (record := parse_line(line))), default=0)
        if last > self.state.logged_step:
            return f"steps {self.state.logged_step + 1} to {last}, the files and the status"
        return "the files and the status"

    def _new(self) -> Iterator[StepRecord]:
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        last = self.state.logged_step
        with path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = parse_line(line.decode(errors="replace"))
                if record is None:
                    raise not_a_record(path, line.decode(errors="replace"))
                if record["step"] > last and self.is_due(record):
                    last = record["step"]
                    yield record


def without_password(text: str) -> str:
    """The text with `user:password@` taken out of every URI in it."""
    return re.sub(r"(?<!/)//[^/@\s]*@", "//", text)


def one_line(error: Exception | None) -> str:
    """The error for a line of text, without passwords."""
    text = without_password(" ".join(str(error).split()))
    if isinstance(error, BridgeError):
        return text
    # The cause stands at the end of a transport error, the request at its start.
    text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 170 else f"{text[:80]} ... {text[-85:]}"


def is_due(record: StepRecord, every: int, total: int) -> bool:
    """Whether a step is logged: by its record alone, so that all attempts agree."""
    step = record["step"]
    return step == 1 or step == total or step % max(1, every) == 0 or "validation_loss" in record


def numbers(record: StepRecord) -> dict[str, float]:
    """The single numbers of a record under the names of the metrics; without nulls, texts and per-rank lists."""
    found = {}
    for key, value in record.items():
        if key in ("step", "time"):
            continue
        if key == "layer_weights" and value:
            width = max(2, len(str(len(value))))
            named = {f"layer_weight/{layer:0{width}}": weight for layer, weight in enumerate(value, start=1)}
        elif isinstance(value, dict):
            named = {f"{key}/{name}": item for name, item in value.items()}
        else:
            named = {key: value}
        found.update({k: float(v) for k, v in named.items() if isinstance(v, int | float) and not isinstance(v, bool)})
    return found


def score_points(results: Mapping[str, Any]) -> dict[str, float]:
    """The content of evaluation.json as metrics, in percent."""
    found = {}
    for system, tasks in current_names(dict(results)).items():
        if system == "chance":
            continue
        for task, languages in tasks.items():
            for language, score in languages.items():
                for measure in ("acc", "exact_match"):
                    if score.get(measure) is not None:
                        found[f"accuracy_percent/{task}/{language}/{system}_{measure}"] = 100 * score[measure]
    return found


def units_table() -> str:
    """:data:`UNITS` in Markdown."""
    return "| metric | unit |\n|---|---|\n" + "".join(f"| {name} | {unit} |\n" for name, unit in UNITS.items())
