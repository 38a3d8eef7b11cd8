"""Activation checkpointing of a transformers model that stays in evaluation mode."""

from __future__ import annotations

from typing import Any

__all__ = ["enable_recomputing", "set_recomputing"]


def enable_recomputing(model: Any, dropout: bool = False) -> None:
    """Let backward compute the model's layers again instead of keeping what they computed.

    Args:
        dropout: whether the model's own dropout is to run. If not, what a layer drops in its own forward is set to
            nothing (M2M-100's and OPT's layers do, nn.Dropout inside them is not asked for): :func:`set_recomputing`
            puts layers in training mode, which would turn it on.
    """
    # The first name is the one of later transformers 5.x; both take non-reentrant checkpointing as the default.
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    if dropout:
        return
    for layer in _layers(model):
        for name, value in vars(layer).items():
            if name.endswith("dropout") and isinstance(value, float):
                setattr(layer, name, 0.0)


def set_recomputing(model: Any, on: bool) -> None:
    """Set the one flag that decides.

    transformers recomputes a layer only where `layer.training` is true (GradientCheckpointingLayer), so a model in
    evaluation mode silently loses checkpointing. The flag is set on those layers alone: the dropouts inside them are
    modules of their own and stay off.
    """
    for layer in _layers(model):
        layer.training = on


def _layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
