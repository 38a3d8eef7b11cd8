"""The layers of a base model, and how large they are."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from bridge_ds.engine.distributed import whole_shape

__all__ = ["largest_layer", "layer_weights", "layers_of"]


def layers_of(part: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """The modules of its outermost module lists."""
    for child in part.children():
        yield from child if isinstance(child, torch.nn.ModuleList) else layers_of(child)


def largest_layer(*parts: torch.nn.Module) -> int:
    """Elements of the largest layer, however it is sharded."""
    return max(_sizes(*parts), default=0)


def layer_weights(*parts: torch.nn.Module) -> int:
    """Elements of all layers, however they are sharded: the weights that each token is multiplied by."""
    return sum(_sizes(*parts))


def _sizes(*parts: torch.nn.Module) -> list[int]:
    return [sum(math.prod(whole_shape(p)) for p in layer.parameters()) for part in parts for layer in layers_of(part)]
