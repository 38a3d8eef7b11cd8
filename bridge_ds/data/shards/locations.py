"""Where a data set may be, and where its files are kept."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit

from bridge_ds.errors import DataError

__all__ = ["default_cache", "has_host"]


def has_host(location: str) -> bool:
    """Whether a URL names a host or bucket."""
    try:
        parts = urlsplit(location)
        return bool(parts.netloc and (parts.scheme not in ("http", "https") or (parts.hostname and parts.port != 0)))
    except ValueError:  # brackets that are not closed, a port that is no number
        return False


def default_cache() -> Path:
    """Folder for fetched shards of this user. Raises DataError where there is no home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bridge_ds"
    except RuntimeError:
        raise DataError(
            "this user has no home folder for fetched shards; set data.cache_dir, or XDG_CACHE_HOME."
        ) from None
