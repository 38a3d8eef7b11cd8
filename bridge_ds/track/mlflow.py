"""The run in MLflow, told by a thread of its own: tracking can be slow or dead, and training never waits.

No queue holds numbers: metrics.jsonl is the queue. Training only wakes the thread, which reads and sends what
is new in the file. So nothing grows while a server is away, and one that comes back gets all that it missed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge_ds.config.load import flatten
from bridge_ds.config.schema import Config, TrackConfig
from bridge_ds.engine.hooks import Hook, StepRecord
from bridge_ds.track.mlflow_database import sqlite_uri
from bridge_ds.track.mlflow_faults import one_line
from bridge_ds.track.mlflow_run import MlflowRun

__all__ = ["MlflowTracker", "set_defaults", "tracking_uri"]

_log = logging.getLogger(__name__)

_DEFAULTS = {
    # MLflow's own defaults (7 retries, 120 s) hold a call to a dead server for 4 to 20 minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # A line of its own would tear the progress bar.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
_RETRY_SECONDS = 60.0
"""Pause after a failure; the end of the run cuts it short."""
_FIRST_DATABASE_SECONDS = 90.0
"""Patience at the end when the store is a sqlite file: its first use runs MLflow's migrations (7 s)."""
_KILLED_SECONDS = 5.0
"""Patience when the job is being taken away: the grace time belongs to the checkpoint."""


class MlflowTracker(Hook):
    """Sends the run to MLflow. On rank 0 only, after :class:`.MetricsLog` and :class:`.PlotHook`."""

    def __init__(
        self,
        folder: Path,
        config: Config,
        facts: Mapping[str, object] | None = None,
        close_seconds: float = 15.0,
    ) -> None:
        """Nothing is imported or contacted yet.

        Args:
            folder: the run folder, with metrics.jsonl in it.
            config: the resolved config; its keys become the params.
            facts: what may differ between attempts (ranks, nodes, job); tags `attempt.N.<name>`.
            close_seconds: the longest that :meth:`on_end` waits for a server.
        """
        self._close_seconds = close_seconds
        self._facts = dict(facts or {})
        uri = tracking_uri(config.track, Path(folder))
        self._run = None if uri is None else MlflowRun(Path(folder), uri, config.track, flatten(config))
        self._thread: threading.Thread | None = None
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._status = ""
        self._error: Exception | None = None
        self._warned = self._done = False

    def on_start(self, *, step: int, total_steps: int) -> None:
        """Remember where this attempt starts."""
        self._facts["start_step"] = step

    def on_step(self, record: StepRecord) -> None:
        """Wake the thread if this step is one of those sent."""
        # The thread starts with the first step, not in on_start: it imports much, and a DataLoader worker
        # forked in the midst of an import would inherit a lock that nobody opens.
        if self._run is not None and (self._thread is None or self._run.is_due(record)):
            self._start()
            self._wake.set()

    def on_evaluation(self, results: dict[str, Any]) -> None:
        """Keep the scores for the end."""
        if self._run is not None:
            self._run.results = results

    def on_end(self, status: str) -> None:
        """Set the status and send the rest, for a bounded time; what is missing then is said in one line."""
        if self._run is None:
            return
        self._status = status
        self._start()
        self._ending.set()
        self._wake.set()
        assert self._thread is not None
        self._thread.join(self._patience(status))
        if self._done:
            _log.info(f"MLflow: run {self._run.state.run_id} is {status} at {self._run.public_uri}")
            return
        why = one_line(self._error) if self._error else "no answer in time"
        _log.warning(
            f"MLflow: not sent: {self._run.missing()} ({why}); all of it is still in {self._run.folder}; "
            f"send it later with: python -m bridge_ds.track.sync {self._run.folder}"
        )
        with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
            self._run.note_unsent(status)

    def _patience(self, status: str) -> float:
        if status == "killed":
            return min(_KILLED_SECONDS, self._close_seconds)
        assert self._run is not None
        is_file = self._run.uri.startswith("sqlite")
        return max(self._close_seconds, _FIRST_DATABASE_SECONDS) if is_file else self._close_seconds

    def _start(self) -> None:
        if self._thread is None:
            set_defaults()
            self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        # The only place that calls MLflow. An error costs a warning and a pause, never the run.
        run = self._run
        assert run is not None
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending.is_set()
            try:
                if said := run.open(self._facts):
                    _log.warning(said)
                run.send_new()
                if ending:
                    run.finish(self._status)
                self._done, self._error = ending, None
            except Exception as error:
                run.close()
                self._error = error
                if not ending:
                    self._warn(error)
                    self._ending.wait(_RETRY_SECONDS)
                    self._wake.set()
            if ending:
                return

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                f"MLflow at {self._run.public_uri if self._run else ''} failed "
                f"({one_line(error)}); training goes on, and what metrics.jsonl has is sent when it answers"
            )


def tracking_uri(track: TrackConfig, folder: Path, environ: Mapping[str, str] | None = None) -> str | None:
    """The first of `track.uri`, MLFLOW_TRACKING_URI, mlflow.db beside the run folder; None = nowhere."""
    env = os.environ if environ is None else environ
    uri = track.uri or env.get("MLFLOW_TRACKING_URI", "")
    if uri.lower() == "none":
        return None
    return uri or sqlite_uri(folder.absolute().parent / "mlflow.db")


def set_defaults() -> None:
    """Give MLflow's variables short defaults; values that the user has set stay."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
