"""From encoder width to LLM width. A new mapping is one entry in MAPPINGS, and a class or function that builds it.
Imports no torch.

Dimensions: D encoder width, H LLM width, N soft tokens.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

__all__ = ["END_INITS", "INITS", "MAPPINGS", "MappingSpec"]

INITS = ("random", "embeddings")
"""How a mapping starts. random: as torch initializes its layers. embeddings: fitted to the LLM's token embeddings
(:mod:`bridge_ds.engine.fitted`)."""

END_INITS = ("normal", "zeros")
"""Initial values of the end vector. normal: LangBridge. zeros: MindMerger, and the code of arXiv 2508.09091."""


@dataclass(frozen=True)
class MappingSpec:
    """One kind of mapping. `config` below is the recipe's `mapping:` part."""

    module: str
    """Class or function (D, H, **options) -> module, as `package.module:name`."""
    summary: str
    """One line, for the table of the docs."""
    parameters: Callable[[int, int, Any], int]
    """(D, H, config) -> number of trained parameters, the end vector aside."""
    activations: Callable[[int, int, int, Any], int] = lambda tokens, source, width, config: 0
    """(source tokens of the batch, of one sample, D, config) -> bytes kept for backward, input and output aside."""
    options: tuple[str, ...] = ()
    """Keys of the recipe's `mapping:` part that it takes; others have no effect."""
    resamples: bool = False
    """It makes `config.latents` soft tokens of a row whatever its source's length; its module also takes the mask, and
    a LayerNorm follows it (LangBridge)."""

    def __call__(self, width: int, llm_width: int, **options: Any) -> nn.Module:
        """Build the module; `options` are those of :attr:`options`."""
        module, _, name = self.module.partition(":")
        made: nn.Module = getattr(importlib.import_module(module), name)(width, llm_width, **options)
        return made


def _mlp(width: int, llm_width: int, config: Any) -> int:
    return (width + 1) * 2 * width + (2 * width + 1) * llm_width


def _latent(width: int, llm_width: int, config: Any) -> int:
    # Attention (q, k, v, out) with two norms, and the MLP with its biases; then the output projection and its norm.
    attention = 4 * width * config.heads * config.head_width + 4 * width
    mlp = config.feedforward * (2 * width * width + width) + width
    return config.latents * width + config.depth * (attention + mlp) + width * llm_width + 2 * llm_width


def _latent_activations(tokens: int, source: int, width: int, config: Any) -> int:
    # Of each layer (resampler.py) in float32: inputs of the products, heads made contiguous, the attention, inputs of
    # the norms, both sides of the MLP's GELU; and the dropout mask.
    latents, keys, inner = config.latents, source + config.latents, config.heads * config.head_width
    products = keys * (width + 2 * inner) + latents * (width + 2 * inner)
    layer = products + config.heads * latents * keys + latents * width * (2 + 2 * config.feedforward)
    return tokens // source * (config.depth * (4 * layer + latents * width) + 4 * latents * width)


MAPPINGS: dict[str, MappingSpec] = {
    "linear": MappingSpec(
        module="torch.nn:Linear",
        summary="D -> H (arXiv 2508.09091, LangBridge's `linear`)",
        parameters=lambda width, llm_width, config: (width + 1) * llm_width,
    ),
    "mlp": MappingSpec(
        module="bridge_ds.mapping.mlp:mlp",
        summary="D -> 2D -> H with ReLU (MindMerger, arXiv 2405.17386)",
        parameters=_mlp,
        activations=lambda tokens, source, width, config: tokens * 4 * 2 * width,
    ),
    "mlp_gelu": MappingSpec(
        module="bridge_ds.mapping.mlp:mlp_gelu",
        summary="D -> 2D -> H with the exact GELU (LangBridge's `ffn`, arXiv 2401.10695)",
        parameters=_mlp,
        activations=lambda tokens, source, width, config: tokens * 4 * 4 * width,  # GELU's input too
    ),
    "latent": MappingSpec(
        module="bridge_ds.mapping.resampler:Resampler",
        summary="a resampler to `mapping.latents` soft tokens, whatever the length (LangBridge's `latent`)",
        parameters=_latent,
        activations=_latent_activations,
        options=("latents", "depth", "heads", "head_width", "feedforward", "dropout"),
        resamples=True,
    ),
}
"""Values of `mapping.kind`."""
