"""What a base model's own files say of its licence."""

from __future__ import annotations

import yaml
from huggingface_hub import metadata_load

from bridge_ds.config.names import resolve
from bridge_ds.frozen.verify import model_file

__all__ = ["licence"]

_UNKNOWN = "not stated with the files; see the model's own page"


def licence(name: str, revision: str | None = None) -> str:
    """The licence of a base model as its own README.md states it, or that it is not known."""
    if resolve(name) != name:
        return "apache-2.0 (comes with bridge_ds)"
    try:
        path = model_file(name, "README.md", revision)
        data = (metadata_load(path) if path else None) or {}
    except (OSError, ValueError, yaml.YAMLError):
        return _UNKNOWN
    stated, link = data.get("license_name") or data.get("license"), data.get("license_link")
    return f"{stated} ({link})" if stated and link else str(stated or _UNKNOWN)
