"""The encoder that a run has trained alone, as a folder of transformers: weights, tokenizer, card, and what it did to
English."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge_ds.adapt.english import English, english_of, guarded, read
from bridge_ds.adapt.model import EncoderAlone
from bridge_ds.adapt.rows import NewRowsEncoder
from bridge_ds.checkpoint.layout import trained_files
from bridge_ds.checkpoint.load import Checkpoint, put_trained
from bridge_ds.compat.transformers import unsharded
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.disk import atomic_folder
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.distributed import on_main
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.load import DTYPES
from bridge_ds.hub.card import encoder_card
from bridge_ds.hub.llm import LICENCES, copy_beside
from bridge_ds.llm.lora import merge_lora
from bridge_ds.world import World

__all__ = ["BESIDE", "save_encoder"]

_log = logging.getLogger(__name__)
BESIDE = (*LICENCES, "modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
"""Files of an encoder that are copied to its trained weights."""


def save_encoder(config: Config, tokenizers: Tokenizers, checkpoint: Path, folder: Path, world: World) -> None:
    """Write the encoder of a checkpoint; a folder that is there is replaced once the new one is complete.

    A collective; rank 0 makes it of the original's files and the checkpoint, in host memory and without the engine, and
    reads English sentences before and after.

    Args:
        config: of the run.
        tokenizers: of the run.
        checkpoint: its folder.
        folder: to write.
        world: this process among the others.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit the encoder.
        ConfigError: the folder cannot be written.
        DataError: English sentences cannot be read.
    """
    found: English | None = on_main(
        lambda: _save(config, tokenizers, Checkpoint.read(checkpoint), folder), world
    )  # fmt: skip
    if not world.is_main:
        return
    for line in found.lines() if found else ["English was not measured; name sentences with adapt.english."]:
        _log.info(line)
    _log.info(f"the encoder is in {folder}; train a bridge from it with --set model.encoder={folder}")


@unsharded()
def _save(config: Config, tokenizers: Tokenizers, checkpoint: Checkpoint, folder: Path) -> English | None:
    of = replace(config, encoder=replace(config.encoder, activation_checkpointing=False))  # it would be in config.json
    model: Any = build_model(of, None)
    assert isinstance(model, EncoderAlone)
    sentences = english_of(config, World())
    encoder = model.encoder
    model.encoder = load_encoder(config.model)  # what a bridge reads: frozen, in model.dtype
    before = sentences and read(model, tokenizers, config, sentences)
    model.encoder = encoder
    put_trained(trained_files(checkpoint.folder), model, "set {} as in its config.yaml")
    if isinstance(encoder, NewRowsEncoder):
        trained = encoder.merged()
    else:
        trained = merge_lora(encoder) if config.lora.rank else encoder.model.to(DTYPES[config.model.dtype])  # type: ignore[operator]
    name, revision = config.model.encoder, config.model.encoder_revision
    try:
        with atomic_folder(folder, replace=True, fsync=True) as part:
            trained.save_pretrained(part)
            copy_beside(tokenizers.encoder, name, revision, part, BESIDE)
            found = None
            if sentences and before:
                model.encoder = load_encoder(replace(config.model, encoder=str(part), encoder_revision=None))
                found = guarded(before, read(model, tokenizers, config, sentences))
                (part / "english.json").write_text(json.dumps(found.as_json(), indent=1) + "\n", encoding="utf-8")
            card = encoder_card(config, checkpoint.step, checkpoint.state, found.lines() if found else [])
            (part / "README.md").write_text(card, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); expected room for the encoder; make room, then "
            "give the same command."
        ) from None
    return found
