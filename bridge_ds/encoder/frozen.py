"""The frozen multilingual encoder: ids in, the states of all its layers out.

Letters: B batch, L encoder layers, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from bridge_ds.config.names import resolve
from bridge_ds.config.schema import ModelConfig
from bridge_ds.encoder.families import family_of
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.load import DTYPES, load_complete

__all__ = ["FrozenEncoder", "load_encoder"]


class FrozenEncoder(nn.Module):
    """Always in evaluation mode, never with a gradient, whatever `train()` says."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        config = model.config
        self.include_embeddings = False
        """Hand out the embedding output too, first (`fusion.include_embeddings`)."""
        self._blocks = int(_first(config, "num_layers", "encoder_layers", "num_hidden_layers", "n_layers"))
        self.width = int(_first(config, "d_model", "hidden_size", "dim"))

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in evaluation mode: `engine.train()` is recursive and would turn on the encoder's dropout."""
        return super().train(False)

    @property
    def num_layers(self) -> int:
        """States that `forward` hands out: L, one more with the embeddings."""
        return self._blocks + int(self.include_embeddings)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return int(self.model.get_input_embeddings().num_embeddings)

    @torch.no_grad()
    def forward(self, source_ids: torch.Tensor, source_mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Encode.

        Args:
            source_ids: [B, S].
            source_mask: [B, S].

        Returns:
            L tensors [B, S, D] where the encoder left them, never stacked: the outputs of the blocks, the last one
            after the final norm (in T5-like encoders); with `include_embeddings` L + 1, the embeddings first.
            A plain tuple: ZeRO-3's hooks find tensors in no other type.

        Raises:
            ConfigError: the model does not give the states of all its layers.
        """
        output = self.model(
            input_ids=source_ids, attention_mask=source_mask, output_hidden_states=True, return_dict=True
        )
        states = getattr(output, "hidden_states", None) or ()
        if len(states) != self._blocks + 1:
            raise ConfigError(
                f"the encoder gives {len(states)} states; expected {self._blocks + 1} "
                "(the embeddings and each layer); choose an encoder that supports output_hidden_states."
            )
        # states[0] is the embedding output; the last is after the final norm (transformers output_capturing).
        return tuple(states if self.include_embeddings else states[1:])


def load_encoder(config: ModelConfig, hub: Mapping[str, Any] = MappingProxyType({}), **more: Any) -> FrozenEncoder:
    """Load the encoder half of `model.encoder` in `model.dtype`, frozen.

    Args:
        config: which, and how.
        hub: where from (cache_dir, token, local_files_only).
        more: other options of `from_pretrained` (device_map); they win.

    Raises:
        ConfigError: not found, incomplete, or not an encoder.
    """
    from transformers import AutoConfig

    name = resolve(config.encoder)
    options = {"revision": config.encoder_revision, "trust_remote_code": config.trust_remote_code, **hub}
    try:
        model_config = AutoConfig.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"model.encoder {config.encoder!r} cannot be found ({reason}); give a hub id or a folder."
        ) from error
    family = family_of(config.encoder, model_config)
    if family.class_name == "M2M100Encoder":
        options.pop("trust_remote_code")
    options |= {"dtype": DTYPES[config.dtype], **family.options, **more}
    model = load_complete("encoder", name, family.loader(), **options)
    return FrozenEncoder(model)


def _first(config: Any, *names: str) -> Any:
    for name in names:
        if getattr(config, name, None):
            return getattr(config, name)
    raise ConfigError(f"the encoder's config has none of {', '.join(names)}; choose another model.encoder.")
