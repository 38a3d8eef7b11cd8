"""What a task gives to train on: its English train split as the rows of shards."""

from __future__ import annotations

from collections.abc import Iterator

from bridge_ds.config.names import EMBEDDED_SHARDS, TASK_SHARDS, task_of_shards
from bridge_ds.config.schema import Config
from bridge_ds.data.shards.index import ShardIndex
from bridge_ds.errors import DataError
from bridge_ds.tasks import find_tasks
from bridge_ds.tasks.base import Task
from bridge_ds.tasks.table import TableTask
from bridge_ds.testbed import ENGLISH_ROWS, english_rows

__all__ = ["rows_at_start", "train_rows", "written_for"]

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
    name = task_of_shards(config.data.shards)
    if not name:
        return english_rows(ENGLISH_ROWS), ""
    (task,) = find_tasks([name], config.evaluation.data, config.tasks)
    return train_rows(task)


def written_for(index: ShardIndex) -> str:
    """The `data.shards` of the start that wrote RUN/shards."""
    name, split, _ = index.shards[0].source.partition(_SPLIT)
    return TASK_SHARDS + name if split else EMBEDDED_SHARDS
