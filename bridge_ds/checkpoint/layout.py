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
import re
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

from bridge_ds.disk import file_sha256
from bridge_ds.errors import CheckpointError

__all__ = [
    "BRIDGE", "ENCODER", "FORMAT", "LLM", "LORA", "MANIFEST", "OPTIMIZER", "STATE", "check", "check_file", "entry_of",
    "fault_in_state", "files_of", "folders", "manifest_sha256", "seal", "step_folder", "trained_files",
]  # fmt: skip

FORMAT = 1
"""Version of this layout, in the manifest."""
BRIDGE, OPTIMIZER, STATE, MANIFEST = "bridge.safetensors", "optimizer.safetensors", "state.json", "manifest.json"
ENCODER, LLM, LORA = "encoder.safetensors", "llm.safetensors", "lora.safetensors"
"""What may be trained in addition to the bridge, one file each."""
_ALWAYS = {BRIDGE, OPTIMIZER, STATE}
"""Files that every checkpoint has."""
_NAME = re.compile(r"step-(\d{8,})")
_OLD_KEYS = {"format", "files", "base", "config", "versions"}
"""Keys of manifests that were written before they held their own hash, all of them; some have `converted` as well."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


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
    found = [(int(m[1]), path) for path in root.iterdir() if path.is_dir() and (m := _NAME.fullmatch(path.name))]
    return sorted(found, reverse=True)


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
    fault = _fault_in_manifest(manifest, there)
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


def manifest_sha256(values: dict[str, Any]) -> str:
    """The manifest's own hash: over all its other keys, sorted, as JSON without white space."""
    others = json.loads(json.dumps({key: value for key, value in values.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _fault_in_manifest(manifest: Any, there: Set[str]) -> str:
    """What is wrong with a manifest next to the files `there`, for a message that begins with its path; empty if
    nothing is."""
    if not isinstance(manifest, dict):
        return f"holds {type(manifest).__name__}; expected an object"
    if "sha256" in manifest:
        if manifest["sha256"] != manifest_sha256(manifest):
            return "has another sha256 than it says of itself"
    elif not _OLD_KEYS <= set(manifest) <= _OLD_KEYS | {"converted"}:
        odd = sorted((set(manifest) - {"converted"}) ^ _OLD_KEYS)[0]
        what = "an unknown" if odd in manifest else "no"
        return f"has no sha256 of itself, and {what} {odd!r}; expected a complete one"
    if type(manifest.get("format")) is not int:
        return f"has format {manifest.get('format')!r}; expected a number"
    base, files = manifest.get("base"), manifest.get("files")
    if not _is_texts(base):
        return "has no `base`; expected the hashes of the base models by name"
    if not isinstance(manifest.get("config", {}), dict):
        return "has a `config` that is no object"
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        return "has no `files`; expected {name: {bytes, sha256}}"
    unlisted = sorted((_ALWAYS | (there & {ENCODER, LLM, LORA})) - set(files))
    return f"does not list {unlisted[0]}" if unlisted else ""


def fault_in_state(state: Any) -> str:
    """What is wrong with a state.json, for a message that begins with its path; empty if nothing is."""
    if not isinstance(state, dict):
        return f"holds {type(state).__name__}; expected an object"
    for name in ("step", "consumed", "optimizer_step"):
        value = state.get(name, 0 if name == "optimizer_step" else None)
        if type(value) is not int or value < 0:
            return f"has {name} {value!r}; expected an integer, 0 or more"
    loss, bad = state.get("loss"), state.get("bad_samples", {})
    if loss is not None and (isinstance(loss, bool) or not isinstance(loss, int | float)):
        return f"has loss {loss!r}; expected a number"
    if not isinstance(bad, dict) or not all(type(count) is int for count in bad.values()):
        return f"has bad_samples {bad!r}; expected a number by kind"
    return ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(isinstance(each, str) for each in value.values())


def _is_entry(name: str, entry: Any) -> bool:
    return (
        name == Path(name).name  # never out of the folder
        and isinstance(entry, dict)
        and set(entry) == {"bytes", "sha256"}
        and type(entry["bytes"]) is int
        and entry["bytes"] >= 0
        and isinstance(entry["sha256"], str)
        and bool(_SHA256.fullmatch(entry["sha256"]))
    )
