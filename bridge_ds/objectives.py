"""What a run teaches (`data.objective`). A new objective is a line here, and its name in the schema.

The losses are in :mod:`bridge_ds.llm.loss` (the task's), :mod:`bridge_ds.llm.teaching` (self-teaching's) and
:mod:`bridge_ds.adapt` (those of the encoder alone).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

__all__ = ["OBJECTIVES", "Objective"]


@dataclass(frozen=True)
class Objective:
    """The fields of a sample, and the terms of the loss."""

    required: tuple[str, ...]
    """Fields that every sample must hold; the encoder reads the first."""
    one_of: tuple[str, ...] = ()
    """Fields of which it must hold one, where none is required; the encoder reads the first that it holds."""
    optional: tuple[str, ...] = ()
    """Fields that are read where a sample holds them."""
    with_target: Objective | None = None
    """What counts for samples that hold `target`, where that is another objective."""
    predicts: bool = False
    """The loss has -log p of the target."""
    teaches: bool = False
    """It has the divergence from what the LLM says where it reads the English text itself."""
    denoises: bool = False
    """It has -log p of what is hidden of a text, and the encoder alone is trained (`bridge-ds adapt`)."""
    aligns: bool = False
    """It has the distance to the original encoder's states of the English target; likewise of the encoder alone."""

    @property
    def adapts(self) -> bool:
        """Whether the encoder alone is trained."""
        return self.denoises or self.aligns

    def of(self, sample: Mapping[str, Any]) -> Objective:
        """The objective that counts for a sample."""
        return self.with_target if self.with_target and sample.get("target") is not None else self

    def read(self, sample: Mapping[str, Any]) -> str:
        """Name of the field that the encoder reads, where the sample holds it or must; empty = it has none."""
        kind = self.of(sample)
        held = [name for name in kind.one_of if sample.get(name) is not None]
        return next(iter((*kind.required, *held)), "")


# Corpora of unlabeled text often name their origin `source` beside the text.
_DENOISE = Objective((), one_of=("text", "source"), denoises=True)
_ALIGN = Objective(("source", "target"), aligns=True)

OBJECTIVES = {
    "task": Objective(("source", "target"), optional=("prompt",), predicts=True),
    "prefix_lm": Objective(("text",), predicts=True),
    "self_teaching": Objective((), one_of=("source", "text"), optional=("text", "target", "prompt"), teaches=True),
    "task_and_self_teaching": Objective(("source", "target"), optional=("prompt", "text"), predicts=True, teaches=True),
    "denoise": _DENOISE,
    "align": _ALIGN,
    "denoise_and_align": replace(_DENOISE, with_target=_ALIGN, aligns=True),
}
"""Values of `data.objective`."""
