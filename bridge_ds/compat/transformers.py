"""transformers: masks that need no look at the device, and activation checkpointing in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, wraps
from typing import Any

__all__ = ["enable_recomputing", "masks_known", "set_recomputing", "unsharded"]

_PADDED: ContextVar[bool | None] = ContextVar("padded", default=None)


@contextmanager
def masks_known(padded: bool) -> Iterator[None]:
    """While open, transformers does not look into masks and positions of the models that run; the caller knows them.

    transformers (5.17 to 5.24 at least) asks the device in every forward pass of a model: whether a padding mask masks
    anything (`_ignore_bidirectional_mask_sdpa`), and, where no mask is given, whether the position ids restart within a
    row (`find_packed_sequence_indices`). On a GPU the host waits for each answer. Here the first is answered by
    `padded`, the second by no: the rows of this project are never packed. The masks that come out are the same. A
    ready 4-D mask would spare the first look too, but models with local attention (ModernBERT) take it for all layers.

    It can go when tests/test_host_waits.py passes without it.

    Args:
        padded: whether the mask that the model gets masks anything.
    """
    _install()
    token = _PADDED.set(padded)
    try:
        yield
    finally:
        _PADDED.reset(token)


@contextmanager
def unsharded() -> Iterator[None]:
    """While open, `from_pretrained` does not shard, though an HfDeepSpeedConfig lives (transformers 5.17 to 5.24)."""
    from transformers.integrations import deepspeed as of

    held = getattr(of, "_hf_deepspeed_config_weak_ref", None)
    of.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        of._hf_deepspeed_config_weak_ref = held


@cache
def _install() -> None:
    """Wrap both functions, once; outside of :func:`masks_known` they do what they did. One that a later version has no
    more is left out: then nothing is known here to be waited for."""
    from transformers import masking_utils

    ignore = getattr(masking_utils, "_ignore_bidirectional_mask_sdpa", None)
    packed = getattr(masking_utils, "find_packed_sequence_indices", None)

    def ignore_known(padding_mask: Any, *args: Any, **options: Any) -> Any:
        padded = _PADDED.get()
        if padded is None or padding_mask is None:
            return ignore(padding_mask, *args, **options)  # type: ignore[misc]
        return False if padded else ignore(None, *args, **options)  # type: ignore[misc]

    def packed_known(position_ids: Any, *args: Any, **options: Any) -> Any:
        return packed(position_ids, *args, **options) if _PADDED.get() is None else None  # type: ignore[misc]

    if ignore:
        masking_utils._ignore_bidirectional_mask_sdpa = wraps(ignore)(ignore_known)
    if packed:
        masking_utils.find_packed_sequence_indices = wraps(packed)(packed_known)


def enable_recomputing(model: Any, dropout: bool = False) -> None:
    """Recompute the model's layers in backward instead of keeping their activations.

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
    """Turn activation checkpointing on or off, in evaluation mode.

    transformers (5.24 at least) recomputes a layer only where `layer.training` is true (GradientCheckpointingLayer), so
    a model in eval mode silently loses checkpointing. The flag is set on those layers alone: the dropouts inside them
    are modules of their own and stay off. tests/test_compat.py fails when transformers no longer asks for it.
    """
    for layer in _layers(model):
        layer.training = on


def _layers(model: Any) -> list[Any]:
    from transformers.modeling_layers import GradientCheckpointingLayer

    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
