"""One file a benchmark: its data, its prompt, its labels. A new one is a file and a line in ``TASKS``."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from bridge_ds.errors import ConfigError
from bridge_ds.tasks.base import Example, Task
from bridge_ds.tasks.testbed import ConstructedTask
from bridge_ds.tasks.xnli import Xnli

__all__ = ["TASKS", "Example", "Task", "find_tasks"]

_ALL: tuple[Task, ...] = (
    ConstructedTask("inference"),
    ConstructedTask("news"),
    ConstructedTask("reviews"),
    Xnli(),
)
TASKS: dict[str, Task] = {task.name: task for task in _ALL}
"""Every benchmark by its name, as `evaluation.tasks` gives it."""


def find_tasks(names: Sequence[str]) -> list[Task]:
    """The tasks of these names, in this order.

    Raises:
        ConfigError: an unknown name; the nearest known one is offered.
    """
    for name in names:
        if name not in TASKS:
            near = difflib.get_close_matches(name, TASKS, n=1, cutoff=0.4)
            advice = f"did you mean {near[0]!r}?" if near else "mend evaluation.tasks."
            raise ConfigError(f"unknown task {name!r}; expected one of {', '.join(TASKS)}; {advice}")
    return [TASKS[name] for name in names]
