"""Where a run is, where it is recorded, and what is scored after training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Le

from bridge_ds.config.schema.fields import (
    NEITHER,
    ORDER,
    TRAINING,
    Flag,
    Keys,
    Listed,
    NonNegativeInt,
    OptionalText,
    Path,
    PositiveInt,
    Real,
    Rule,
    Section,
    Table,
    Text,
    Texts,
    Whole,
)

__all__ = ["EvaluationConfig", "RunConfig", "TaskDataConfig", "TrackConfig"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run lives and what makes it repeatable."""

    output: Annotated[Path, Rule(bool, "the path of the run folder"), NEITHER] = "runs/default"
    """Run folder; made if absent. Holds config.yaml, metrics.jsonl, checkpoints/, plots/, evaluation.json."""
    seed: Annotated[Whole, Ge(0), Le(2**63 - 1), ORDER] = 0
    """Seed of the data order, the initial bridge and dropout."""
    resume: Annotated[Path, NEITHER] = "auto"
    """`auto` continues from the newest valid checkpoint if there is one, `never` starts at step 0 in an empty folder,
    `must` demands a checkpoint; or the path of one step folder, after which the run's later checkpoints are set aside
    (the same command again goes on from its own progress)."""
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
    hang_seconds: Annotated[
        Real, Le(31_536_000), Rule(lambda v: v == 0 or v >= 5, "0, or from 5 to 31,536,000 (a year)"), NEITHER
    ] = 900.0
    """Seconds without progress in training after which the job ends with the name of the stuck rank; 0 = never."""


@dataclass(frozen=True, kw_only=True)
class TrackConfig:
    """What is recorded and shown."""

    to: Annotated[Texts, NEITHER] = ("mlflow",)
    """Where metrics.jsonl is sent: mlflow, tensorboard (event files beside metrics.jsonl), wandb. The last two are
    extras: pip install 'bridge_ds[tensorboard]'."""
    uri: Annotated[Path, NEITHER] = ""
    """MLflow tracking URI; empty = MLFLOW_TRACKING_URI, else an SQLite file mlflow.db beside run.output; `none` =
    metrics.jsonl only."""
    experiment: Annotated[Text, Rule(bool, "the name of an MLflow experiment"), NEITHER] = "bridge_ds"
    """MLflow experiment name, W&B project."""
    name: Annotated[Text, NEITHER] = ""
    """Name of the run there; empty = the name of the run folder."""
    every: Annotated[PositiveInt, NEITHER] = 10
    """Optimizer steps between two lines on a console that is no terminal, and between two points in the
    trackers."""


@dataclass(frozen=True, kw_only=True)
class TaskDataConfig:
    """Where one benchmark's rows come from and how they are read, where that differs from the task's own."""

    source: Path = ""
    """Hub id, or a local folder: LANGUAGE.jsonl (csv, tsv, parquet) for the test, train/en.jsonl to pack, or a copy of
    the hub's files; empty = the task's own hub id."""
    revision: OptionalText = None
    """Hub revision (commit, tag, branch; refs/convert/parquet where a repository has a loading script, which is never
    run); null = the task's own for its own id, else the default branch."""
    fields: Annotated[dict[Text, Text], Table] = field(default_factory=dict)
    """Field of the task -> column of the data, where the names differ, such as {premise: sentence1}."""
    prompt: Text = ""
    """Prompt with the task's fields in braces, such as "Review: {text} Label:"; empty = the task's own."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """The tasks scored after training, in every language they have."""

    tasks: Annotated[Texts, NEITHER] = ()
    """Names of built-in tasks or of `tasks`; empty = no evaluation at the end."""
    languages: Annotated[Texts, NEITHER] = ()
    """Language codes; empty = every language of each task."""
    limit: Annotated[NonNegativeInt, NEITHER] = 0
    """Samples per task and language; 0 = all."""
    batch: Annotated[PositiveInt, Le(1_000_000), NEITHER] = 32
    """Samples per rank per forward pass."""
    null_scores: Annotated[Flag, NEITHER] = False
    """Score each choice after a null source too (the prompt with its fields left empty), so that a label that is likely
    anyway can be told from one that the text makes likely."""
    max_new_tokens: Annotated[PositiveInt, Le(1_000_000), NEITHER] = 512
    """Most LLM tokens that are generated as an answer, where a task asks for a number."""
    llm_from: Annotated[Path, NEITHER] = ""
    """Another scored run: its answers of the LLM alone are reused where models, settings and samples are the same (in a
    comparison of bridges on one LLM they are the same for every run)."""
    choose: Annotated[Flag, NEITHER] = False
    """Write RUN/choice.json: in which languages the LLM alone is significantly better than the bridge. `generate` and
    `serve` follow it with --choose."""
    data: Annotated[dict[Text, Annotated[TaskDataConfig, Section]], Table, NEITHER] = field(default_factory=dict)
    """By task: other rows than the hub's, such as {xnli: {source: FOLDER, fields: {premise: sentence1}}}."""
