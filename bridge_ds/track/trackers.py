"""Trackers are fed by a thread each: one can be slow or dead, and training never waits.

No queue holds numbers: metrics.jsonl is the queue. Training only wakes the threads, which read and send what is new in
the file. So nothing grows while a server is away, and one that comes back gets all that it missed.

A thread and not a process: a process would have to import MLflow again (2 s, 180 MB), to end by itself when training
is killed while the next start already sends to the same run, and to leave signals of the job to training. The thread
ends with its process, and the interpreter lock costs training nothing measurable: it holds it for milliseconds every
`track.every` steps.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import logging
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge_ds.config.schema import Config
from bridge_ds.engine.hooks import Hook, StepRecord
from bridge_ds.errors import ConfigError
from bridge_ds.reading import twice
from bridge_ds.track.tracker import Tracker, Unsent, one_line

__all__ = ["TRACKERS", "Feed", "check_trackers", "feeds", "make_trackers"]

_log = logging.getLogger(__name__)

TRACKERS = {
    "mlflow": "bridge_ds.track.mlflow",
    "tensorboard": "bridge_ds.track.tensorboard",
    "wandb": "bridge_ds.track.wandb",
}
"""Names for `track.to`, each that of the package which it needs and of the extra in setup.py -> module whose
`make_tracker(folder, config)` gives the tracker, or None if there is nothing to log to."""
_RETRY_SECONDS = 60.0
"""Pause after a failure; the end of the run cuts it short."""
_KILLED_SECONDS = 5.0
"""Patience when the job is being taken away: the grace time belongs to the checkpoint."""


def check_trackers(config: Config) -> None:
    """Raises ConfigError if `track.to` names one twice, an unknown one, or one whose package is not installed."""
    if again := twice(config.track.to):
        raise ConfigError(f"track.to names {again} twice; expected each tracker once; remove one.")
    for name in config.track.to:
        if name not in TRACKERS:
            near = difflib.get_close_matches(name, TRACKERS, n=1)
            mean = f"; did you mean {near[0]!r}?" if near else "."
            raise ConfigError(f"track.to has {name!r}; expected names among {', '.join(TRACKERS)}{mean}")
        unused = name == "mlflow" and config.track.uri.lower() == "none"
        if not unused and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"track.to has {name!r}, which needs the package {name}; expected it to be installed; pip install "
                f"'bridge_ds[{name}]', or take {name!r} out."
            )


def make_trackers(folder: Path, config: Config) -> list[Tracker]:
    """The trackers of `track.to`; nothing is contacted yet.

    Args:
        folder: the run folder.
        config: the resolved config.
    """
    made = [importlib.import_module(TRACKERS[name]).make_tracker(folder, config) for name in config.track.to]
    return [tracker for tracker in made if tracker is not None]


def feeds(
    folder: Path,
    config: Config,
    facts: Mapping[str, object] | None = None,
    close_seconds: float = 15.0,
    again_after: int | None = None,
) -> list[Feed]:
    """A hook for each tracker; arguments as :class:`Feed` and :func:`make_trackers`.

    Args:
        again_after: steps after this one are trained anew, from an older checkpoint: a tracker that has such steps
            begins a new run, with all steps.
    """
    made = make_trackers(folder, config)
    for tracker in made:
        if again_after is not None and tracker.state.logged_step > again_after:
            tracker.begin_anew()
            with contextlib.suppress(OSError):
                tracker.save()  # at once: the next start is no new future, and this one may end before a server answers
    return [Feed(tracker, facts, close_seconds) for tracker in made]


class Feed(Hook):
    """Keeps a tracker up to date. On rank 0 only, after :class:`.MetricsLog` and :class:`.PlotHook`."""

    def __init__(
        self, tracker: Tracker, facts: Mapping[str, object] | None = None, close_seconds: float = 15.0
    ) -> None:
        """Nothing is imported or contacted yet.

        Args:
            tracker: where the run is logged.
            facts: what may differ between attempts (ranks, nodes, job).
            close_seconds: the longest that :meth:`on_end` waits for a server.
        """
        self._close_seconds = close_seconds
        self._facts = dict(facts or {})
        self._tracker = tracker
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
        # The thread starts with the first step, not in on_start: it imports much, and a DataLoader worker forked in the
        # middle of an import would inherit a lock that nobody releases.
        if self._thread is None or self._tracker.is_due(record):
            self._start()
            self._wake.set()

    def on_evaluation(self, results: dict[str, Any]) -> None:
        """Keep the scores for the end."""
        self._tracker.results = results

    def on_end(self, status: str) -> None:
        """Set the status and send the rest, for a bounded time; one line reports what is missing then."""
        tracker = self._tracker
        self._status, tracker.hurried = status, status == "killed"
        self._start()
        self._ending.set()
        self._wake.set()
        assert self._thread is not None
        killed = min(_KILLED_SECONDS, self._close_seconds)
        self._thread.join(killed if status == "killed" else max(self._close_seconds, tracker.patience))
        if self._done:
            _log.info(f"{tracker.name}: run {tracker.state.run_id} is {status} at {tracker.where}")
            return
        if isinstance(self._error, Unsent):
            _log.warning(f"{tracker.name}: {one_line(self._error)}")
            return
        why = one_line(self._error) if self._error else "no answer in time"
        _log.warning(
            f"{tracker.name}: not sent: {tracker.missing()} ({why}); all of it is still in {tracker.folder}; "
            f"send it later with: bridge-ds sync {tracker.folder}"
        )
        with contextlib.suppress(OSError):  # a full disk must not hide how the run ended
            tracker.state.status = status  # for a later sync
            tracker.save()

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self._tracker.name, daemon=True)
            self._thread.start()

    def _work(self) -> None:
        # Nothing else calls the tracker's client. An error costs a warning and a pause, never the run.
        tracker = self._tracker
        while True:
            self._wake.wait()
            self._wake.clear()
            ending = self._ending.is_set()
            try:
                if warning := tracker.open(self._facts):
                    _log.warning(warning)
                tracker.send_new()
                if ending:
                    tracker.finish(self._status)
                self._done, self._error = ending, None
            except Exception as error:
                tracker.close()
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
                f"{self._tracker.name} at {self._tracker.where} failed ({one_line(error)}); training goes on, and what "
                "metrics.jsonl has is sent when it answers"
            )
