"""Base of the forms, and what the LLM's attention layers get from them.

Dimensions: B rows, S encoder tokens (or soft tokens), K layers of the LLM that attend, H LLM width, G heads of keys and
values, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from bridge_ds.fusion.kernels.rows import Rows

__all__ = ["Form", "Injected"]

Pair = tuple[torch.Tensor, torch.Tensor]


@dataclass
class Injected:
    """What the LLM's attention layers attend to beside the text, for the rows of a batch."""

    gates_K: torch.Tensor
    """Factor of what each layer gets from it."""
    mask_BS: torch.Tensor
    """1 on vectors that are attended to, 0 on padding. A row without any gets nothing."""
    pairs: Sequence[Pair]
    """For each of the K layers keys and values [B, G, S, E]; or what the layer's own projections make them from
    [B, S, H] (:attr:`projected` is false)."""
    projected: bool
    _made: dict[int, Pair] = field(default_factory=dict, repr=False)

    def to(self, dtype: torch.dtype) -> Injected:
        """In the dtype of the LLM's input."""
        pairs = [(key.to(dtype), value.to(dtype)) for key, value in self.pairs]
        return replace(self, gates_K=self.gates_K.to(dtype), pairs=pairs, _made={})

    def rows(self, index: torch.Tensor | Sequence[int]) -> Injected:
        """Those of some rows, any of them more than once."""
        at = torch.as_tensor(index, device=self.mask_BS.device)
        pairs = [(key.index_select(0, at), value.index_select(0, at)) for key, value in self.pairs]
        return replace(self, mask_BS=self.mask_BS.index_select(0, at), pairs=pairs, _made={})

    def pair(self, place: int, attention: Any, device: torch.device) -> Pair:
        """Keys and values [B, G, S, E] of one layer.

        Args:
            place: its number among the K.
            attention: its attention module of transformers.
            device: where it computes; the encoder's may be another.
        """
        if place in self._made:
            return self._made[place]
        key, value = (part.to(device) for part in self.pairs[place])
        if self.projected:
            return key, value
        made = tuple(
            _heads(getattr(attention, f"{name}_proj")(vectors_BSH), attention, getattr(attention, f"{name}_norm", None))
            for name, vectors_BSH in (("k", key), ("v", value))
        )
        if not torch.is_grad_enabled():  # each token that is written asks again
            self._made[place] = made[0], made[1]
        return made[0], made[1]


def _heads(vectors: torch.Tensor, attention: Any, norm: Any) -> torch.Tensor:
    """[B, S, G E] as [B, G, S, E], through the layer's norm where it has one: of each head (Qwen 3, Gemma 3), or of all
    of them together (OLMo 2 and 3)."""
    weight = getattr(norm, "weight", None)
    width = 0 if weight is None else getattr(weight, "ds_shape", weight.shape)[-1]  # ZeRO-3 leaves `shape` empty
    if width == vectors.shape[-1]:
        vectors, norm = norm(vectors), None
    heads = vectors.unflatten(-1, (-1, attention.head_dim))
    return (heads if norm is None else norm(heads)).transpose(1, 2)


class Form(nn.Module):
    """Base of the forms. Parameters are used in `forward` only, which returns a tuple of tensors: ZeRO-3 wants both."""

    gates: nn.Parameter
    """[K], 0 at first: the LLM then computes what it computes alone, bit for bit."""

    backend = "auto"
    """Of what reads the states, as of :class:`bridge_ds.fusion.base.Fusion`."""

    def __init__(self, places: int) -> None:
        """Args:
        places: K.
        """
        super().__init__()
        self.gates = nn.Parameter(torch.zeros(places))

    def injected(
        self, states: Sequence[torch.Tensor], mask_BS: torch.Tensor, rows: Rows | None, prompt: Sequence[Pair]
    ) -> Injected:
        """What the LLM's layers attend to.

        Args:
            states: of the encoder, L tensors [B, S, D].
            mask_BS: of its tokens; or of the soft prompt, where that is read.
            rows: which of the encoder's tokens are real, if that is known on the host.
            prompt: keys and values of the soft prompt as each of the K layers reads it; empty where the form does not
                ask for it (:attr:`bridge_ds.injection.FormSpec.reads_prompt`).
        """
        raise NotImplementedError
