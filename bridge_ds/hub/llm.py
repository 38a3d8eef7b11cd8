"""The LLM that a run without a bridge has trained, as a folder of transformers: weights, tokenizer, card."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bridge_ds.bridge import LLMAlone
from bridge_ds.checkpoint.layout import trained_files
from bridge_ds.checkpoint.load import Checkpoint, put_trained
from bridge_ds.compat.transformers import unsharded
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config
from bridge_ds.data.text.spiece import find_spiece
from bridge_ds.disk import atomic_folder
from bridge_ds.engine.distributed import on_main
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.identity import tokenizer_files
from bridge_ds.frozen.load import DTYPES
from bridge_ds.frozen.tokenizer import load_tokenizer
from bridge_ds.frozen.verify import model_file
from bridge_ds.hub.card import llm_card
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import add_lora, merge_lora
from bridge_ds.world import World

__all__ = ["LICENCES", "copy_beside", "copy_files", "save_llm"]

_log = logging.getLogger(__name__)
_GENERATION = "generation_config.json"
LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "USE_POLICY.md")


def save_llm(config: Config, checkpoint: Path, folder: Path, world: World) -> None:
    """Write the LLM of a checkpoint; a folder that is there is replaced once the new one is complete (a collective).

    Rank 0 makes it of the base model's files and the checkpoint, in host memory and without the engine, so that no
    rank gathers anything.

    Args:
        config: of the run.
        checkpoint: its folder.
        folder: to write.
        world: this process among the others.

    Raises:
        CheckpointError: the checkpoint is damaged, or does not fit the LLM.
        ConfigError: the folder cannot be written.
    """
    on_main(lambda: _save(config, Checkpoint.read(checkpoint), folder), world)
    if world.is_main:
        _log.info(f"the LLM is in {folder}; train a bridge to it with --set model.llm={folder}")


def _save(config: Config, checkpoint: Checkpoint, folder: Path) -> None:
    model = _trained_llm(config, checkpoint)
    name, revision = config.model.llm, config.model.llm_revision
    tokenizer = load_tokenizer("model.llm", name, revision, config.model.trust_remote_code)
    generation = model_file(resolve(name), _GENERATION, revision)
    if generation:  # copied: transformers refuses to save some that models are published with
        model.generation_config = type(model.generation_config)()
    try:
        with atomic_folder(folder, replace=True, fsync=True) as part:
            model.save_pretrained(part)
            copy_beside(tokenizer, name, revision, part, (*LICENCES, _GENERATION))
            (part / "README.md").write_text(llm_card(config, checkpoint.step, checkpoint.state), encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be written ({error.strerror or error}); expected room for the LLM; make room, then give "
            "the same command."
        ) from None


def _trained_llm(config: Config, checkpoint: Checkpoint) -> Any:
    """The transformers model in model.dtype, with what was trained in its weights."""
    of = replace(config.model, activation_checkpointing=False)  # which would be seen in config.json
    with unsharded():
        llm = load_llm(of, config.llm)
    add_lora(llm, config.lora, config.run.seed)
    put_trained(trained_files(checkpoint.folder), LLMAlone(llm, None), "set {} as in its config.yaml")
    return merge_lora(llm) if config.lora.rank else llm.model.to(DTYPES[of.dtype])


def copy_beside(tokenizer: Any, published: str, revision: str | None, folder: Path, files: Sequence[str]) -> None:
    """Copy a base model's tokenizer, and of `files` those that it has, to its weights.

    Args:
        tokenizer: loaded.
        published: folder or hub id of the base model.
        revision: hub revision.
        folder: with the weights.
        files: names.
    """
    copy_files(published, revision, folder, files)
    for file, path in tokenizer_files(tokenizer, resolve(published), revision).items():
        (folder / file).parent.mkdir(exist_ok=True)
        shutil.copyfile(path, folder / file)
    spiece = find_spiece(published, revision)
    if spiece and not (folder / spiece.name).exists():
        shutil.copyfile(spiece, folder / spiece.name)


def copy_files(published: str, revision: str | None, folder: Path, files: Sequence[str]) -> None:
    """Copy those of `files` that a base model has; arguments as of :func:`copy_beside`."""
    for file in files:
        if path := model_file(resolve(published), file, revision):
            (folder / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, folder / file)
