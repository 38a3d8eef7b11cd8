"""A checkpoint folder: its files, how they are sealed, and how a complete one is recognized.

    step-00001000/
      bridge.safetensors      float32 masters of the bridge by parameter name, full tensors, and its buffers
      encoder.safetensors     masters of the encoder, if it is trained
      llm.safetensors         masters of the LLM, if all of it is trained
      lora.safetensors        masters of the LLM's LoRA weights, if there are any
      optimizer.safetensors   AdamW's `exp_avg/<name>` and `exp_avg_sq/<name>`, full tensors
      state.json              step, consumed samples, optimizer step, seed, global batch, hash of the shard index
      manifest.json           written last: size and sha256 of each file and of itself, resolved config, base models,
                              versions

Nothing in it depends on the world size, nothing is pickled, nothing frozen is in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import MinLen
from pydantic import FiniteFloat, StringConstraints

from bridge_ds.disk import file_sha256
from bridge_ds.engine.hooks import FinishedStep, step_of_checkpoint
from bridge_ds.errors import CheckpointError
from bridge_ds.typed import CLOSED, Count, FileName, typed_object

__all__ = [
    "BRIDGE", "ENCODER", "FORMAT", "LLM", "LORA", "LOSS_STEPS", "LOSS_SUM", "MANIFEST", "OPTIMIZER", "STATE", "Entry",
    "check", "check_file", "entry_of", "files_of", "folders", "manifest_sha256", "read_state", "seal", "step_folder",
    "trained_files",
]  # fmt: skip

FORMAT = 1
"""Version of this layout, in the manifest."""
BRIDGE, OPTIMIZER, STATE, MANIFEST = "bridge.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
ENCODER, LLM, LORA = "encoder.safetensors", "llm.safetensors", "lora.safetensors"
"""What may be trained in addition to the bridge, one file each."""
LOSS_SUM, LOSS_STEPS = "loss_sum", "loss_steps"
"""Keys of state.json, in a checkpoint between regular saves alone: of the steps since the last regular one."""
_ALWAYS = {BRIDGE, OPTIMIZER, STATE}
"""Files that every checkpoint has."""
_OLD_KEYS = {"format", "files", "base", "config", "versions"}
"""Keys of manifests that were written before they held their own hash, all of them; some have `converted` as well."""


@dataclass(frozen=True)
class Entry:
    """What is recorded of a file."""

    __pydantic_config__ = CLOSED
    bytes: Count
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class _Manifest:
    """manifest.json: what of it is used; `config` is checked where it is built."""

    format: int
    files: dict[FileName, Entry]
    base: Annotated[dict[str, str], MinLen(1)]
    config: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _State:
    """state.json: what of it is used; seed, global batch and data are compared with the run's."""

    step: Count
    consumed: Count
    optimizer_step: Count = 0
    loss: FiniteFloat | None = None
    loss_sum: FiniteFloat = 0.0
    loss_steps: Count = 0
    validation_loss: float | None = None
    validation_tokens: Count | None = None
    bad_samples: dict[str, Count] = field(default_factory=dict)
    unvalidated: FinishedStep | None = None


def step_folder(root: Path, step: int) -> Path:
    """`root/step-00001000`."""
    return root / f"step-{step:08d}"


def files_of(names: Iterable[str]) -> dict[str, str]:
    """The file of each trained parameter (or buffer of the bridge) of a model, by name.

    Args:
        names: all of the model's: with LoRA weights, nothing else of the LLM is trained.
    """
    names = list(names)
    files = {"encoder": ENCODER, "llm": LORA if any(".lora_" in name for name in names) else LLM}
    return {name: files.get(name.partition(".")[0], BRIDGE) for name in names}


def trained_files(folder: Path) -> list[Path]:
    """The files of what was trained that are there, or must be; the bridge's first."""
    return [folder / BRIDGE, *(folder / name for name in (ENCODER, LLM, LORA) if (folder / name).is_file())]


def folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is named like a checkpoint, newest first; it may be incomplete."""
    if not root.is_dir():
        return []
    named = [(step_of_checkpoint(path.name), path) for path in root.iterdir() if path.is_dir()]
    return sorted(((step, path) for step, path in named if step is not None), reverse=True)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Hash every file of a folder and write its manifest."""
    files = {path.name: entry_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    values = {"format": FORMAT, "files": files} | manifest
    values["sha256"] = manifest_sha256(values)
    (folder / MANIFEST).write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a complete folder.

    Raises:
        CheckpointError: a file is missing, of another size or with another hash, or the manifest is unreadable or not
            what was written.
    """
    path = folder / MANIFEST
    try:
        manifest = typed_object(path, dict)
        there = {each.name for each in folder.iterdir()}
        if type(manifest.get("format")) is int and manifest["format"] != FORMAT:
            raise CheckpointError(
                f"{folder} has format {manifest['format']}; expected {FORMAT}; use the version that wrote it."
            )
        if wrong := _not_sealed(manifest):
            raise ValueError(wrong)
        typed_object(path, _Manifest)
    except OSError as error:
        raise CheckpointError(
            f"{folder} has no readable {MANIFEST} ({error.strerror or error}); expected a complete checkpoint."
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} {error}; the file was changed or damaged.") from None
    unlisted = sorted((_ALWAYS | (there & {ENCODER, LLM, LORA})) - set(manifest["files"]))
    if unlisted:
        raise CheckpointError(f"{path} does not list {unlisted[0]}; the file was changed or damaged.")
    try:
        for name, expected in manifest["files"].items():
            check_file(folder / name, expected)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder} cannot be read ({error.strerror or error}); expected a complete checkpoint."
        ) from None
    return manifest


def entry_of(path: Path) -> dict[str, Any]:
    """What is recorded of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def check_file(path: Path, expected: dict[str, Any]) -> None:
    """Raises CheckpointError unless a file is what :func:`entry_of` recorded."""
    if not path.is_file():
        raise CheckpointError(f"{path.parent} lacks {path.name}; expected {expected['bytes']} bytes.")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"{path} has {size} bytes; expected {expected['bytes']}.")
    if file_sha256(path) != expected["sha256"]:
        raise CheckpointError(f"{path} has another sha256 than its manifest says; the file was changed or damaged.")


def manifest_sha256(values: dict[str, Any]) -> str:
    """The manifest's own hash: over all its other keys, sorted, as JSON without white space."""
    others = json.loads(json.dumps({key: value for key, value in values.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def read_state(folder: Path) -> dict[str, Any]:
    """state.json of a checkpoint.

    Raises:
        CheckpointError: it cannot be read, is of another shape, or of another step than the folder's name says.
    """
    path = folder / STATE
    try:
        state = typed_object(path, _State)
        step, named = state["step"], step_of_checkpoint(folder.name)
        if named is not None and named != step:
            raise ValueError(f"has step {step}; expected that of the folder, {named}")
        for key, value in (("optimizer_step", state.get("optimizer_step", 0)),
                           ("unvalidated.step", (state.get("unvalidated") or state)["step"])):  # fmt: skip
            if value > step:
                raise ValueError(f"has {key} {value}; expected at most the step, {step}")
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); expected a complete one.") from None
    except ValueError as error:
        raise CheckpointError(f"{path} {error}; the file was changed or damaged.") from None
    return state


def _not_sealed(manifest: dict[str, Any]) -> str:
    """How a manifest shows that it is not what was written; empty if it does not."""
    if "sha256" in manifest:
        return "" if manifest["sha256"] == manifest_sha256(manifest) else "has another sha256 than it says of itself"
    if _OLD_KEYS <= set(manifest) <= _OLD_KEYS | {"converted"}:
        return ""
    odd = sorted((set(manifest) - {"converted"}) ^ _OLD_KEYS)[0]
    what = "an unknown" if odd in manifest else "no"
    return f"has no sha256 of itself, and {what} {odd!r}; expected a complete one"
