"""The attention layers of an LLM that attend to more than its text (:mod:`bridge_ds.injection`).

transformers calls attention through an interface, with queries that have their positions already. Behind that call
comes a second one, of the same queries on vectors beside the text, in a softmax of its own; its result, times a gate,
is added before the layer's output projection. Nothing is added to the layer's code, cache or mask.

Dimensions: B rows, X spliced length, S vectors beside the text, H LLM width, K attention layers, A heads, G heads of
keys and values, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from bridge_ds.compat.transformers import BESIDE, call_beside_attention, plain_attention
from bridge_ds.errors import ConfigError
from bridge_ds.injection.base import Injected, Pair
from bridge_ds.llm.tiny_copy import tiny_copy
from bridge_ds.llm.trim import layers_in

__all__ = ["AttentionLayers", "attention_layers", "recorded"]


def attention_layers(model: nn.Module) -> list[nn.Module]:
    """The attention modules of a decoder's layers, in order; of a layer without attention (a state-space one) none."""
    found = []
    for layer in layers_in(model):
        inner = [m for m in layer.modules() if hasattr(m, "layer_idx") and "Attention" in type(m).__name__]
        found += inner[:1]
    return found


def refuse_other_layers(wanted: tuple[int, ...], count: int, kind: str) -> None:
    """Raises ConfigError where injection.llm_layers has a number that a model with so many layers does not have."""
    outside = [number for number in wanted if number >= count]
    if outside:
        raise ConfigError(
            f"injection.llm_layers has {outside[0]}, and {kind} has {count} layers with attention; expected 0 to "
            f"{count - 1}; correct it, or leave it empty for all."
        )


class AttentionLayers:
    """Those of one LLM, all or some."""

    def __init__(self, model: Any, wanted: tuple[int, ...] = (), projects: bool = False) -> None:
        """Args:
        model: of transformers.
        wanted: numbers of its layers with attention, from 0; empty = all.
        projects: each must have projections of keys and values of its own, to which vectors can be given.

        Raises:
            ConfigError: it has no such layers, its attention is not called through the interface, or what it makes of
                vectors is not what it attends to.
        """
        every = attention_layers(model)
        kind = type(model).__name__
        refuse_other_layers(wanted, len(every), kind)
        self.modules = [every[number] for number in wanted] if wanted else every
        call_beside_attention()
        if not self.modules:
            why = "has no attention layer that is found"
        elif projects and not all(map(_has_projections, self.modules)):
            why = "has no k_proj and v_proj in its attention"
        else:
            why = _refusal(model, projects)
        if why:
            raise ConfigError(
                f"injection needs layers of the LLM that can attend beside its text, and {kind} {why}; expected a "
                "model such as Llama, Qwen, Mistral or Gemma; choose another, or injection.form=none."
            )

    def __len__(self) -> int:
        """K."""
        return len(self.modules)

    def set(self, injected: Injected | None) -> None:
        """What they attend to from now on, in backward too, where activation checkpointing runs them again; None =
        their text alone."""
        for place, module in enumerate(self.modules):
            if injected is None:
                vars(module).pop(BESIDE, None)
            else:
                vars(module)[BESIDE] = _Beside(injected, place)


@contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[list[Pair]]:
    """While open, the keys and values of each of these attention modules [B, G, X, E] are appended to the list."""
    found: list[Pair] = []
    modules = list(modules)

    def keep(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None) -> None:
        found.append((key, value))

    for module in modules:
        vars(module)[BESIDE] = keep
    try:
        yield found
    finally:
        for module in modules:
            vars(module).pop(BESIDE, None)


def _has_projections(module: nn.Module) -> bool:
    # An attribute may be None: layers of Gemma 4 that have no values of their own.
    return all(getattr(module, name, None) is not None for name in ("k_proj", "v_proj"))


def _refusal(model: Any, projects: bool) -> str:
    """Why layers of the model's class cannot attend beside their text, seen on a tiny copy; empty = they can."""
    copy = tiny_copy(type(model), model.config)
    modules = attention_layers(copy)
    with torch.no_grad():
        embeds = copy.get_input_embeddings()(torch.arange(8, 12)[None])
        with recorded(modules) as found:
            copy(inputs_embeds=embeds, use_cache=False)
        if len(found) != len(modules):
            return "computes attention outside of transformers' interface"
        if not projects:
            return ""
        modules = [module for module in modules if _has_projections(module)]
        count, mask = len(modules), torch.ones(embeds.shape[:2])
        injected = Injected(torch.ones(count), mask, [(embeds, embeds)] * count, projected=False)
        for place, module in enumerate(modules):
            vars(module)[BESIDE] = _Beside(injected, place)
        try:
            copy(inputs_embeds=embeds, use_cache=False)
        except Exception:  # of whatever type: the layers are transformers'
            return "makes its keys and values of k_proj and v_proj in a way that is not known here"
    return ""


class _Beside:
    """What one layer gets from the vectors beside the text."""

    def __init__(self, injected: Injected, place: int) -> None:
        self.injected, self.place = injected, place

    def __call__(
        self, module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float | None
    ) -> torch.Tensor:
        """[B, X, A, E], to be added to the layer's own result.

        Args:
            query: [B, A, X, E]; with beams or several answers to a prompt each row of the batch is there several
                times.
            scaling: of the layer's own attention. OPT's is 1: its queries are scaled already.
        """
        of = self.injected
        keys, values = of.pair(self.place, module, query.device)
        mask_BS = of.mask_BS.to(query.device).bool()
        if (times := len(query) // len(mask_BS)) > 1:
            keys, values, mask_BS = (part.repeat_interleave(times, 0) for part in (keys, values, mask_BS))
        some_B = mask_BS.any(1)
        seen_BS = mask_BS | ~some_B[:, None]  # a softmax over nothing is NaN
        found = plain_attention()(
            module, query, keys.to(query), values.to(query), seen_BS[:, None, None], dropout=0.0,
            scaling=scaling, is_causal=False,
        )[0]  # fmt: skip
        gate = of.gates_K[self.place].to(query)
        return found * (gate * some_B[:, None, None, None])
