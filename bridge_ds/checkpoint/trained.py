"""A trained bridge for use: both frozen models whole in this process, the newest valid checkpoint's bridge in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint.load import Checkpoint, load_bridge, newest, refuse_other_run
from bridge_ds.config.schema import Config
from bridge_ds.data.tokenize import Tokenizers, load_tokenizers
from bridge_ds.engine.setup import base_identities, build_model
from bridge_ds.errors import CheckpointError

__all__ = ["load_trained"]


def load_trained(
    run: Path, config: Config, device: torch.device, say: Callable[[str], None]
) -> tuple[BridgeModel, Tokenizers, Checkpoint]:
    """Load a run's bridge in evaluation mode.

    Args:
        run: run folder.
        config: its resolved config.
        say: gets one line for each broken checkpoint that is passed over.

    Raises:
        CheckpointError: no valid checkpoint, or it belongs to other base models than those found now.
        ConfigError: a base model cannot be loaded.
    """
    checkpoint = newest(run / "checkpoints", say)
    if checkpoint is None:
        raise CheckpointError(f"no valid checkpoint in {run / 'checkpoints'}; expected one; train the run first.")
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id)
    refuse_other_run(checkpoint, {}, base_identities(config, model, tokenizers, checkpoint.manifest["base"]))
    load_bridge(checkpoint, model)
    return model.to(device).eval(), tokenizers, checkpoint
