"""Small files of a model, and what is often saved in place of one: an object, or one sentence. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bridge_ds.errors import ConfigError, brief
from bridge_ds.reading import decoded

__all__ = ["AGAIN", "refuse_foreign", "stored_json"]

AGAIN = "download it again"
"""What helps against most of it."""
_KINDS = (
    (b"version https://git-lfs", "is a git-LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"<!doctype html", f"is a web page (HTML); {AGAIN} from the address of the file itself (hf download)"),
    (b"<html", f"is a web page (HTML); {AGAIN} from the address of the file itself (hf download)"),
)
"""First bytes of what is often saved in place of a file."""


def refuse_foreign(key: str, path: Path) -> None:
    """Refuse what is often saved in place of a model's file.

    Args:
        key: the setting that names the model (`model.llm`).
        path: the file.

    Raises:
        ConfigError: it is empty, a git-LFS pointer, a web page, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise ConfigError(
            f"{key}: {path} cannot be read ({error.strerror}); expected a readable file; change its permissions."
        ) from None
    for begin, what in _KINDS:
        if head.lstrip().lower().startswith(begin):
            raise ConfigError(f"{key}: {path} {what}.")
    if not head:
        raise ConfigError(f"{key}: {path} is empty; expected a file of the model; {AGAIN}.")


def stored_json(key: str, path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model, read as transformers reads it: the last of equal keys counts.

    Args:
        key: see :func:`refuse_foreign`; likewise `path`.
        path: see `key`.

    Raises:
        ConfigError: it is of another kind, or holds no object.
    """
    refuse_foreign(key, path)
    try:
        value = json.loads(decoded(path.read_bytes()))
        if not isinstance(value, dict):
            raise ValueError(f"it holds a {type(value).__name__}")
    except (ValueError, RecursionError) as error:
        reason = brief(error)
        raise ConfigError(f"{key}: {path} is not a JSON object ({reason}); {AGAIN}.") from None
    return value
