"""Transformer Softmax (arXiv 2508.09091): weights per token from one transformer layer over the token's layers."""

from __future__ import annotations

from typing import Any

from bridge_ds.fusion.spec import GPU_CHUNK, FusionSpec

__all__ = ["SPEC"]


def _parameters(layers: int, width: int, config: Any) -> int:
    hidden = config.feedforward
    attention, norms = 4 * width * width + 4 * width, 4 * width
    mlp = 2 * width * hidden + hidden + width
    cls_and_positions, scores = width + layers * width, layers * width + layers
    return attention + norms + mlp + cls_and_positions + scores


def _activations(tokens: int, layers: int, width: int, size: int, config: Any) -> int:
    # Per token (kernels/by_token.py): the pooled states of each head in the states' dtype; in float32 the inputs of
    # both norms, the attention before and after dropout, the layers' weights. Of the first chunk also the value (or one
    # matrix of D x D where there are more tokens than D) and the MLP's hidden units in the states' dtype. Triton's
    # kernels store no dropout mask.
    scores = 2 * config.heads * (layers + 1) + layers
    kept = config.heads * width * size + 4 * (2 * width + scores)
    return tokens * kept + min(tokens, GPU_CHUNK) * (width + config.feedforward) * size


SPEC = FusionSpec(
    module="bridge_ds.fusion.transformer_softmax.module:TransformerSoftmax",
    summary="weights per token from one transformer layer over the token's layers",
    options=("dropout", "backend", "heads", "state_norm", "feedforward"),
    parameters=_parameters,
    activations=_activations,
)
