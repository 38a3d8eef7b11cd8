"""Base models of which something is trained, or runs as in training: what encoder and LLM share."""

from __future__ import annotations

from typing import Any

__all__ = ["choose_trained", "never_drop_layers"]


def choose_trained(model: Any, embeddings: bool) -> None:
    """Give every parameter of a transformers model a gradient; its token embeddings too where `embeddings` says so.

    An output head that shares the embeddings' weight goes with them.
    """
    table = model.get_input_embeddings().weight
    for parameter in model.parameters():
        parameter.requires_grad_(embeddings or parameter is not table)


def never_drop_layers(model: Any) -> None:
    """Switch LayerDrop off: ranks would run different layers (ZeRO-3 then hangs), and a state would be missing."""
    for module in model.modules():
        if getattr(module, "layerdrop", 0):
            module.layerdrop = 0.0
