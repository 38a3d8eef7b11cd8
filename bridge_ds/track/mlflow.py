"""The run in MLflow."""

from __future__ import annotations

import logging
import os
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bridge_ds.config.load import flatten
from bridge_ds.config.schema import Config, TrackConfig
from bridge_ds.engine.hooks import StepRecord
from bridge_ds.errors import BridgeError, LaunchError
from bridge_ds.track.mlflow_database import explain, prepare, sqlite_path, sqlite_uri
from bridge_ds.track.mlflow_names import metric_name
from bridge_ds.track.tracker import (
    MLFLOW_STATE,
    Tracker,
    TrackerState,
    Unsent,
    numbers,
    one_line,
    units_table,
    without_password,
)

__all__ = ["MlflowRun", "make_tracker", "tracking_uri"]

_BATCH = 1000
"""Metrics in one call, MLflow's limit; params and tags have a tenth of it."""
_LARGEST_ARTIFACT = 32 * 2**20
"""Bytes; a file above this stays in the run folder only."""
_STATUS = {"finished": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
_DEFAULTS = {
    # MLflow's own defaults (7 retries, 120 s) hold a call to a dead server for 4 to 20 minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A line of its own would tear the progress bar.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_FIRST_DATABASE_SECONDS = 90.0
"""Patience at the end when the store is a sqlite file: its first use runs MLflow's migrations (7 s)."""


class MlflowRun(Tracker):
    """Keeps one MLflow run in step with one run folder."""

    name = "MLflow"
    file = MLFLOW_STATE
    remedy = "start the server, or set track.uri in config.yaml"

    def __init__(self, folder: Path, config: Config, uri: str) -> None:
        """`uri` of the store, see :func:`tracking_uri`. Contacts nobody."""
        super().__init__(folder, config, uri)
        self.uri = uri
        self.patience = _FIRST_DATABASE_SECONDS if uri.startswith("sqlite") else 0.0
        self._params = {key: str(value) for key, value in flatten(config).items()}
        self._attempt = 0
        self._client: Any = None

    def is_at(self, uri: str) -> bool:
        """A SQLite file may be named by several paths."""
        one, other = sqlite_path(uri), sqlite_path(self.where)
        return super().is_at(uri) or (one is not None and other is not None and one.resolve() == other.resolve())

    def open(self, facts: Mapping[str, object] | None) -> str:
        """Connect, and create the run or continue it, unless it is open; see :meth:`Tracker.open`."""
        if self._client is not None:
            return ""
        for variable, value in _DEFAULTS.items():
            os.environ.setdefault(variable, value)
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
        self.save()
        self._client = client
        return said

    def close(self) -> None:
        """Forget the connection; the next :meth:`open` asks the store again what it has."""
        super().close()
        self._client = None

    def send(self, records: Iterator[StepRecord]) -> None:
        """Every number of a step is a metric."""
        from mlflow.entities import Metric

        batch: list[Any] = []
        last = self.state.logged_step
        for record in records:
            step = record["step"]
            stamp = int(1000 * record.get("time", time.time()))
            points = [Metric(name, value, stamp, step) for name, value in numbers(record).items()]
            if len(batch) + len(points) > _BATCH:
                self._send(batch, last)
                batch = []
            batch += points
            last = step
        self._send(batch, last)

    def send_results(self) -> None:
        """Send the scores, and the files whether or not the scores were taken."""
        failed: dict[str, Exception] = {}
        for what, send in (("accuracies", self._send_scores), ("files", self._send_files)):
            try:
                send()
            except Exception as error:
                failed[what] = error
        if failed:
            raise self._unsent(failed)

    def finish(self, status: str) -> None:
        """Send scores and files, and set the status, even if these cannot be sent. See :meth:`Tracker.finish`."""
        problem = None
        if not self.hurried:
            try:
                self.send_results()
            except Unsent as error:
                problem = error
        self._client.set_terminated(self.state.run_id, status=_STATUS[status])
        self.state.status = status
        self.save()
        if problem is not None:
            raise problem

    def _unsent(self, failed: Mapping[str, Exception]) -> Unsent:
        for error in failed.values():
            if isinstance(error, BridgeError):  # evaluation.json is damaged
                return Unsent(str(error))
        store = self._client.get_run(self.state.run_id).info.artifact_uri
        places = {"accuracies": self.where, "files": without_password(str(store))}
        lost = " and ".join(
            f"{what} of MLflow run {self.state.run_id} cannot be written to {places[what]} ({one_line(error)})"
            for what, error in failed.items()
        )
        return Unsent(
            f"{lost}, all else is there; expected a folder or store that takes them from here; make it so, and send "
            f"them with: bridge-ds sync {self.folder}"
        )

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
            self.state = TrackerState(uri=self.state.uri, experiment=self.state.experiment)
            return None
        _refuse_deleted(client, run, self.where, self.folder / self.file)
        # The store knows best: a kill may fall between its commit and our note.
        self.state.logged_step = max([self.state.logged_step, *(point.step for point in history)])
        return run

    def _create(self, client: Any) -> Any:
        # A database has no folder for files of its own, and MLflow would take the working directory.
        is_database = not self.uri.startswith(("http://", "https://", "databricks"))
        artifacts = self.folder.absolute().parent / "mlartifacts" if is_database else None
        run = client.create_run(
            _experiment_id(client, self.config.track.experiment, artifacts, self.where),
            run_name=self.config.track.name or self.folder.absolute().name,
            tags={"mlflow.note.content": units_table()},
        )
        self.state.run_id = run.info.run_id
        self.save()
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

    def _send(self, points: list[Any], last: int) -> None:
        for part in _parts(points, _BATCH):
            self._client.log_batch(self.state.run_id, metrics=part)
        if points:
            self.state.logged_step = last
            self.save()

    def _send_scores(self) -> None:
        from mlflow.entities import Metric

        latest = {point.key: point for point in self._client.get_run(self.state.run_id).data.to_proto().metrics}
        scores, step = self.scored()
        now = int(1000 * time.time())
        points = [Metric(metric_name(name), value, now, step) for name, value in scores.items()]
        new = [point for point in points if not self._has(point, latest.get(point.key))]
        for part in _parts(new, _BATCH):
            self._client.log_batch(self.state.run_id, metrics=part)

    def _has(self, score: Any, latest: Any) -> bool:
        """Whether MLflow has a score at its step, given the last point of that metric."""
        if latest is None or latest.step < score.step:
            return False
        # Only below a later checkpoint's score: a call for each metric takes long.
        earlier = latest.step > score.step
        points = self._client.get_metric_history(self.state.run_id, score.key) if earlier else [latest]
        return any((point.step, point.value) == (score.step, score.value) for point in points)

    def _send_files(self) -> None:
        files: list[tuple[Path, str | None]] = [
            (self.folder / name, None) for name in ("config.yaml", "evaluation.json")
        ]
        files += [(path, "plots") for path in sorted((self.folder / "plots").glob("*.png"))]
        for path, folder in files:
            if path.is_file() and os.path.getsize(path) <= _LARGEST_ARTIFACT:
                self._client.log_artifact(self.state.run_id, str(path), artifact_path=folder)


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def make_tracker(folder: Path, config: Config) -> MlflowRun | None:
    """The tracker of a run folder; None if `track.uri` is none."""
    uri = tracking_uri(config.track, Path(folder))
    return None if uri is None else MlflowRun(folder, config, uri)


def tracking_uri(track: TrackConfig, folder: Path, environ: Mapping[str, str] | None = None) -> str | None:
    """The first of `track.uri`, MLFLOW_TRACKING_URI, mlflow.db beside the run folder; None = nowhere."""
    env = os.environ if environ is None else environ
    uri = track.uri or env.get("MLFLOW_TRACKING_URI", "")
    if uri.lower() == "none":
        return None
    return uri or sqlite_uri(folder.absolute().parent / "mlflow.db")


def _experiment_id(client: Any, name: str, artifacts: Path | None, uri: str) -> str:
    """The experiment of that name, made if there is none.

    Args:
        client: of MLflow.
        name: `track.experiment`.
        artifacts: folder for the files of its runs; none = the server's own.
        uri: of the store, without a password.

    Raises:
        LaunchError: it was deleted, and MLflow keeps the name.
    """
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, artifact_location=artifacts.as_uri() if artifacts else None))
        except MlflowException:
            found = client.get_experiment_by_name(name)  # by another start, just now
            if found is None:
                raise
    _refuse_deleted_experiment(found, uri)
    return str(found.experiment_id)


def _refuse_deleted(client: Any, run: Any, uri: str, note: Path) -> None:
    """Raises LaunchError if a run that is to be continued, or its experiment, was deleted in MLflow.

    Args:
        client: of MLflow.
        run: as MLflow has it.
        uri: of the store, without a password.
        note: the mlflow.json that names it.
    """
    if run.info.lifecycle_stage != "deleted":
        return
    _refuse_deleted_experiment(client.get_experiment(run.info.experiment_id), uri)
    raise LaunchError(
        f"MLflow run {run.info.run_id} of {note.parent} was deleted there; expected it as it was; bring it back with "
        f"`{_command(uri)} runs restore --run-id {run.info.run_id}`, or remove {note} to begin a new one."
    )


def _refuse_deleted_experiment(found: Any, uri: str) -> None:
    if found.lifecycle_stage == "deleted":
        raise LaunchError(
            f"the MLflow experiment {found.name!r} was deleted there, which keeps its name; expected one that is not; "
            f"bring it back with `{_command(uri)} experiments restore -x {found.experiment_id}`, or set "
            "track.experiment to another name."
        )


def _command(uri: str) -> str:
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} mlflow"
