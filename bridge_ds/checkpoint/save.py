"""Write a checkpoint: gather on all ranks, write on rank 0, rename when whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint import format as layout
from bridge_ds.checkpoint.state import optimizer_step, read_bridge, read_moments
from bridge_ds.world import World

__all__ = ["prune", "save"]


def save(engine: Any, root: Path, *, state: dict[str, Any], manifest: dict[str, Any], world: World) -> Path:
    """Save the bridge, its optimizer and `state` as `root/step-...` (a collective).

    Args:
        state: goes into state.json; must hold `step`.
        manifest: goes into manifest.json beside the hashes: resolved config, base models, versions.

    Returns:
        the folder, valid on disk once rank 0 returns.
    """
    final = layout.step_folder(root, state["step"])
    tensors, moments = read_bridge(engine), read_moments(engine)
    state = state | {"optimizer_step": optimizer_step(engine)}
    if world.is_main:
        from safetensors.torch import save_file

        temporary = root / f".{final.name}.tmp"
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        save_file(tensors, temporary / layout.BRIDGE)
        save_file(moments, temporary / layout.OPTIMIZER)
        (temporary / layout.STATE).write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
        layout.seal(temporary, final, manifest)
    return final


def prune(root: Path, keep: int) -> list[Path]:
    """Remove all but the `keep` newest checkpoints (0 keeps all); returns what was removed."""
    old = [path for _, path in layout.folders(root)[keep:]] if keep else []
    for path in old:
        shutil.rmtree(path)
    return old
