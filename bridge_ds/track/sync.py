"""`bridge-ds sync RUN`: send to the trackers what a run could not send while it ran."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from bridge_ds.config.load import load_run_config
from bridge_ds.config.schema import Config
from bridge_ds.entry import run_command
from bridge_ds.errors import BridgeError, LaunchError
from bridge_ds.track.mlflow_database import sqlite_path
from bridge_ds.track.tracker import MLFLOW_STATE, TrackerState, one_line
from bridge_ds.track.trackers import check_trackers, make_trackers

__all__ = ["main", "sync"]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="bridge-ds sync", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder (the run.output of a training run)")
    folder = parser.parse_args(arguments).run
    print(sync(folder, load_run_config(folder)))
    return 0


def sync(folder: Path, config: Config) -> str:
    """Send all that a run folder has and its trackers have not, in this thread; for after a dead server.

    Returns:
        A line for each tracker that says what was sent.

    Raises:
        ConfigError: `track.to` cannot be used.
        LaunchError: a tracker did not take it.
        DataError: metrics.jsonl or evaluation.json is damaged.
    """
    recorded = TrackerState.load(folder / MLFLOW_STATE).uri
    file = sqlite_path(recorded)
    named = config.track.uri or os.environ.get("MLFLOW_TRACKING_URI")
    # What the run's own shell named; a file of another machine is not there.
    if recorded and not named and (file is None or file.is_file()):
        config = replace(config, track=replace(config.track, uri=recorded))
    check_trackers(config)
    lines = []
    for tracker in make_trackers(folder, config):
        before = tracker.state.logged_step
        try:
            warning = tracker.open(None)
            tracker.send_new()
            if tracker.state.status:
                tracker.finish(tracker.state.status)
            else:  # a run that SIGKILL ended may have been scored since
                tracker.send_results()
        except BridgeError:
            raise  # it answers and says what is to be changed, or a file of the run is damaged
        except Exception as error:
            raise LaunchError(
                f"{tracker.name} at {tracker.where} failed ({one_line(error)}); expected a store that answers; "
                f"{tracker.remedy}."
            ) from error
        lines += [warning] if warning else []
        steps = f"steps {before} to {tracker.state.logged_step}"
        lines.append(f"{tracker.name}: run {tracker.state.run_id} at {tracker.where}: {steps} sent")
    return "\n".join(lines) or "track.to is empty, or track.uri is none: nothing to send"


if __name__ == "__main__":
    run_command(main)
