"""What MLflow refuses, as user errors."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from bridge_ds.errors import LaunchError

__all__ = ["experiment_id", "refuse_deleted"]


def experiment_id(client: Any, name: str, artifacts: Path | None, uri: str) -> str:
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


def refuse_deleted(client: Any, run: Any, uri: str, note: Path) -> None:
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
