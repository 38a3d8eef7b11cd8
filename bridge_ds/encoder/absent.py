"""An encoder that a run does not load, because all of its states are kept (`data.states_cache`)."""

from __future__ import annotations

from typing import Any, NoReturn

from torch import nn

from bridge_ds.config.schema import ModelConfig
from bridge_ds.encoder.base import Encoder
from bridge_ds.encoder.families import family_of
from bridge_ds.encoder.frozen import encoder_base

__all__ = ["AbsentEncoder"]


class AbsentEncoder(Encoder):
    """Its config and sizes, without weights."""

    def __init__(self, config: ModelConfig) -> None:
        """Raises ConfigError: not found, or not an encoder."""
        found = encoder_base(config).config
        skeleton = family_of(config.encoder, found).skeleton(found, trust_remote_code=config.trust_remote_code)
        super().__init__(_ConfigAlone(skeleton.config))
        self._rows = int(skeleton.get_input_embeddings().num_embeddings)

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        return self._rows

    def forward(self, *_: Any) -> NoReturn:
        """Nothing asks for states that are not kept."""
        raise AssertionError("the encoder is not loaded")


class _ConfigAlone(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
