"""The frozen multilingual encoder, and loading of an encoder of either kind.

Dimensions: L encoder layers, B batch, S encoder tokens, D encoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.config.schema import EncoderConfig, ModelConfig
from bridge_ds.encoder.base import Encoder, Input, States
from bridge_ds.encoder.families import family_of
from bridge_ds.encoder.trained import TrainedEncoder
from bridge_ds.frozen.check import BaseModel
from bridge_ds.frozen.configs import base_config
from bridge_ds.frozen.load import DTYPES, load_complete
from bridge_ds.frozen.train import never_drop_layers

__all__ = ["FrozenEncoder", "encoder_base", "load_encoder"]


class FrozenEncoder(Encoder):
    """Without gradients, and in eval mode even after `train()`, unless its dropout is on."""

    def __init__(self, model: Any, dropout: bool = False) -> None:
        """Args:
        model: frozen, sharded or not.
        dropout: run the model's own dropout in training (`encoder.dropout`). Each call draws new masks.
        """
        super().__init__(model)
        self.dropout = dropout
        if dropout:
            never_drop_layers(model)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenEncoder:
        """Stays in eval mode: `engine.train()` is recursive and would turn on the encoder's dropout."""
        super().train(mode and self.dropout)
        return self

    @torch.no_grad()
    def forward(
        self, source_ids: torch.Tensor, source_mask: torch.Tensor, padded: bool | None = None
    ) -> tuple[torch.Tensor, ...]:
        """As :meth:`Encoder.forward`, without a gradient: L tensors [B, S, D]."""
        return self.encode_all([(source_ids, source_mask, padded)])[0]

    @torch.no_grad()
    def encode_all(self, inputs: Sequence[Input]) -> list[States]:
        """:meth:`forward` of several inputs, bit for bit the same (without dropout); a sharded layer is gathered once
        for all of them.

        Memory: the states of all inputs are kept, (L + 1) * B * S * D * bytes of `model.dtype` for each input. Until
        the last layer is done, so is what the model passes from layer to layer (T5's position bias: heads * S * S *
        bytes for each input). A caller may free each input's states as soon as it has used them. Temporaries inside
        a layer are those of one input.

        Args:
            inputs: what :meth:`forward` takes, for each input; B and S may differ.

        Returns:
            The states of each input, as `forward` gives them.
        """
        encode = super().forward
        works = [partial(encode, *taken) for taken in inputs]
        return self.by_layer.run(works) if self.by_layer else [work() for work in works]


def load_encoder(
    config: ModelConfig,
    training: EncoderConfig | None = None,
    hub: Mapping[str, Any] = MappingProxyType({}),
    **more: Any,
) -> Encoder:
    """Load the encoder half of `model.encoder`: frozen in `model.dtype`, or to be trained in float32.

    Args:
        config: which, and how.
        hub: where from (cache_dir, token, local_files_only).
        more: other options of `from_pretrained` (device_map); they win.

    Raises:
        ConfigError: not found, incomplete, or not an encoder.
    """
    base = encoder_base(config, hub)
    dtype = more.pop("dtype", DTYPES[config.dtype])
    if training is None or not training.trainable:
        model = load_complete(base, dtype=dtype, **more)
        return FrozenEncoder(model, dropout=training is not None and training.dropout)
    return TrainedEncoder(load_complete(base, dtype=torch.float32, **more), dtype, training)


def encoder_base(config: ModelConfig, hub: Mapping[str, Any] = MappingProxyType({})) -> BaseModel:
    """`model.encoder` as it is found, checked and loaded; arguments as of :func:`load_encoder`.

    Raises:
        ConfigError: not found, or not an encoder.
    """
    key, name, trust = "model.encoder", config.encoder, config.trust_remote_code
    found = base_config(key, name, config.encoder_revision, trust, hub)
    family = family_of(name, found)
    options = {"revision": config.encoder_revision, "trust_remote_code": trust, **hub, **family.options}
    return BaseModel(key, name, found, family.load_class(), lambda model, ids: Encoder(model)(ids, None), options)
