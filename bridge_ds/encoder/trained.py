"""The encoder where it is trained along with the bridge (LangBridge, arXiv 2401.10695).

Dimensions: B batch, L encoder layers, S encoder tokens, D encoder width.
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
    """float32 weights without a separate master copy, as in the bridge; matrix products in `dtype`, by autocast.

    Cost, compared with bfloat16 weights and float32 masters: under ZeRO-3 no memory (16 bytes per parameter with
    gradient and moments, sharded), but twice the bytes in each gather of the encoder; under stage 2 four more bytes per
    parameter on each rank, two of them copies that live until backward unless activation checkpointing is on.
    """

    def __init__(self, model: Any, dtype: torch.dtype, config: EncoderConfig) -> None:
        """Args:
        model: its weights in float32, sharded or not.
        dtype: of the products, and of the states that are returned.
        config: which parameters are trained, and how.
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
            # Not cached: each rank would keep copies of all weights until the last layer is done, a complete model.
            casting = torch.autocast(source_ids.device.type, self.dtype, cache_enabled=False)
        with casting:
            states = super().forward(source_ids, source_mask, padded)
        # T5's residuals are float32 under autocast; fusion, mapping and LLM take what a frozen encoder gives.
        return tuple(state.to(self.dtype) for state in states)
