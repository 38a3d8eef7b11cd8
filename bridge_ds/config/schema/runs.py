"""Where a run lives and what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from bridge_ds.config.schema.fields import (
    NEITHER,
    TRAINING,
    Flag,
    Keys,
    Listed,
    NonNegativeInt,
    Path,
    PositiveInt,
    Real,
    Rule,
    Text,
)

__all__ = ["RunConfig", "TrackConfig"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    output: Annotated[Path, Rule(bool, "the path of the run folder"), NEITHER] = "runs/default"
    """Run folder; made if absent. Holds config.yaml, metrics.jsonl, checkpoints/, plots/, evaluation.json."""
    seed: Annotated[NonNegativeInt, TRAINING] = 0
    """Seed of the data order, the initial bridge and dropout."""
    resume: Annotated[Path, NEITHER] = "auto"
    """`auto` continues from the newest valid checkpoint if there is one, `never` starts anew in an empty folder, `must`
    demands a checkpoint; or the path of one step folder."""
    allow_changes: Annotated[Keys, NEITHER] = ()
    """Settings that may differ from those of the checkpoint that is continued (or begun with) although the bridge then
    computes or reads something else, such as [data.max_source_tokens]; every change is logged and recorded."""
    start_from: Annotated[Path, NEITHER] = ""
    """Run folder (its newest checkpoint), RUN/checkpoints/best, or step folder, whose trained weights this run begins
    with, at step 0 and with a new optimizer, such as the stage before this one; empty = weights made from `seed`."""
    ds_config: Annotated[Path, TRAINING] = "zero3.json"
    """DeepSpeed file (a path, or a name in ds_configs/)."""
    stop_signals: Annotated[tuple[Literal["USR1", "USR2", "TERM", "HUP"], ...], Listed, NEITHER] = ("USR2", "TERM")
    """Signals that ask for a checkpoint and an early end with exit status 75."""
    deterministic: Annotated[Flag, TRAINING] = False
    """Use deterministic algorithms on GPUs too, which is slower; CPUs are deterministic anyway."""
    hang_seconds: Annotated[Real, Rule(lambda v: v == 0 or v >= 5, "0, or 5 or more"), NEITHER] = 900.0
    """Seconds without progress in training after which the job ends with the name of the stuck rank; 0 = never."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What is recorded and shown."""

    uri: Annotated[Path, NEITHER] = ""
    """MLflow tracking URI; empty = MLFLOW_TRACKING_URI, else an SQLite file mlflow.db beside run.output; `none` =
    metrics.jsonl only."""
    experiment: Annotated[Text, Rule(bool, "the name of an MLflow experiment"), NEITHER] = "bridge_ds"
    """MLflow experiment name."""
    name: Annotated[Text, NEITHER] = ""
    """MLflow run name; empty = the name of the run folder."""
    every: Annotated[PositiveInt, NEITHER] = 10
    """Optimizer steps between two lines on a console that is no terminal, and between two MLflow points."""
