"""A trained bridge for use: both base models in this process, a checkpoint's bridge between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint.bases import refuse_other_bases
from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.load import Checkpoint, load_bridge, newest
from bridge_ds.checkpoint.origin import config_in
from bridge_ds.checkpoint.placed import Placing, load_placed
from bridge_ds.config.changes import changes, with_places
from bridge_ds.config.load import load_run_config, overridden
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.engine.distributed import on_main
from bridge_ds.engine.setup import base_identities, quiet_transformers
from bridge_ds.errors import CheckpointError
from bridge_ds.frozen.place import told
from bridge_ds.world import World

__all__ = ["config_of", "load_trained", "open_run"]


def open_run(
    run: Path, say: Callable[[str], None], overrides: Sequence[str] = (), which: str = ""
) -> tuple[Config, Checkpoint]:
    """A run's checkpoint, and the config to use it with.

    Args:
        run: run folder.
        say: gets one line for each broken checkpoint that is passed over, and for each setting of the function that is
            not the checkpoint's.
        overrides: `key.path=value` over the config.
        which: name of the checkpoint's folder, or `best`; empty = the newest valid one.

    Raises:
        ConfigError: no run folder, or an override that cannot be used.
        CheckpointError: no valid checkpoint.
    """
    now = load_run_config(run)
    checkpoint = _checkpoint_of(run, say, which)
    return config_of(checkpoint, now, say, overrides), checkpoint


def _checkpoint_of(run: Path, say: Callable[[str], None], which: str = "") -> Checkpoint:
    root = run / "checkpoints"
    checkpoint = Checkpoint.read(find_folder(root / which)) if which else newest(root, say)
    if checkpoint is None:
        raise CheckpointError(f"no valid checkpoint in {root}; expected one; train the run first.")
    return checkpoint


def config_of(checkpoint: Checkpoint, now: Config, say: Callable[[str], None], overrides: Sequence[str] = ()) -> Config:
    """The config to use a checkpoint with, see :func:`bridge_ds.config.changes.with_places`.

    config.yaml is the record of the last start. Between that start and its first checkpoint the weights are still those
    of the one before; and a file can be edited.

    Args:
        checkpoint: of the run.
        now: the run's config.yaml.
        say, overrides: see :func:`open_run`.

    Raises:
        ConfigError: an override, or the config in the manifest, cannot be used.
    """
    trained = config_in(checkpoint)
    for change in changes(trained, now):
        if change.in_function:
            say(
                f"{checkpoint.folder.name} was written with {change.key} {change.old!r}, config.yaml has "
                f"{change.new!r}; the checkpoint's is used."
            )
    config = with_places(trained, now)
    if not overrides:
        return config
    asked = overridden(config, overrides)
    for change in changes(config, asked):
        if change.in_function:
            say(f"{change.key} is {change.new!r} as asked; {checkpoint.folder.name} was written with {change.old!r}.")
    return asked


def load_trained(
    run: Path,
    config: Config,
    device_map: Any,
    say: Callable[[str], None],
    max_memory: Any = None,
    checkpoint: Checkpoint | None = None,
) -> tuple[BridgeModel, Tokenizers, Checkpoint]:
    """Load a run's bridge in evaluation mode.

    Args:
        run: run folder.
        config: its resolved config, see :func:`open_run`.
        device_map: see :class:`bridge_ds.checkpoint.placed.Placing`; likewise `max_memory`.
        say: gets one line for each broken checkpoint that is passed over, and one on where split models lie.
        max_memory: see `device_map`.
        checkpoint: the one that :func:`open_run` has found; none = the newest valid one.

    Raises:
        CheckpointError: no valid checkpoint, or it belongs to other base models than those found now.
        ConfigError: a base model cannot be loaded, or the device map cannot be used.
        LaunchError: the devices' memory does not suffice.
    """
    checkpoint = checkpoint or _checkpoint_of(run, say)
    tokenizers = load_tokenizers(config.model, data=config.data)
    quiet_transformers()
    model = load_placed(config, tokenizers.bos_id, Placing(device_map=device_map, max_memory=max_memory))
    world = World.detect() if torch.distributed.is_initialized() else World()
    recorded = checkpoint.manifest["base"]
    base = on_main(lambda: base_identities(config, model, tokenizers, recorded), world)  # one reads the files
    refuse_other_bases(checkpoint, base, config.model)
    load_bridge(checkpoint, model)
    if isinstance(device_map, str | dict):
        say(told(model.encoder.model, model.llm.model))
    return model, tokenizers, checkpoint
