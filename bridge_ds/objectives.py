"""What a run teaches its bridge (`data.objective`). A new objective is a line here, and its name in the schema.

The losses are in :mod:`bridge_ds.llm.loss` (the task's) and :mod:`bridge_ds.llm.teaching` (self-teaching's).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OBJECTIVES", "Objective"]


@dataclass(frozen=True)
class Objective:
    """The fields of a sample, and the terms of the loss."""

    required: tuple[str, ...]
    """Fields that every sample must hold."""
    one_of: tuple[str, ...] = ()
    """Fields of which it must hold one."""
    optional: tuple[str, ...] = ()
    """Fields that are read where a sample holds them."""
    predicts: bool = True
    """The loss has -log p of the target."""
    teaches: bool = False
    """It has the divergence from what the LLM says where it reads the English text itself."""


OBJECTIVES = {
    "task": Objective(("source", "target"), optional=("prompt",)),
    "prefix_lm": Objective(("text",)),
    "self_teaching": Objective(
        (), one_of=("source", "text"), optional=("target", "prompt"), predicts=False, teaches=True
    ),
    "task_and_self_teaching": Objective(("source", "target"), optional=("prompt", "text"), teaches=True),
}
"""Values of `data.objective`."""
