"""What a task gives to train on: its English train split as the rows of shards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bridge_ds.config.names import EMBEDDED_SHARDS, TASK_SHARDS, task_of_shards
from bridge_ds.config.schema import Config
from bridge_ds.config.text import short
from bridge_ds.data.packing.write import MANIFEST_NAME
from bridge_ds.data.shards.index import load_index
from bridge_ds.errors import DataError
from bridge_ds.reading import json_object
from bridge_ds.tasks import find_tasks
from bridge_ds.tasks.base import Task
from bridge_ds.tasks.flores import find_variety
from bridge_ds.tasks.own import OwnTask
from bridge_ds.tasks.table import TableTask
from bridge_ds.testbed import ENGLISH_ROWS, english_rows

__all__ = ["definition", "refuse_other_rows", "rows_at_start", "train_rows"]

_SPLIT = ", train split of "


def train_rows(task: Task) -> tuple[Iterator[dict[str, str]], str]:
    """`source` and `target` of the English train split, and where they are from, for the index.

    Raises:
        ConfigError: the task has no English train split.
        DataError: the task makes its own samples, or its rows cannot be read.
    """
    if not isinstance(task, TableTask):
        raise DataError(
            f"{task.name} makes its own samples; expected a benchmark; data.shards=testbed/english trains on it."
        )
    rows = ({"source": example.source, "target": example.target} for example in task.train())
    return rows, f"{task.name}{_SPLIT}{task.source}"


def rows_at_start(config: Config) -> tuple[Iterator[dict[str, str]], str]:
    """The rows that the first start of a run writes to RUN/shards (:func:`bridge_ds.config.names.made_at_start`), and
    where they are from; empty for the testbed's.

    Raises:
        ConfigError: no such task, or as :func:`train_rows`; likewise DataError.
    """
    task = _task(config)
    return train_rows(task) if task else (english_rows(ENGLISH_ROWS), "")


def definition(config: Config) -> dict[str, Any]:
    """The settings that decide :func:`rows_at_start`, for the manifest beside the shards; none for the testbed's.

    Settings and not rows: these may be gone when a run goes on.

    Raises:
        ConfigError: no such task.
    """
    task = _task(config)
    if not isinstance(task, TableTask):
        return {}
    given = task.given
    values: dict[str, Any] = {
        "kind": task.kind,
        "source": task.source,
        "revision": given.revision or (None if given.source else task.revision),
        "prompt": given.prompt or task.prompt,
        "fields": task.columns | given.fields,
        "labels": task.labels,
    }
    if isinstance(task, OwnTask):
        own = task.config
        english = find_variety("en", own.languages)  # others may be added later, to be scored
        values |= {
            "labels": own.labels,
            "choices": own.choices,
            "first_choice": own.first_choice,
            "languages": own.languages[english] if english and own.languages[english] != english else None,
            "train_split": own.train_split,
        }
    found: dict[str, Any] = json.loads(json.dumps(values))  # as it is read again: lists for tuples
    return found


def refuse_other_rows(shards: Path, config: Config) -> None:
    """Refuse a start for which RUN/shards would have other samples. Shards from before definitions were recorded are
    compared by the task's name alone.

    Raises:
        DataError: it would; or what is there cannot be read.
        ConfigError: no such task.
    """
    wanted = config.data.shards
    name, split, _ = load_index(shards).shards[0].source.partition(_SPLIT)
    found = TASK_SHARDS + name if split else EMBEDDED_SHARDS
    if found != wanted:
        raise _other(shards, f"data.shards {found!r}", f"{wanted!r}")
    manifest = shards / MANIFEST_NAME
    if not manifest.is_file():
        return
    try:
        before = json_object(manifest).get("task")
    except ValueError as error:
        raise DataError(
            f"{manifest} {error}; expected the file that was written with the shards; choose another run.output, or "
            f"remove {shards}."
        ) from None
    if not isinstance(before, dict):
        return
    for key, value in definition(config).items():
        if key in before and before[key] != value:  # an earlier version may have recorded less
            old, new = short(repr(before[key])), short(repr(value))
            raise _other(shards, f"{wanted} with {key} {old}", new)


def _task(config: Config) -> Task | None:
    """That of `data.shards`; None = the testbed's shards."""
    name = task_of_shards(config.data.shards)
    return find_tasks([name], config.evaluation.data, config.tasks)[0] if name else None


def _other(shards: Path, found: str, wanted: str) -> DataError:
    return DataError(
        f"{shards} was written at the first start of this run, for {found}; this start has {wanted}; expected the "
        f"same; restore that value, choose another run.output, or remove {shards}."
    )
