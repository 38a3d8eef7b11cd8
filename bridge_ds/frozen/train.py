"""Base models of which something is trained, or runs as in training: what encoder and LLM share."""

from __future__ import annotations

from typing import Any, Self

from torch import nn

from bridge_ds.compat.transformers import enable_recomputing, set_recomputing

__all__ = ["Trained", "never_drop_layers"]


class Trained(nn.Module):
    """Mixin of a fully trained encoder or LLM, before the class that holds `model` in the bases."""

    model: Any
    trained: frozenset[str]
    """Names of the parameters that are trained."""

    def choose(self, *, embeddings: bool, dropout: bool, recompute: bool) -> None:
        """Set requires_grad on the model's parameters; the model stays in eval mode.

        Args:
            embeddings: its token embeddings too; an output head that shares their weight goes with them.
            dropout: drop as the model does in its training mode.
            recompute: activation checkpointing: its layers are recomputed in backward.
        """
        self.dropout, self.recomputes = dropout, recompute
        table = self.model.get_input_embeddings().weight
        for parameter in self.model.parameters():
            parameter.requires_grad_(embeddings or parameter is not table)
        self.trained = frozenset(name for name, parameter in self.named_parameters() if parameter.requires_grad)
        if recompute:
            enable_recomputing(self.model, dropout)
        never_drop_layers(self.model)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Training mode only where dropout is asked for."""
        super().train(mode and self.dropout)
        if self.recomputes:
            set_recomputing(self.model, mode)
        return self


def never_drop_layers(model: Any) -> None:
    """Switch LayerDrop off: ranks would run different layers (ZeRO-3 then hangs), and a state would be missing."""
    for module in model.modules():
        if getattr(module, "layerdrop", 0):
            module.layerdrop = 0.0
