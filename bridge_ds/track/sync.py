"""`python -m bridge_ds.track.sync RUN`: send to MLflow what a run could not send while it ran."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bridge_ds.config.load import flatten, load_run_config
from bridge_ds.config.schema import Config
from bridge_ds.entry import run_command
from bridge_ds.errors import EXIT_USER_ERROR, BridgeError, LaunchError
from bridge_ds.track.mlflow import set_defaults, tracking_uri
from bridge_ds.track.mlflow_faults import one_line
from bridge_ds.track.mlflow_run import MlflowRun

__all__ = ["main", "sync"]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_ds.track.sync", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder (the run.output of a training run)")
    folder = parser.parse_args(arguments).run
    try:
        print(sync(folder, load_run_config(folder)))
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


def sync(folder: Path, config: Config) -> str:
    """Send all that a run folder has and MLflow has not, in this thread; for after a dead server.

    Returns:
        One line that says what was sent.

    Raises:
        LaunchError: MLflow did not take it.
    """
    uri = tracking_uri(config.track, folder)
    if uri is None:
        return "track.uri is none: nothing to send"
    set_defaults()
    run = MlflowRun(folder, uri, config.track, flatten(config))
    before = run.state.logged_step
    try:
        said = run.open(None)
        run.send_new()
        if run.state.status:
            run.finish(run.state.status)
    except LaunchError:
        raise  # it answers, and says what is to be mended
    except Exception as error:
        raise LaunchError(
            f"MLflow at {run.public_uri} failed ({one_line(error)}); expected a store that answers; "
            "start the server, or set track.uri in config.yaml."
        ) from error
    sent = f"MLflow: run {run.state.run_id} at {run.public_uri}: steps {before} to {run.state.logged_step} sent"
    return f"{said}\n{sent}" if said else sent


if __name__ == "__main__":
    run_command(main)
