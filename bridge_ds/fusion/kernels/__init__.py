"""Code paths for the costly half of Transformer Softmax: states -> scores of each layer for each token.

One contract: `path(states, parameters, dropout) -> scores [B, S, L]`, where `parameters` are those of
:class:`bridge_ds.fusion.transformer_softmax.TransformerSoftmax` by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from bridge_ds.fusion.kernels import collapsed, reference

__all__ = ["LAYER_SCORES"]

LayerScores = Callable[[Sequence[torch.Tensor], Mapping[str, torch.Tensor], float], torch.Tensor]

LAYER_SCORES: dict[str, LayerScores] = {
    "reference": reference.layer_scores,
    "torch": collapsed.layer_scores,
}
"""Path name -> function. The reference is the specification; every other path must give what it gives."""
