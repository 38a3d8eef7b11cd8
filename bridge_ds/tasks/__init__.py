"""Benchmarks: data, prompt, labels. A new one is a file with its ``TASKS``, and the file's name in ``_FILES``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from importlib import import_module

from bridge_ds.config.schema import Config, TaskConfig, TaskDataConfig
from bridge_ds.errors import ConfigError
from bridge_ds.reading import twice
from bridge_ds.tasks.base import Example, Task
from bridge_ds.tasks.own import own_task
from bridge_ds.tasks.table import TableTask

__all__ = ["TASKS", "Example", "TableTask", "Task", "find_tasks", "tasks_of"]

_FILES = ("testbed", "xnli", "sinhala_news", "amazon_reviews", "belebele", "xcopa", "maths", "sib200", "masakhanews",
          "iroko", "xstorycloze", "global_mmlu")  # fmt: skip
TASKS: dict[str, Task] = {task.name: task for file in _FILES for task in import_module(f"{__name__}.{file}").TASKS}
"""Every benchmark by its name, as in `evaluation.tasks`."""


def find_tasks(
    names: Sequence[str],
    data: Mapping[str, TaskDataConfig] | None = None,
    own: Mapping[str, TaskConfig] | None = None,
) -> list[Task]:
    """The tasks of these names, in this order, with the data that the recipe gives them.

    Args:
        names: as `evaluation.tasks`.
        data: as `evaluation.data`; it may name tasks that are not in `names`.
        own: as `tasks`, checked.

    Raises:
        ConfigError: an unknown name (the nearest known one is offered), a name given twice, data for a task that
            generates its own, or a task of the recipe that has a built-in one's name or cannot be made.
    """
    data, own = data or {}, own or {}
    for name in own:
        if name in TASKS:
            raise ConfigError(f"tasks.{name} has the name of a built-in task; expected another; rename it.")
    known = [*TASKS, *own]
    for key, given in (("evaluation.tasks", names), ("evaluation.data", data)):
        for name in given:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
                advice = f"did you mean {near[0]!r}?" if near else f"correct {key}, or declare it under `tasks`."
                raise ConfigError(f"unknown task {name!r}; expected one of {', '.join(known)}; {advice}")
    again = twice(names)
    if again is not None:
        raise ConfigError(f"evaluation.tasks names {again} twice; expected each task once; remove one.")
    return [
        own_task(name, own[name], data.get(name)) if name in own else _with_data(TASKS[name], data.get(name))
        for name in names
    ]


def tasks_of(config: Config) -> list[Task]:
    """The tasks that a run is scored on. Raises ConfigError as :func:`find_tasks`."""
    return find_tasks(config.evaluation.tasks, config.evaluation.data, config.tasks)


def _with_data(task: Task, given: TaskDataConfig | None) -> Task:
    if given is None:
        return task
    if not isinstance(task, TableTask):
        raise ConfigError(
            f"evaluation.data.{task.name} gives data to a task that generates its own; expected a benchmark with rows; "
            "remove it."
        )
    return dataclasses.replace(task, given=given)
