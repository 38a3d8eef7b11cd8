"""Write a checkpoint: gather to host memory on all ranks, write on rank 0, rename when complete."""

from __future__ import annotations

import contextlib
import functools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.best import ranked
from bridge_ds.checkpoint.finite import fault_in
from bridge_ds.checkpoint.state import optimizer_step, read_moments, read_trained
from bridge_ds.disk import atomic_folder, beside, real, remove
from bridge_ds.errors import CheckpointError

__all__ = ["Snapshot", "gather", "prune", "set_aside", "write", "written_bytes"]


@dataclass(frozen=True)
class Snapshot:
    """What is trained, at one step, in host memory, full tensors; empty on all ranks but 0."""

    trained: dict[str, torch.Tensor]
    """float32 masters and the bridge's buffers by name."""
    moments: dict[str, torch.Tensor]
    """AdamW's state."""
    optimizer_step: int
    """AdamW's own count."""

    @functools.cached_property
    def fault(self) -> str:
        """What of it is not finite, for a message; empty if nothing is (and on all ranks but 0)."""
        return fault_in(self.trained.items()) or fault_in(self.moments.items(), squares=False)


def gather(engine: Any) -> Snapshot:
    """Copy what is trained to host memory (a collective)."""
    return Snapshot(read_trained(engine), read_moments(engine), optimizer_step(engine))


def write(snapshot: Snapshot, root: Path, *, state: dict[str, Any], manifest: dict[str, Any]) -> Path:
    """Save `snapshot` and `state` as `root/step-...`; on rank 0, in any thread.

    Args:
        state: goes into state.json; must hold `step`.
        manifest: goes into manifest.json together with the hashes: resolved config, base models, versions.

    Returns:
        the folder, valid on disk. After an error nothing of it is left.

    Raises:
        CheckpointError: something of it is not finite.
        OSError: the disk is full, the folder cannot be written.
        safetensors.SafetensorError: the same, while tensors were written.
    """
    from safetensors.torch import save_file

    if snapshot.fault:
        raise CheckpointError(f"{snapshot.fault}; expected finite numbers; no checkpoint was written.")
    final = layout.step_folder(root, state["step"])
    state = state | {"optimizer_step": snapshot.optimizer_step}
    with atomic_folder(final, replace=True, fsync=True) as temporary:
        file_of = layout.files_of(snapshot.trained)
        for file in dict.fromkeys([layout.BRIDGE, *file_of.values()]):  # the bridge's holds nothing where there is none
            tensors = {name: each for name, each in snapshot.trained.items() if file_of[name] == file}
            save_file(tensors, temporary / file)
        save_file(snapshot.moments, temporary / layout.OPTIMIZER)
        (temporary / layout.STATE).write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
        layout.seal(temporary, manifest)
    return final


def written_bytes(root: Path, step: int) -> int:
    """Bytes that :func:`write` has put on disk so far for the checkpoint of a step; 0 when it has ended."""
    found = 0
    with contextlib.suppress(OSError):  # it may be renamed meanwhile
        for path in beside(real(layout.step_folder(root, step)), "tmp").iterdir():
            # A file may have its full size before it is written.
            found += path.stat().st_size + 512 * path.stat().st_blocks
    return found


def set_aside(root: Path, step: int) -> list[str]:
    """Rename the checkpoints after `step`, from which a start with run.resume=PATH does not go on: the next start would
    take them for the newest. Returns a line for each."""
    lines = []
    for _, folder in (found for found in layout.folders(root) if found[0] > step):
        aside = folder.with_name(f"{folder.name}.set-aside")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        lines.append(f"{folder} is {aside.name} now: this start goes on from step {step} (run.resume)")
    return lines


def prune(root: Path, keep: int, best: int = 0, spared: Path | None = None) -> list[Path]:
    """Remove all but the `keep` newest checkpoints and the `best` of lowest loss; returns what was removed.

    Args:
        root: of the checkpoints.
        keep: 0 keeps all.
        best: which they are: :func:`bridge_ds.checkpoint.best.ranked`.
        spared: kept too, wherever it is: what run.resume names, which the next start of the same command looks for.
    """
    if not keep:
        return []
    every = [path for _, path in layout.folders(root)]
    kept = {*every[:keep], *ranked(every)[:best]}
    old = [path for path in every if path not in kept and not (spared and spared.exists() and spared.samefile(path))]
    for path in old:
        remove(path)
    return old
