"""The LLM where all of it is trained along with the bridge (`llm.trainable`)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bridge_ds.config.schema import LlmConfig
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.train import Trained
from bridge_ds.llm.base import LLM

__all__ = ["TrainedLLM"]


class TrainedLLM(Trained, LLM):
    """float32 weights, which are their own masters; matrix products in `dtype`, by autocast, and residuals too.

    A head that shares the weight of the embeddings is one parameter with them: trained once, saved once. What all this
    costs is what it costs for a trained encoder (:class:`bridge_ds.encoder.trained.TrainedEncoder`).
    """

    original = False

    def __init__(
        self, model: Any, dtype: torch.dtype, config: LlmConfig, activation_checkpointing: bool = False
    ) -> None:
        """Args:
        model: its weights in float32, whole or sharded.
        dtype: of the products, and of embeddings and logits.
        config: what of it is trained, and how.
        activation_checkpointing: compute its layers again in backward.
        """
        super().__init__(model)
        self.choose(embeddings=config.train_embeddings, dropout=config.dropout, recompute=activation_checkpointing)
        if dtype != torch.float32:
            _compute_in(model, dtype)

    @contextmanager
    def without_adapters(self, wanted: bool = True) -> Iterator[None]:
        """See :meth:`LLM.without_adapters`: the base model's own weights are gone."""
        if wanted:
            raise ConfigError(
                "this run trained the LLM itself (llm.trainable), so that the LLM alone, as it was, is not in it; "
                "expected a run with a frozen LLM; take its answers (evaluation.llm_from), or score the base model."
            )
        yield


def _compute_in(model: Any, dtype: torch.dtype) -> None:
    """Let every call of the model, `generate` included, run under autocast and carry `dtype` from layer to layer."""
    forward = model.forward

    @functools.wraps(forward)  # generate() looks at the names of its arguments
    def casting(*args: Any, **options: Any) -> Any:
        table = model.get_input_embeddings().weight
        # Not cached: all weights' copies would stay on each rank until the last layer is done, a whole model.
        with torch.autocast(table.device.type, dtype, cache_enabled=False):
            return forward(*args, **options)

    model.forward = casting
    model.get_input_embeddings().register_forward_hook(lambda _, __, embeds: embeds.to(dtype))
