"""What is scored after training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from bridge_ds.config.schema.fields import (
    NEITHER,
    Flag,
    NonNegativeInt,
    OptionalText,
    Path,
    PositiveInt,
    Section,
    Table,
    Text,
    Texts,
)

__all__ = ["EvaluationConfig", "TaskDataConfig"]


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
    """Names in bridge_ds.tasks.TASKS; empty = no evaluation at the end."""
    languages: Annotated[Texts, NEITHER] = ()
    """Language codes; empty = every language of each task."""
    limit: Annotated[NonNegativeInt, NEITHER] = 0
    """Samples per task and language; 0 = all."""
    batch: Annotated[PositiveInt, NEITHER] = 32
    """Samples per rank per forward pass."""
    null_scores: Annotated[Flag, NEITHER] = False
    """Score each choice after a null source too (the prompt with its fields left empty), so that a label that is likely
    anyway can be told from one that the text makes likely."""
    max_new_tokens: Annotated[PositiveInt, NEITHER] = 512
    """Most LLM tokens that are generated as an answer, where a task asks for a number."""
    llm_from: Annotated[Path, NEITHER] = ""
    """Another scored run: its answers of the LLM alone are reused where models, settings and samples are the same (in a
    comparison of bridges on one LLM they are the same for every run)."""
    data: Annotated[dict[Text, Annotated[TaskDataConfig, Section]], Table, NEITHER] = field(default_factory=dict)
    """By task: other rows than the hub's, such as {xnli: {source: FOLDER, fields: {premise: sentence1}}}."""
