"""From a checkpoint to a model that can be asked: both base models in this process, the trained bridge between them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.bases import refuse_other_bases
from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.load import Checkpoint, newest, put_trained
from bridge_ds.checkpoint.origin import config_in
from bridge_ds.config.changes import changes, with_places
from bridge_ds.config.load import load_run_config, overridden
from bridge_ds.config.names import found_beside
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import Tokenizers, check_vocabulary, load_tokenizers
from bridge_ds.engine.distributed import on_main
from bridge_ds.engine.setup import base_identities, quiet_transformers
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.frozen.device_map import describe_devices
from bridge_ds.inference.bases import Placing, load_bases
from bridge_ds.world import World

__all__ = ["LoadedBridge", "load_model", "load_trained", "open_run", "refuse_llm_alone"]

_log = logging.getLogger(__name__)


def open_run(
    run: Path,
    overrides: Sequence[str] = (),
    which: str = "",
    finite: bool = True,
    note: Callable[[str], None] = _log.info,
) -> tuple[Config, Checkpoint]:
    """A run's checkpoint, and the config to use it with, see :func:`bridge_ds.config.changes.with_places`.

    config.yaml is the record of the last start. Between that start and its first checkpoint the weights are still those
    of the one before; and a file can be edited.

    Args:
        run: run folder.
        overrides: `key.path=value` over the config.
        which: name of the checkpoint's folder, or `best`; empty = the newest valid one.
        finite: see :meth:`bridge_ds.checkpoint.load.Checkpoint.read`.
        note: gets one line for each broken checkpoint that is skipped, and for each setting of the function that is
            not the checkpoint's.

    Raises:
        ConfigError: no run folder, or an override or the config in the manifest that cannot be used.
        CheckpointError: no valid checkpoint.
    """
    now = load_run_config(run)
    checkpoint = _checkpoint_of(run, which, finite, note)
    trained = config_in(checkpoint)
    for change in changes(trained, now):
        if change.in_function:
            note(
                f"{checkpoint.folder.name} was written with {change.key} {change.old!r}, config.yaml has "
                f"{change.new!r}; the checkpoint's is used."
            )
    config = with_places(trained, now)
    refuse_llm_alone(config, run)
    config = replace(config, model=found_beside(config.model, run))
    asked = overridden(config, overrides) if overrides else config
    for change in changes(config, asked):
        if change.in_function:
            note(f"{change.key} is {change.new!r} as asked; {checkpoint.folder.name} was written with {change.old!r}.")
    return asked, checkpoint


def refuse_llm_alone(config: Config, run: Path) -> None:
    """Raises ConfigError if a run has no bridge (`bridge-ds finetune`, `bridge-ds adapt`)."""
    if not config.model.has_encoder:
        llm = run / "llm"
        raise ConfigError(
            f"{run} trained the LLM alone (bridge-ds finetune); expected the run of a bridge; the LLM itself is in "
            f"{llm}: train a bridge to it with --set model.llm={llm}."
        )
    if not config.model.has_llm:
        encoder = run / "encoder"
        raise ConfigError(
            f"{run} trained the encoder alone (bridge-ds adapt); expected the run of a bridge; the encoder itself is "
            f"in {encoder}: train a bridge from it with --set model.encoder={encoder}."
        )


def _checkpoint_of(run: Path, which: str, finite: bool, note: Callable[[str], None]) -> Checkpoint:
    root = run / "checkpoints"
    if which:
        return Checkpoint.read(find_folder(root / which), finite)
    skipped: list[str] = []
    checkpoint = newest(root, skipped.append, finite)
    for line in skipped:
        note(line)
    if checkpoint is None:
        why = f" ({skipped[0]})" if skipped else ""
        raise CheckpointError(f"no valid checkpoint in {root}{why}; expected one; train the run first.")
    return checkpoint


class LoadedBridge(NamedTuple):
    """A bridge with both its base models, in eval mode."""

    model: BridgeModel
    """All four stages."""
    tokenizers: Tokenizers
    """Both."""


def load_model(
    config: Config,
    tensors: Sequence[Path],
    recorded: Mapping[str, str],
    check: Callable[[Mapping[str, str]], None],
    placing: Placing = Placing(),  # noqa: B008
    hub: Mapping[str, Any] = MappingProxyType({}),
    *,
    check_ids: bool = True,
    remedy: str = "set {} as in its config.yaml",
) -> LoadedBridge:
    """Load base models and tokenizers, compare them with those of the training, and put what was trained into them.

    The one function that makes a model of a checkpoint. For the sources see :func:`open_run` for run folders, and
    :mod:`bridge_ds.hub.source` for exported folders and hub ids.

    Args:
        config: of the run.
        tensors: files of what was trained, `bridge.safetensors` first.
        recorded: identities of the base models that were recorded in training.
        check: called with those of the base models that were found (:func:`base_identities`), before any tensor is
            read; raises, warns, or takes a note.
        placing: dtype and devices.
        hub: where base models come from (cache_dir, token, local_files_only).
        check_ids: refuse a tokenizer that gives ids for which its model has no embedding.
        remedy: what to do where a file does not fit, see :func:`bridge_ds.checkpoint.load.put_trained`.

    Raises:
        CheckpointError: a file cannot be read, or does not fit the models.
        ConfigError: a base model or a tokenizer cannot be loaded, or the device map cannot be used.
        LaunchError: the devices' memory does not suffice.
    """
    tokenizers = load_tokenizers(config.model, hub, config.data)
    model = load_bases(config, tokenizers.bos_id, placing, hub)
    if check_ids:
        check_vocabulary(tokenizers.encoder, model.encoder.vocab_size, "encoder")
        check_vocabulary(tokenizers.llm, model.llm.vocab_size, "llm")
    world = World.detect() if torch.distributed.is_initialized() else World()
    # One rank reads the files.
    check(on_main(lambda: base_identities(config, model, tokenizers, recorded, hub), world))
    put_trained(tensors, model, remedy)
    return LoadedBridge(model, tokenizers)


def load_trained(
    run: Path,
    config: Config,
    device_map: Any,
    max_memory: Any = None,
    checkpoint: Checkpoint | None = None,
    note: Callable[[str], None] = _log.info,
) -> tuple[BridgeModel, Tokenizers, Checkpoint]:
    """:func:`load_model` from a run folder.

    Args:
        run: run folder.
        config: its resolved config, see :func:`open_run`.
        device_map: see :class:`bridge_ds.inference.bases.Placing`; likewise `max_memory`.
        max_memory: see `device_map`.
        checkpoint: the one that :func:`open_run` has found; None = the newest valid one.
        note: gets one line for each broken checkpoint that is skipped, and one on where split models are.

    Raises:
        CheckpointError: no valid checkpoint, or it belongs to other base models than those found now.
    """
    checkpoint = found = checkpoint or _checkpoint_of(run, "", True, note)
    quiet_transformers()
    model, tokenizers = load_model(
        config,
        layout.trained_files(found.folder),
        found.manifest["base"],
        lambda base: refuse_other_bases(found, base, config.model),
        Placing(device_map=device_map, max_memory=max_memory),
    )
    if isinstance(device_map, str | dict):
        note(describe_devices(model.encoder.model, model.llm.model))
    return model, tokenizers, checkpoint
