"""Names of metrics that MLflow takes. One that it refuses would cost the whole batch that it is sent in."""

from __future__ import annotations

import hashlib
import re

__all__ = ["metric_name"]

_REFUSED = re.compile(r"[^\w.\- ]")
"""Within a part of a name (`mlflow.utils.validation`). `\\w` is without the vowel signs of many scripts; a colon is
refused by servers on Windows alone."""
_LONGEST = 250
_LONGEST_PART = 90
"""Task and language with this many characters each, and what stands around them, are below `_LONGEST`."""


def metric_name(name: str) -> str:
    """The name if MLflow takes it; else each part of it that is refused gets `_` and a hash: `N'Ko` is `N_Ko-15773f`.

    The hash keeps apart what differs in refused characters only, whichever languages were scored with it.
    """
    longest = _LONGEST if len(name) <= _LONGEST else _LONGEST_PART
    return "/".join(_part(part, longest) for part in name.split("/"))


def _part(text: str, longest: int) -> str:
    plain = "_" if text in ("", ".", "..") else _REFUSED.sub("_", text)
    if plain == text and len(text) <= longest:
        return text
    return f"{plain[: longest - 7]}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"
