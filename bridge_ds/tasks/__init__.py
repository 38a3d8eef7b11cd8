"""One file a benchmark: its data, its prompt, its labels. A new one is a file and a line in ``TASKS``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.errors import ConfigError
from bridge_ds.reading import twice
from bridge_ds.tasks.amazon_reviews import AmazonReviews
from bridge_ds.tasks.base import Example, Task
from bridge_ds.tasks.belebele import Belebele
from bridge_ds.tasks.maths import Mgsm, Msvamp
from bridge_ds.tasks.sinhala_news import SinhalaNews
from bridge_ds.tasks.table import TableTask
from bridge_ds.tasks.testbed import ConstructedTask
from bridge_ds.tasks.xcopa import Xcopa
from bridge_ds.tasks.xnli import IndicXnli, Xnli

__all__ = ["TASKS", "Example", "TableTask", "Task", "find_tasks"]

_ALL: tuple[Task, ...] = (
    ConstructedTask("inference"),
    ConstructedTask("news"),
    ConstructedTask("reviews"),
    Xnli(),
    IndicXnli(),
    SinhalaNews(),
    AmazonReviews(),
    Belebele(),
    Xcopa(),
    Mgsm(),
    Msvamp(),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Every benchmark by its name, as `evaluation.tasks` gives it."""


def find_tasks(names: Sequence[str], data: Mapping[str, TaskDataConfig] | None = None) -> list[Task]:
    """The tasks of these names, in this order, with the data that the recipe gives them.

    Args:
        names: as `evaluation.tasks`.
        data: as `evaluation.data`; it may name tasks that are not asked for.

    Raises:
        ConfigError: an unknown name (the nearest known one is offered), one given twice, or a task that cannot read
            other data.
    """
    data = data or {}
    for key, given in (("evaluation.tasks", names), ("evaluation.data", data)):
        for name in given:
            if name not in TASKS:
                near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
                advice = f"did you mean {near[0]!r}?" if near else f"mend {key}."
                raise ConfigError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}; {advice}")
    again = twice(names)
    if again is not None:
        raise ConfigError(f"evaluation.tasks names {again} twice; expected each task once; remove one.")
    return [_with_data(TASKS[name], data.get(name)) for name in names]


def _with_data(task: Task, given: TaskDataConfig | None) -> Task:
    if given is None:
        return task
    if not isinstance(task, TableTask):
        raise ConfigError(
            f"evaluation.data.{task.name} gives data to a task that makes its own; expected a benchmark with rows; "
            "remove it."
        )
    return dataclasses.replace(task, given=given)
