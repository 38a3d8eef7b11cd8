"""What a frozen and a trained LLM share: embedding of token ids, logits at chosen positions, end ids.

Dimensions: B batch, X spliced length, H LLM width, V vocabulary, N positions predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from bridge_ds.compat.transformers import (
    attend_in_float32,
    cache_of,
    generate_from_embeds,
    given_cache,
    masks_known,
    not_recomputed,
)
from bridge_ds.data.loading.layout import PackedRows
from bridge_ds.injection.base import Injected, Pair
from bridge_ds.llm.attention import AttentionLayers, recorded
from bridge_ds.llm.splice import Segment
from bridge_ds.llm.support import Behavior, positions_of
from bridge_ds.llm.trim import last_layer, trimmed
from bridge_ds.products import swap_linear_layers

__all__ = ["LLM"]


class LLM(nn.Module):
    """Base class of both."""

    trained: frozenset[str] = frozenset()
    """Names of the parameters that are trained."""
    original: bool = True
    """The base model's own weights are unchanged, see :meth:`without_adapters`."""
    behavior = Behavior()
    """What may be done with its cache."""
    attention: AttentionLayers | None = None
    """Its layers that attend beside the text; None = none does."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        swap_linear_layers(model)
        generate_from_embeds(model)
        attend_in_float32()

    def without_adapters(self, wanted: bool = True) -> AbstractContextManager[None]:
        """Disable the adapters while open, if `wanted`: the LLM is then the base model.

        Raises:
            ConfigError: `wanted`, and the base model's own weights were trained.
        """
        raise NotImplementedError

    @property
    def width(self) -> int:
        """H."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @property
    def positions(self) -> int:
        """Positions that the model was built for; 0 = unknown."""
        return positions_of(self.model.config)

    def end_ids(self, eos: int) -> frozenset[int]:
        """Ids that end an answer: the tokenizer's `eos`, which closed every target in training, and those of the LLM's
        own generation_config.json (Llama 3 and Qwen end a turn and a text by two)."""
        own = self.model.generation_config.eos_token_id
        return frozenset({eos, *(own if isinstance(own, list) else [] if own is None else [own])})

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, K] ids -> [B, K, H], with whatever scale the model's own embedding module applies (Gemma)."""
        return self.model.get_input_embeddings()(ids)

    def logits_at(
        self,
        embeds_BXH: torch.Tensor,
        places_N: torch.Tensor,
        cache: object = None,
        packed: PackedRows | None = None,
        injected: Injected | None = None,
        **options: Any,
    ) -> tuple[torch.Tensor, Any]:
        """Run the model and its vocabulary projection at the chosen positions only.

        Args:
            embeds_BXH: input embeddings.
            places_N: flat indices into B x X of the positions whose next token is wanted.
            cache: of the positions before; None = there are none.
            packed: of sequences that are several rows, end to end; or, beside an attention_mask, where each is a row
                and what is wanted of it.
            injected: what its layers attend to beside these positions.
            options: passed to the model (attention_mask, position_ids, use_cache).

        Returns:
            logits [N, V] in the order of `places_N`, and the cache with these positions, if the model gives one.
        """
        options |= {} if cache is None else given_cache(self.model, cache)
        known: AbstractContextManager[None] = nullcontext()
        if options.get("attention_mask") is None:
            known = masks_known(padded=False, packed=packed is not None)
        trimming: AbstractContextManager[Any] = nullcontext()
        if packed is not None:
            options["position_ids"] = packed.position_ids_BX
            if (layer := self._trimmed_layer()) is not None:
                trimming = trimmed(layer, packed, places_N)
        head = self.model.get_output_embeddings()
        with known, trimming, self.attending(injected), _projecting_only(head, places_N):
            output = self.model(inputs_embeds=embeds_BXH, return_dict=True, **options)
        return output.logits[0], cache_of(output)

    @contextmanager
    def attending(self, injected: Injected | None) -> Iterator[None]:
        """While open, its layers attend to `injected` too; until the next call where there is a gradient, since
        activation checkpointing runs them again in backward."""
        if self.attention is not None:
            self.attention.set(injected)
        try:
            yield
        finally:
            if self.attention is not None and not torch.is_grad_enabled():
                self.attention.set(None)

    def keys_and_values(self, soft: Segment) -> tuple[list[Pair], torch.Tensor]:
        """Keys and values that each of its attending layers makes of a soft prompt, read by itself before position 0.

        Args:
            soft: [B, K, H]; zeros of the mask may be anywhere.

        Returns:
            of each layer keys and values [B, heads, K, width], and the mask [B, K] of them, real ones first.
        """
        assert self.attention is not None
        # Unlike splice(), without its longest row: nothing is asked of the device.
        order_BK = torch.argsort(soft.mask_BK.to(torch.int8), dim=1, descending=True, stable=True)
        mask_BK = soft.mask_BK.gather(1, order_BK)
        embeds_BKH = soft.embeds_BKH.gather(1, order_BK[..., None].expand_as(soft.embeds_BKH))
        places_K = torch.arange(mask_BK.shape[1], device=mask_BK.device)
        before_BK = places_K - (mask_BK.sum(1, keepdim=True) if self.behavior.shifts else 0)
        # A causal model: real positions never attend to the padding behind them.
        head = self.model.get_output_embeddings()
        with (
            masks_known(padded=False), not_recomputed(self.model), recorded(self.attention.modules) as found,
            _projecting_only(head, places_K[:1]),
        ):  # fmt: skip
            output = self.model(
                inputs_embeds=embeds_BKH, position_ids=before_BK.expand_as(mask_BK), use_cache=False, return_dict=True
            )
        if self._sharded:
            # ZeRO-3 gathers a layer for backward when a gradient comes to what its forward returned. Keys and values
            # are no part of that, and behind the last layer there is nothing else.
            key, value = found[-1]
            found[-1] = key + 0 * output.logits.sum().to(key), value
        return found, mask_BK

    def _trimmed_layer(self) -> nn.Module | None:
        """The last decoder layer, if it may run at the wanted positions only."""
        layer = last_layer(self.model) if self.behavior.trims else None
        # DeepSpeed gathers each module of a layer in which something is trained, in an order that it records.
        return None if self.trained and self._sharded else layer

    @property
    def _sharded(self) -> bool:
        return hasattr(next(self.model.parameters()), "ds_id")


@contextmanager
def _projecting_only(head: nn.Module, places_N: torch.Tensor) -> Iterator[None]:
    """While open, `head` sees [1, N, H] instead of [B, X, H].

    Full logits (B x X x V) are the memory peak of training. A hook on the module itself, and not `lm_head.weight`
    read by name, is right for every architecture (soft caps and scales act on what comes out) and under ZeRO-3,
    where the weight has no elements outside the module's own forward (huggingface/trl#3368).
    """

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_MH = args[0].flatten(0, 1)
        # The head of an LLM that is split is on another device than its input.
        return (hidden_MH.index_select(0, places_N.to(hidden_MH.device))[None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()
