"""Find the checkpoint to continue from, prove that it is whole and ours, and put its tensors back."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridge_ds.checkpoint import format as layout
from bridge_ds.checkpoint.state import restore_moments, trained
from bridge_ds.errors import CheckpointError

__all__ = [
    "Checkpoint",
    "bridge_tensors",
    "find",
    "load_bridge",
    "load_optimizer",
    "newest",
    "put_bridge",
    "refuse_other_run",
]


@dataclass(frozen=True)
class Checkpoint:
    """A folder that has been checked."""

    folder: Path
    """`step-00001000`."""
    state: dict[str, Any]
    """state.json."""
    manifest: dict[str, Any]
    """manifest.json."""

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    @classmethod
    def read(cls, folder: Path) -> Checkpoint:
        """Raises CheckpointError unless the folder is whole."""
        manifest = layout.check(folder)
        return cls(folder, json.loads((folder / layout.STATE).read_text(encoding="utf-8")), manifest)


def find(resume: str, root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """What `run.resume` asks for.

    Args:
        resume: `auto`, `must`, `never`, or the path of one step folder.
        root: the run's checkpoints folder.
        say: gets one line for each broken checkpoint that is passed over.

    Raises:
        CheckpointError: a checkpoint was asked for and none is valid, or `never` meets a folder that has some.
    """
    if resume == "never":
        if layout.folders(root):
            raise CheckpointError(
                f"{root} holds checkpoints; run.resume=never expects none; choose another run.output."
            )
        return None
    if resume not in ("auto", "must"):
        return Checkpoint.read(Path(resume))
    found = newest(root, say)
    if found is None and (resume == "must" or layout.folders(root)):
        raise CheckpointError(f"no valid checkpoint in {root}; expected one to resume; mend or empty that folder.")
    return found


def newest(root: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest valid checkpoint; broken ones are named through `say` and passed over."""
    for _, folder in layout.folders(root):
        try:
            return Checkpoint.read(folder)
        except CheckpointError as error:
            say(f"checkpoint passed over: {error}")
    return None


def refuse_other_run(checkpoint: Checkpoint, expected_state: dict[str, Any], expected_base: dict[str, Any]) -> None:
    """A checkpoint continues only the run that it came from.

    Args:
        expected_state: values that must equal those in state.json (seed, global batch, hash of the shard index).
        expected_base: identities of both base models and tokenizers, as in the manifest.

    Raises:
        CheckpointError: one of them differs.
    """
    pairs = [(key, checkpoint.state.get(key), value) for key, value in expected_state.items()]
    pairs += [(f"base {key}", checkpoint.manifest["base"].get(key), value) for key, value in expected_base.items()]
    for key, found, wanted in pairs:
        if found != wanted:
            raise CheckpointError(
                f"{checkpoint.folder} was written with {key} {found!r}; this run has {wanted!r}; "
                "restore that value or choose another run.output."
            )


def load_bridge(checkpoint: Checkpoint, model: torch.nn.Module) -> None:
    """Copy the masters into a model that DeepSpeed has not taken yet (full tensors).

    Raises:
        CheckpointError: names or shapes differ.
    """
    put_bridge(checkpoint.folder / layout.BRIDGE, model, "set fusion and mapping as in its config.yaml")


def put_bridge(path: Path, model: torch.nn.Module, remedy: str) -> None:
    """:func:`load_bridge` from one file.

    Args:
        path: `bridge.safetensors`.
        model: receives the tensors.
        remedy: what to do where the file does not fit, for the message.

    Raises:
        CheckpointError: the file cannot be read, or names or shapes differ.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(path)
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} cannot be read ({reason}); expected safetensors; get the file again.") from None
    targets = bridge_tensors(model)
    if set(tensors) != set(targets):
        odd = sorted(set(tensors) ^ set(targets))
        where = "the file lacks it" if odd[0] in targets else "the model has none of that name"
        raise CheckpointError(
            f"{path} and the model differ in {odd[0]} ({where}); expected the same parameters; {remedy}."
        )
    with torch.no_grad():
        for name, tensor in tensors.items():
            if tensor.shape != targets[name].shape:
                raise CheckpointError(
                    f"{path} has {name} of shape {tuple(tensor.shape)}; the model has "
                    f"{tuple(targets[name].shape)}; {remedy}."
                )
            targets[name].copy_(tensor)


def bridge_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """What a bridge file holds: trained parameters, and the buffers of fusion and mapping, by name."""
    buffers = {name: b for name, b in model.named_buffers() if name.startswith(("fusion.", "mapping."))}
    return dict(trained(model)) | buffers


def load_optimizer(checkpoint: Checkpoint, engine: Any) -> None:
    """Put AdamW's state back into the engine (a collective)."""
    from safetensors.torch import load_file

    moments = load_file(checkpoint.folder / layout.OPTIMIZER)
    restore_moments(engine, moments, int(checkpoint.state["optimizer_step"]))
