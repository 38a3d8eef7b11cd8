"""A soft prompt that begins as nothing at all.

Vectors of zeros in the input are not nothing: each takes a share of the attention. Here the LLM reads the soft prompt
by itself, and each of its layers attends to the keys and values that it made of it, in a softmax of its own times a
gate (as LLaMA-Adapter, arXiv 2303.16199, does with learned prompts). With all gates at 0 the LLM computes what it
computes without a bridge.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bridge_ds.fusion.kernels.rows import Rows
from bridge_ds.injection.base import Form, Injected, Pair

__all__ = ["GatedPrompt"]


class GatedPrompt(Form):
    """The gates alone: fusion and mapping make the soft prompt, the LLM its keys and values."""

    def __init__(self, layers: int, width: int, llm_width: int, places: int) -> None:
        """Arguments as of :class:`bridge_ds.injection.FormSpec`; K alone matters."""
        super().__init__(places)

    def forward(self, key: torch.Tensor) -> tuple[torch.Tensor]:
        """The gates [K] in the dtype of the keys."""
        return (self.gates.to(key.dtype) * 1,)  # never the parameter itself, which ZeRO-3 releases

    def injected(
        self, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, rows: Rows | None, prompt: Sequence[Pair]
    ) -> Injected:
        (gates_K,) = self(prompt[0][0])
        return Injected(gates_K, mask_BS, prompt, projected=True)
