"""The frozen English LLM: embeds text, predicts at chosen places, keeps its prefix cache while labels are scored.

Letters: B batch, X spliced length, H LLM width, V vocabulary, N places predicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from bridge_ds.compat import masks_known
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import ModelConfig
from bridge_ds.frozen.load import DTYPES, load_complete
from bridge_ds.frozen.recompute import enable_recomputing, set_recomputing
from bridge_ds.llm.bias import use_trained

__all__ = ["FrozenLLM", "load_llm"]


class FrozenLLM(nn.Module):
    """Always in evaluation mode, its own weights never with a gradient; gradients pass through to the soft prompt."""

    def __init__(self, model: Any, activation_checkpointing: bool = False) -> None:
        super().__init__()
        self.model = model
        self.activation_checkpointing = activation_checkpointing
        self.trained: frozenset[str] = frozenset()
        """Names of the parameters that LoRA has added (:func:`bridge_ds.llm.lora.add_lora`)."""
        self.updated: list[Any] = []
        """The layers that it has added them to."""
        self.biased: list[nn.Module] = []
        """Modules with a trained bias beside their own (:mod:`bridge_ds.llm.bias`)."""
        if activation_checkpointing:
            enable_recomputing(model)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenLLM:
        """Stays in evaluation mode, except for what recomputes layers, and for LoRA's own dropout."""
        super().train(False)
        if self.activation_checkpointing:
            set_recomputing(self.model, mode)
        for layer in self.updated:
            layer.lora_dropout.train(mode)
        return self

    @contextmanager
    def alone(self, wanted: bool = True) -> Iterator[None]:
        """While open, and if `wanted`, the LLM is the one that was loaded, without LoRA's updates and biases."""
        updated, biased = (self.updated, self.biased) if wanted else ([], [])
        for layer in updated:
            layer.enable_adapters(False)
        for module in biased:
            use_trained(module, False)
        try:
            yield
        finally:
            for layer in updated:
                layer.enable_adapters(True)
            for module in biased:
                use_trained(module, True)

    @property
    def width(self) -> int:
        """H."""
        return int(self.model.get_input_embeddings().embedding_dim)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """[B, K] ids -> [B, K, H], with whatever scale the model's own embedding module applies (Gemma)."""
        return self.model.get_input_embeddings()(ids)

    def logits_at(self, embeds_BXH: torch.Tensor, places_N: torch.Tensor, **options: Any) -> tuple[torch.Tensor, Any]:
        """Run the model and its vocabulary projection at the chosen places only.

        Args:
            embeds_BXH: input embeddings.
            places_N: flat places among B x X whose next token is wanted.
            options: passed to the model (attention_mask, position_ids, past_key_values, use_cache).

        Returns:
            logits [N, V] in the order of the places, and the model's whole output.
        """
        known = masks_known(padded=False) if options.get("attention_mask") is None else nullcontext()
        with known, _projecting_only(self.model.get_output_embeddings(), places_N):
            output = self.model(inputs_embeds=embeds_BXH, return_dict=True, **options)
        return output.logits[0], output


@contextmanager
def _projecting_only(head: nn.Module, places_N: torch.Tensor) -> Iterator[None]:
    """While open, `head` sees [1, N, H] instead of [B, X, H].

    Full logits (B x X x V) are the memory peak of training. A hook on the module itself, and not `lm_head.weight`
    read by name, is right for every architecture (soft caps and scales act on what comes out) and under ZeRO-3,
    where the weight has no elements outside the module's own forward (huggingface/trl#3368).
    """

    def select(_: nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        hidden_MH = args[0].flatten(0, 1)
        # The head of an LLM that is split lies on another device than its input.
        return (hidden_MH.index_select(0, places_N.to(hidden_MH.device))[None], *args[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def load_llm(config: ModelConfig, **options: Any) -> FrozenLLM:
    """Load `model.llm` in `model.dtype`, frozen.

    Args:
        config: which, and how.
        options: more of `from_pretrained` (device_map, quantization_config, token); they win.

    Raises:
        ConfigError: not found, incomplete, or not a causal language model.
    """
    from transformers import AutoModelForCausalLM

    model = load_complete(
        "LLM",
        resolve(config.llm),
        AutoModelForCausalLM.from_pretrained,
        **{
            "dtype": DTYPES[config.dtype],
            "revision": config.llm_revision,
            "trust_remote_code": config.trust_remote_code,
            **options,
        },
    )
    return FrozenLLM(model, config.activation_checkpointing)
