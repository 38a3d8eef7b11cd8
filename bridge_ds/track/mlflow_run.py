"""One run at one MLflow store. Calls here may block or raise, so only the tracker's thread makes them."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from bridge_ds.config.schema import TrackConfig
from bridge_ds.disk import write_text
from bridge_ds.engine.hooks import StepRecord
from bridge_ds.errors import LaunchError
from bridge_ds.track.metrics import parse_line
from bridge_ds.track.mlflow_database import explain, prepare
from bridge_ds.track.mlflow_faults import experiment_id, one_line, refuse_deleted, without_password
from bridge_ds.track.mlflow_points import UNITS, is_due, numbers, score_points

__all__ = ["MlflowRun", "RunState"]

_BATCH = 1000
"""Metrics in one call, MLflow's limit; params and tags have a tenth of it."""
_LARGEST_ARTIFACT = 32 * 2**20
"""Bytes; a file above this stays in the run folder only."""
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}


@dataclass
class RunState:
    """mlflow.json in the run folder: what a later attempt must know to go on with the same MLflow run."""

    run_id: str = ""
    uri: str = ""
    """Without a password."""
    experiment: str = ""
    logged_step: int = 0
    """The last step whose metrics MLflow has."""
    attempts: int = 0
    """Processes that have told this run so far."""
    status: str = ""
    """How the last attempt ended, if it ended."""

    @classmethod
    def load(cls, path: Path) -> RunState:
        """The saved state; a new one if there is none."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{f.name: values[f.name] for f in fields(cls) if f.name in values})
        except (OSError, json.JSONDecodeError, TypeError):
            return cls()

    def save(self, path: Path) -> None:
        """Write it by temp + rename."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


class MlflowRun:
    """Keeps one MLflow run in step with one run folder. Every method can be repeated after a failure."""

    def __init__(self, folder: Path, uri: str, track: TrackConfig, params: Mapping[str, Any]) -> None:
        """Reads mlflow.json; contacts nobody. A saved run of another store or experiment is not continued."""
        self.folder = folder
        self.uri = uri
        self.public_uri = without_password(uri)
        self.is_database = not uri.startswith(("http://", "https://", "databricks"))
        self.results: dict[str, Any] | None = None
        self.state = RunState.load(self._state_path)
        if (self.state.uri, self.state.experiment) != (self.public_uri, track.experiment):
            self.state = RunState(uri=self.public_uri, experiment=track.experiment)
        self._track = track
        self._params = {key: str(value) for key, value in params.items()}
        self._total = int(params["train.steps"])
        self._attempt = 0
        self._offset = 0
        self._client: Any = None
        self._lock = threading.Lock()

    @property
    def _state_path(self) -> Path:
        return self.folder / "mlflow.json"

    def is_due(self, record: StepRecord) -> bool:
        """Whether a step is one of the points in MLflow."""
        return is_due(record, self._track.every, self._total)

    def open(self, facts: Mapping[str, object] | None) -> str:
        """Connect, and create the run or take it up, unless it is open. `facts` None: no new attempt.

        Returns:
            what the user should know of the database, mostly nothing.

        Raises:
            LaunchError: the store answers, and something there must be mended first.
        """
        if self._client is not None:
            return ""
        import mlflow
        from mlflow.entities import RunTag

        for name in ("mlflow", "alembic"):  # their notes would tear the progress bar
            logging.getLogger(name).setLevel(logging.ERROR)
        said = prepare(self.uri)
        try:
            client = mlflow.MlflowClient(tracking_uri=self.uri)
            run = self._take_up(client) or self._create(client)
        except Exception as error:
            raise explain(self.uri, error) from error
        self._send_params(client, run)
        if facts is not None:
            if not self._attempt:
                self._attempt = self.state.attempts = self.state.attempts + 1
            seen = {**facts, **self._changed_params(run)}
            tags = [RunTag(f"attempt.{self._attempt}.{name}", str(fact)) for name, fact in seen.items()]
            for part in _parts(tags, _BATCH // 10):
                client.log_batch(self.state.run_id, tags=part)
            client.update_run(self.state.run_id, status="RUNNING")
            self.state.status = ""
        self._save()
        self._offset = 0
        self._client = client
        return said

    def close(self) -> None:
        """Forget the connection; the next :meth:`open` asks the store anew what it has."""
        self._client = None

    def send_new(self) -> None:
        """Send the due steps of metrics.jsonl above `logged_step`, and note how far it got."""
        from mlflow.entities import Metric

        batch: list[Any] = []
        last = self.state.logged_step
        for record in self._read_new():
            step = record["step"]
            if step <= last or not self.is_due(record):
                continue
            stamp = int(1000 * record.get("time", time.time()))
            points = [Metric(name, value, stamp, step) for name, value in numbers(record).items()]
            if len(batch) + len(points) > _BATCH:
                self._send(batch, last)
                batch = []
            batch += points
            last = step
        self._send(batch, last)

    def finish(self, status: str) -> None:
        """Send scores and files, and set the status; the status is set even if a file cannot be sent."""
        run_id, problem = self.state.run_id, None
        if status != "killed":
            try:
                self._send_scores()
                self._send_files()
            except Exception as error:
                problem = self._unsent(error)
        self._client.set_terminated(run_id, status=_STATUS[status])
        self.state.status = status
        self._save()
        if problem is not None:
            raise problem

    def _unsent(self, error: Exception) -> LaunchError:
        place = self._client.get_run(self.state.run_id).info.artifact_uri
        return LaunchError(
            f"files of MLflow run {self.state.run_id} cannot be written to {without_password(str(place))} "
            f"({one_line(error)}), the numbers are there; expected a place that can be written from here; mend it, and "
            f"send them with: python -m bridge_ds.track.sync {self.folder}"
        )

    def note_unsent(self, status: str) -> None:
        """Write down how the attempt ended, for a later `sync`."""
        self.state.status = status
        self._save()

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

    def _save(self) -> None:
        # Two threads save when a run ends while the store is silent.
        with self._lock:
            self.state.save(self._state_path)

    def _take_up(self, client: Any) -> Any:
        from mlflow.exceptions import MlflowException

        if not self.state.run_id:
            return None
        try:
            run = client.get_run(self.state.run_id)
            history = client.get_metric_history(self.state.run_id, "loss")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            self.state = RunState(uri=self.state.uri, experiment=self.state.experiment)
            return None
        refuse_deleted(client, run, self.public_uri, self._state_path)
        # The store knows best: a kill may fall between its commit and our note.
        self.state.logged_step = max([self.state.logged_step, *(point.step for point in history)])
        return run

    def _create(self, client: Any) -> Any:
        # A database has no place for files of its own, and MLflow would take the working directory.
        place = self.folder.absolute().parent / "mlartifacts" if self.is_database else None
        note = "| metric | unit |\n|---|---|\n" + "".join(f"| {name} | {unit} |\n" for name, unit in UNITS.items())
        run = client.create_run(
            experiment_id(client, self._track.experiment, place, self.public_uri),
            run_name=self._track.name or self.folder.absolute().name,
            tags={"mlflow.note.content": note},
        )
        self.state.run_id = run.info.run_id
        self._save()
        return run

    def _send_params(self, client: Any, run: Any) -> None:
        from mlflow.entities import Param

        new = [Param(key, value) for key, value in self._params.items() if key not in run.data.params]
        for part in _parts(new, _BATCH // 10):
            client.log_batch(self.state.run_id, params=part)

    def _changed_params(self, run: Any) -> dict[str, str]:
        # Params cannot change in MLflow; what a later attempt does otherwise is a fact of that attempt.
        known = run.data.params
        return {f"param.{key}": v for key, v in self._params.items() if key in known and known[key] != v}

    def _read_new(self) -> Iterator[StepRecord]:
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = parse_line(line.decode(errors="replace"))
                if record is not None:
                    yield record

    def _send(self, points: list[Any], last: int) -> None:
        for part in _parts(points, _BATCH):
            self._client.log_batch(self.state.run_id, metrics=part)
        if points:
            self.state.logged_step = last
            self._save()

    def _send_scores(self) -> None:
        from mlflow.entities import Metric

        known = self._client.get_run(self.state.run_id).data.metrics
        now = int(1000 * time.time())
        scores = {name: value for name, value in score_points(self._results()).items() if known.get(name) != value}
        points = [Metric(name, value, now, self._total) for name, value in scores.items()]
        for part in _parts(points, _BATCH):
            self._client.log_batch(self.state.run_id, metrics=part)

    def _results(self) -> dict[str, Any]:
        path = self.folder / "evaluation.json"
        if self.results is not None or not path.is_file():
            return self.results or {}
        return json.loads(path.read_text(encoding="utf-8"))

    def _send_files(self) -> None:
        files: list[tuple[Path, str | None]] = [
            (self.folder / name, None) for name in ("config.yaml", "evaluation.json")
        ]
        files += [(path, "plots") for path in sorted((self.folder / "plots").glob("*.png"))]
        for path, place in files:
            if path.is_file() and os.path.getsize(path) <= _LARGEST_ARTIFACT:
                self._client.log_artifact(self.state.run_id, str(path), artifact_path=place)


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
