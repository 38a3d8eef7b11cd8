"""A trained bridge for use: both base models in this process, a checkpoint's bridge between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.load import Checkpoint, load_bridge, newest, refuse_other_run
from bridge_ds.checkpoint.placed import Placing, load_placed
from bridge_ds.config.schema import Config
from bridge_ds.data.tokenize import Tokenizers, load_tokenizers
from bridge_ds.engine.setup import base_identities, quiet_transformers
from bridge_ds.errors import CheckpointError
from bridge_ds.frozen.place import told

__all__ = ["load_trained"]


def load_trained(
    run: Path, config: Config, device_map: Any, say: Callable[[str], None], max_memory: Any = None, which: str = ""
) -> tuple[BridgeModel, Tokenizers, Checkpoint]:
    """Load a run's bridge in evaluation mode.

    Args:
        run: run folder.
        config: its resolved config.
        device_map: see :class:`bridge_ds.checkpoint.placed.Placing`; likewise `max_memory`.
        say: gets one line for each broken checkpoint that is passed over, and one on where split models lie.
        max_memory: see `device_map`.
        which: name of the checkpoint's folder, or `best`; empty = the newest valid one.

    Raises:
        CheckpointError: no valid checkpoint, or it belongs to other base models than those found now.
        ConfigError: a base model cannot be loaded, or the device map cannot be used.
        LaunchError: the devices' memory does not suffice.
    """
    root = run / "checkpoints"
    checkpoint = Checkpoint.read(find_folder(root / which)) if which else newest(root, say)
    if checkpoint is None:
        raise CheckpointError(f"no valid checkpoint in {root}; expected one; train the run first.")
    tokenizers = load_tokenizers(config.model)
    quiet_transformers()
    model = load_placed(config, tokenizers.bos_id, Placing(device_map=device_map, max_memory=max_memory))
    refuse_other_run(checkpoint, {}, base_identities(config, model, tokenizers, checkpoint.manifest["base"]))
    load_bridge(checkpoint, model)
    if isinstance(device_map, str | dict):
        say(told(model.encoder.model, model.llm.model))
    return model, tokenizers, checkpoint
