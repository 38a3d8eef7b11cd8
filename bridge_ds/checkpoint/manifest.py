"""The form of a checkpoint's manifest.json and state.json: a flipped bit in them is a damaged checkpoint."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Set
from pathlib import Path
from typing import Any

__all__ = ["fault_in_manifest", "fault_in_state", "manifest_sha256"]

_OLD_KEYS = {"format", "files", "base", "config", "versions"}
"""Keys of manifests that were written before they held their own hash, all of them; some have `converted` besides."""
_SHA256 = re.compile(r"[0-9a-f]{64}")


def manifest_sha256(values: dict[str, Any]) -> str:
    """The manifest's own hash: over all its other keys, sorted, as JSON without white space."""
    others = json.loads(json.dumps({key: value for key, value in values.items() if key != "sha256"}))
    return hashlib.sha256(json.dumps(others, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def fault_in_manifest(manifest: Any, there: Set[str], always: Set[str], known: Set[str]) -> str:
    """What is wrong with a manifest, for a message that begins with its path; empty if nothing is.

    Args:
        manifest: as read.
        there: names of the files beside it.
        always: files that every checkpoint has.
        known: files that are read if they are there.
    """
    if not isinstance(manifest, dict):
        return f"holds {type(manifest).__name__}; expected an object"
    if "sha256" in manifest:
        if manifest["sha256"] != manifest_sha256(manifest):
            return "has another sha256 than it says of itself"
    elif not _OLD_KEYS <= set(manifest) <= _OLD_KEYS | {"converted"}:
        odd = sorted((set(manifest) - {"converted"}) ^ _OLD_KEYS)[0]
        return f"has no sha256 of itself, and {'an unknown' if odd in manifest else 'no'} {odd!r}; expected all keys"
    if type(manifest.get("format")) is not int:
        return f"has format {manifest.get('format')!r}; expected a number"
    base, files = manifest.get("base"), manifest.get("files")
    if not _is_texts(base):
        return "has no `base`; expected the hashes of the base models by name"
    if not isinstance(manifest.get("config", {}), dict):
        return "has a `config` that is no object"
    if not isinstance(files, dict) or not all(_is_entry(name, entry) for name, entry in files.items()):
        return "has no `files`; expected {name: {bytes, sha256}}"
    unlisted = sorted((always | (known & there)) - set(files))
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
