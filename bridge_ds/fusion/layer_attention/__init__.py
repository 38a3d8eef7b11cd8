"""Layer Attention (arXiv 2508.09091, variant AT of its public code): each token attends to its own layers."""

from __future__ import annotations

from bridge_ds.fusion.spec import FusionSpec

__all__ = ["SPEC"]

SPEC = FusionSpec(
    module="bridge_ds.fusion.layer_attention.module:LayerAttention",
    summary="weights per token from one learned query over the token's layers (the paper's variant AT)",
    options=("backend", "state_norm"),
    parameters=lambda layers, width, config: width,
    activations=lambda tokens, layers, width, size, config: tokens * 4 * (layers + 1),  # the attention, float32
)
