"""The encoder where it is trained along with the bridge (LangBridge, arXiv 2401.10695).

Letters: B batch, L encoder layers, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch

from bridge_ds.config.schema import EncoderConfig
from bridge_ds.encoder.base import Encoder
from bridge_ds.frozen.train import Trained

__all__ = ["TrainedEncoder"]


class TrainedEncoder(Trained, Encoder):
    """float32 weights, which are their own masters as the bridge's are; matrix products in `dtype`, by autocast.

    What that costs beside bfloat16 weights with float32 masters: under ZeRO-3 no memory (16 bytes a parameter with
    gradient and moments, shared out) but twice the bytes in each gather of the encoder; under stage 2 four bytes a
    parameter more on each rank, two of them copies that live until backward unless layers are computed again.
    """

    def __init__(self, model: Any, dtype: torch.dtype, config: EncoderConfig) -> None:
        """Args:
        model: its weights in float32, whole or sharded.
        dtype: of the products, and of the states that are handed out.
        config: what of it is trained, and how.
        """
        super().__init__(model)
        self.dtype = dtype
        self.choose(
            embeddings=config.train_embeddings, dropout=config.dropout, recompute=config.activation_checkpointing
        )

    def forward(
        self, source_ids: torch.Tensor, source_mask: torch.Tensor, padded: bool | None = None
    ) -> tuple[torch.Tensor, ...]:
        """As :meth:`Encoder.forward`, in `dtype` and with gradients: L tensors [B, S, D]."""
        casting: Any = nullcontext()
        if self.dtype != torch.float32:
            # Not cached: all weights' copies would stay on each rank until the last layer is done, a whole model.
            casting = torch.autocast(source_ids.device.type, self.dtype, cache_enabled=False)
        with casting:
            states = super().forward(source_ids, source_mask, padded)
        # T5's residuals are float32 under autocast; fusion, mapping and LLM take what a frozen encoder gives.
        return tuple(state.to(self.dtype) for state in states)
