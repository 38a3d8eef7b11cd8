"""The base model that a run without a bridge has trained, as a folder of transformers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from bridge_ds.config.names import made_at_start
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.hub.encoder import save_encoder
from bridge_ds.hub.llm import save_llm
from bridge_ds.world import World

__all__ = ["save_alone"]


def save_alone(config: Config, tokenizers: Tokenizers, checkpoint: Path, run: Path, world: World) -> None:
    """Write RUN/llm or RUN/encoder (a collective); see :func:`save_llm` and :func:`save_encoder`.

    Args:
        config: of the run.
        tokenizers: of the run.
        checkpoint: its folder.
        run: folder.
        world: this process among the others.
    """
    if config.model.has_llm:
        save_llm(config, checkpoint, run / "llm", world)
        return
    if made_at_start(config.data):
        config = replace(config, data=replace(config.data, shards=str(run / "shards")))
    save_encoder(config, tokenizers, checkpoint, run / "encoder", world)
