"""Base of the frozen and the trained encoder: token ids in, the states of all layers out.

Dimensions: B batch, L encoder layers, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from bridge_ds.compat.transformers import masks_known
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.gather import LayerGather
from bridge_ds.products import swap_linear_layers

__all__ = ["Encoder", "Input", "States"]

Input: TypeAlias = tuple[torch.Tensor, torch.Tensor, bool | None]
"""Arguments of :meth:`Encoder.forward`."""
States: TypeAlias = tuple[torch.Tensor, ...]
"""Its result: a tensor [B, S, D] for each layer."""


class Encoder(nn.Module):
    """Base of both; a subclass says in which mode the model runs and whether gradients are kept."""

    trained: frozenset[str] = frozenset()
    """Names of the parameters that are trained."""
    by_layer: LayerGather | None = None
    """Gathers the layers under ZeRO-3 instead of DeepSpeed's hooks; None = DeepSpeed does, or they are not sharded."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        swap_linear_layers(model)
        config = model.config
        self.include_embeddings = False
        """Return the embedding output too, as the first state (`fusion.include_embeddings`)."""
        self.blocks = int(_first(config, "num_layers", "encoder_layers", "num_hidden_layers", "n_layers"))
        """L."""
        self.width = int(_first(config, "d_model", "hidden_size", "dim"))

    @property
    def num_layers(self) -> int:
        """Number of states that `forward` returns: L, or L + 1 with the embeddings."""
        return self.blocks + int(self.include_embeddings)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.model.get_input_embeddings().num_embeddings)

    def forward(
        self, source_ids: torch.Tensor, source_mask: torch.Tensor, padded: bool | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Encode.

        Args:
            source_ids: [B, S].
            source_mask: [B, S].
            padded: whether the mask has a 0; None = the model checks, which makes the host wait for the GPU.

        Returns:
            L tensors [B, S, D], not stacked and not copied: the outputs of the blocks, the last one
            after the final norm (in T5-like encoders); with `include_embeddings` L + 1, the embeddings first.
            A plain tuple: ZeRO-3's hooks find tensors in no other type.

        Raises:
            ConfigError: the model does not give the states of all its layers.
        """
        with nullcontext() if padded is None else masks_known(padded):
            output = self.model(
                input_ids=source_ids, attention_mask=source_mask, output_hidden_states=True, return_dict=True
            )
        states = getattr(output, "hidden_states", None) or ()
        if len(states) != self.blocks + 1:
            raise ConfigError(
                f"the encoder gives {len(states)} states; expected {self.blocks + 1} "
                "(the embeddings and each layer); choose an encoder that supports output_hidden_states."
            )
        # states[0] is the embedding output; the last is after the final norm (transformers output_capturing).
        return tuple(states if self.include_embeddings else states[1:])


def _first(config: Any, *names: str) -> Any:
    for name in names:
        if getattr(config, name, None):
            return getattr(config, name)
    raise ConfigError(f"the encoder's config has none of {', '.join(names)}; choose another model.encoder.")
