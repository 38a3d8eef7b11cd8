"""A checkpoint folder: what is in it, how it is written whole, how it is known to be whole.

    step-00001000/
      bridge.safetensors      float32 masters of the bridge by parameter name, full tensors, and its buffers
      encoder.safetensors     likewise of the encoder, where it is trained
      llm.safetensors         likewise of the LLM, where all of it is trained
      lora.safetensors        likewise of LoRA's updates of the LLM, where there are any
      optimizer.safetensors   AdamW's `exp_avg/<name>` and `exp_avg_sq/<name>`, full tensors
      state.json              step, consumed samples, optimizer step, seed, global batch, hash of the shard index
      manifest.json           written last: size and sha256 of each file and of itself, resolved config, base models,
                              versions

Nothing in it depends on the world size, nothing is pickled, nothing frozen is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint.manifest import fault_in_manifest, manifest_sha256
from bridge_ds.disk import file_sha256
from bridge_ds.errors import CheckpointError

__all__ = [
    "BRIDGE", "ENCODER", "FORMAT", "LLM", "LORA", "MANIFEST", "OPTIMIZER", "STATE", "check", "check_file", "entry_of",
    "files_of", "folders", "seal", "step_folder", "trained_files",
]  # fmt: skip

FORMAT = 1
"""Version of this layout, in the manifest."""
BRIDGE, OPTIMIZER, STATE, MANIFEST = "bridge.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
ENCODER, LLM, LORA = "encoder.safetensors", "llm.safetensors", "lora.safetensors"
"""What may be trained beside the bridge, a file for each."""
_NAME = re.compile(r"step-(\d{8,})")


def step_folder(root: Path, step: int) -> Path:
    """`root/step-00001000`."""
    return root / f"step-{step:08d}"


def files_of(names: Iterable[str]) -> dict[str, str]:
    """The file of each trained parameter (or buffer of the bridge) of a model, by name.

    Args:
        names: all of the model's: where there are updates of the LLM, nothing else of it is trained.
    """
    names = list(names)
    files = {"encoder": ENCODER, "llm": LORA if any(".lora_" in name for name in names) else LLM}
    return {name: files.get(name.partition(".")[0], BRIDGE) for name in names}


def trained_files(folder: Path) -> list[Path]:
    """The files of what was trained that are there, or must be; the bridge's first."""
    return [folder / BRIDGE, *(folder / name for name in (ENCODER, LLM, LORA) if (folder / name).is_file())]


def folders(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of everything that is named like a checkpoint, newest first; whether it is whole is unknown."""
    if not root.is_dir():
        return []
    found = [(int(m[1]), path) for path in root.iterdir() if path.is_dir() and (m := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


def seal(folder: Path, manifest: dict[str, Any]) -> None:
    """Hash every file of a folder and write its manifest."""
    files = {path.name: entry_of(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST}
    values = {"format": FORMAT, "files": files} | manifest
    values["sha256"] = manifest_sha256(values)
    (folder / MANIFEST).write_text(json.dumps(values, indent=1, sort_keys=True), encoding="utf-8")


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a folder that is whole.

    Raises:
        CheckpointError: a file is missing, of another size or with another hash, or the manifest is unreadable or not
            what was written.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} has no readable {MANIFEST} ({type(error).__name__}); expected a complete checkpoint."
        ) from None
    if isinstance(manifest, dict) and type(manifest.get("format")) is int and manifest["format"] != FORMAT:
        raise CheckpointError(
            f"{folder} has format {manifest['format']}; expected {FORMAT}; use the version that wrote it."
        )
    there = {each.name for each in folder.iterdir()}
    always = {BRIDGE, OPTIMIZER, STATE}
    fault = fault_in_manifest(manifest, there, always, always | {ENCODER, LLM, LORA})
    if fault:
        raise CheckpointError(f"{path} {fault}; the file was changed or damaged.")
    try:
        for name, expected in manifest["files"].items():
            check_file(folder / name, expected)
    except OSError as error:
        raise CheckpointError(
            f"{error.filename or folder} cannot be read ({error.strerror or error}); expected a complete checkpoint."
        ) from None
    return manifest  # type: ignore[no-any-return]


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
