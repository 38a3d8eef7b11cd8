"""Where a run lives and what is recorded of it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["RunConfig", "TrackConfig"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    output: str = "runs/default"
    """Run folder (path); made if absent. Holds config.yaml, metrics.jsonl, checkpoints/, plots/, evaluation.json."""
    seed: int = 0
    """Seed of the data order, the initial bridge and dropout (whole number, >= 0)."""
    resume: str = "auto"
    """`auto` continues from the newest valid checkpoint if there is one, `never` starts anew in an empty folder,
    `must` demands a checkpoint; or the path of one step folder."""
    allow_changes: tuple[str, ...] = ()
    """Settings that may differ from those of the checkpoint that is continued (or begun with) although the bridge then
    computes or reads something else, such as [data.max_source_tokens]; every change is told and recorded."""
    start_from: str = ""
    """Run folder (its newest checkpoint), RUN/checkpoints/best, or step folder, whose trained weights this run begins
    with, at step 0 and with a new optimizer, such as the stage before this one; empty = weights made from `seed`."""
    ds_config: str = "zero3.json"
    """DeepSpeed file (a path, or a name in ds_configs/)."""
    stop_signals: tuple[str, ...] = ("USR2", "TERM")
    """Signals that ask for a checkpoint and an early end with exit status 75 (USR1 | USR2 | TERM | HUP)."""
    deterministic: bool = False
    """On GPUs too, use only algorithms that give the same numbers each time, at some speed (yes/no); CPUs do anyway."""
    hang_seconds: float = 900.0
    """Seconds without progress in training after which the stuck rank is named and the job ended; 0 = never."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What is recorded and shown."""

    to: tuple[str, ...] = ("mlflow",)
    """Where metrics.jsonl is sent: mlflow, tensorboard (event files in the run folder), wandb. The last two are extras:
    pip install 'bridge_ds[tensorboard]'."""
    uri: str = ""
    """MLflow tracking URI; empty = MLFLOW_TRACKING_URI, else sqlite:///<parent of run.output>/mlflow.db;
    `none` = metrics.jsonl only."""
    experiment: str = "bridge_ds"
    """MLflow experiment name, W&B project."""
    name: str = ""
    """Name of the run there; empty = the name of the run folder."""
    every: int = 10
    """Optimizer steps between two lines on a console that is no terminal, and between two points in the trackers."""
