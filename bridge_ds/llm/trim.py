"""The last decoder layer at the wanted positions only: its queries, output projection and MLP.

Whatever the class: the layer runs twice. The first time, on all positions, it hands keys and values to a cache that
keeps them and ends the run there; the second time, on the wanted positions alone, the cache gives it those. What a
class makes of it is seen on a tiny copy (:mod:`bridge_ds.llm.packed`).

Dimensions: B sequences, X their length, H width, Q wanted positions of a sequence at most, N wanted ones of all.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bridge_ds.compat.transformers import CACHE_NAMES
from bridge_ds.data.loading.layout import PackedRows

__all__ = ["last_layer", "layers_in", "trimmed"]


class _Kept(Exception):
    """Keys and values are there."""


class _Other(Exception):
    """The layer wants more of a cache than keys and values (a state-space model's)."""


class _Keys:
    """Stands for the cache of one layer, and passes on to it what it gets."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache
        self.found: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *at: Any, **how: Any) -> Any:
        """As of transformers' Cache: all keys and values that there are."""
        if self.found is None:
            self.found = (keys, values) if self.cache is None else self.cache.update(keys, values, *at, **how)
            raise _Kept
        return self.found

    def __getattr__(self, name: str) -> Any:
        raise _Other


def layers_in(model: nn.Module) -> list[nn.Module]:
    """The longest list of modules, a decoder's layers; empty if there is none."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len, default=()))


def last_layer(model: nn.Module) -> nn.Module | None:
    """The last of :func:`layers_in`; None if there is none."""
    return next(reversed(layers_in(model)), None)


@contextmanager
def trimmed(layer: nn.Module, packed: PackedRows, places_N: torch.Tensor) -> Iterator[list[bool]]:
    """While open, `layer` computes what it may leave out at the wanted positions only; its output is 0 elsewhere.

    A layer that hands nothing to a cache, or gets no 4-D mask, runs as it always does. Activation checkpointing is off
    in it meanwhile: beside keys and values there is little left to recompute.

    Args:
        layer: the last one, of a causal model whose sequences are packed.
        places_N: flat indices of the wanted positions into B x X.

    Yields:
        a list that gets a true once the layer has run so.
    """
    whole, before, done = layer.forward, dict(vars(layer)), [False]
    names = list(inspect.signature(type(layer).forward).parameters)[1:]
    cache = next((name for name in (*CACHE_NAMES, "layer_past") if name in names), "")

    def forward(*given: Any, **options: Any) -> Any:
        taken = dict(zip(names, given, strict=False)) | options
        hidden, keys = taken[names[0]], _Keys(taken.get(cache))
        if not cache or hidden.shape[1] == 1 or not any(_is_mask(value) for value in taken.values()):
            return whole(*given, **options)
        try:
            return whole(**taken | {cache: keys})  # it hands nothing to a cache
        except _Other:
            return whole(*given, **options)
        except _Kept:
            pass
        rows, length = hidden.shape[:2]
        asked_BQ = packed.asked_BQ.to(hidden.device)
        flat = (asked_BQ + torch.arange(rows, device=hidden.device)[:, None] * length).flatten()
        output = whole(**{name: _narrowed(value, flat, rows, length) for name, value in taken.items()} | {cache: keys})
        first = output[0] if isinstance(output, tuple) else output
        first = first.flatten(0, 1).index_select(0, packed.asked_N.to(first.device))
        # Of its whole length, for what the model does with it afterwards.
        first = first.new_zeros(rows * length, first.shape[-1]).index_copy(0, places_N.to(first.device), first)
        first = first.unflatten(0, (rows, length))
        done[0] = True
        return (first, *output[1:]) if isinstance(output, tuple) else first

    layer.forward = forward
    layer.gradient_checkpointing = False  # type: ignore[assignment]
    try:
        yield done
    finally:
        for name in ("forward", "gradient_checkpointing"):
            if name in before:
                setattr(layer, name, before[name])
            else:
                delattr(layer, name)


def _is_mask(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[-1] == value.shape[-2]


def _narrowed(value: Any, flat_Q: torch.Tensor, rows: int, length: int) -> Any:
    """What belongs to positions, at those of `flat_Q` only."""
    if isinstance(value, tuple | list):
        return type(value)(_narrowed(each, flat_Q, rows, length) for each in value)
    if isinstance(value, dict):
        return {name: _narrowed(each, flat_Q, rows, length) for name, each in value.items()}
    if not isinstance(value, torch.Tensor) or value.dim() < 2:
        return value
    if _is_mask(value) and value.shape[-2] == length:
        return _narrowed(value.transpose(1, 2), flat_Q, rows, length).transpose(1, 2)
    if value.shape[1] != length or value.shape[0] not in (1, rows):
        return value
    value = value.expand(rows, *value.shape[1:]).flatten(0, 1)
    return value.index_select(0, flat_Q.to(value.device)).unflatten(0, (rows, -1))
