"""What a frozen and a trained encoder share: ids in, the states of all layers out.

Letters: B batch, L encoder layers, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypeAlias

import torch
from torch import nn

from bridge_ds.compat.transformers import masks_known
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.gather import LayerGather

__all__ = ["Encoder", "Input", "States"]

Input: TypeAlias = tuple[torch.Tensor, torch.Tensor, bool | None]
"""What :meth:`Encoder.forward` takes."""
States: TypeAlias = tuple[torch.Tensor, ...]
"""What it gives: a tensor [B, S, D] for each layer."""


class Encoder(nn.Module):
    """Base of both; a subclass says in which mode the model runs and whether gradients are kept."""

    trained: frozenset[str] = frozenset()
    """Names of the parameters that are trained."""
    by_layer: LayerGather | None = None
    """What gathers the layers where ZeRO-3 has sharded them and DeepSpeed does not; none = they are whole."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.include_embeddings = False
        """Hand out the embedding output too, first (`fusion.include_embeddings`)."""
        self.blocks = int(_first(config, "num_layers", "encoder_layers", "num_hidden_layers", "n_layers"))
        """L."""
        self.width = int(_first(config, "d_model", "hidden_size", "dim"))

    @property
    def num_layers(self) -> int:
        """States that `forward` hands out: L, one more with the embeddings."""
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
            padded: whether the mask masks anything; none = the model looks, for which a GPU's host has to wait.

        Returns:
            L tensors [B, S, D] where the encoder left them, never stacked: the outputs of the blocks, the last one
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
