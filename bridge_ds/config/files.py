"""Reading the files that a user names: recipes and DeepSpeed files."""

from __future__ import annotations

import stat
from pathlib import Path

from bridge_ds.config.text import named, printable
from bridge_ds.errors import ConfigError
from bridge_ds.reading import decoded

__all__ = ["is_file", "read_text"]

_BYTES = 2**20
"""Most bytes of a recipe or DeepSpeed file; the longest shipped one has three thousand."""


def is_file(path: Path) -> bool:
    """Whether there is something other than a folder at a path; a name that no file can have is none."""
    try:
        printable(str(path))
        return path.exists() and not path.is_dir()
    except (OSError, ValueError):
        return False


def read_text(path: Path) -> str:
    """The text of a file of settings, without a byte-order mark.

    Raises:
        ConfigError: it is no regular file (a pipe or device could block or never end), cannot be read, or is larger
            than 1 MiB.
        NotText: it is not UTF-8.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise ConfigError(f"{named(path)} is a pipe or a device; expected a file; write its content to one.")
        with path.open("rb") as file:
            raw = file.read(_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{named(path)} cannot be read ({error.strerror}); expected a file that you may read; choose another."
        ) from None
    if len(raw) > _BYTES:
        raise ConfigError(f"{named(path)} is larger than 1 MiB; expected a file of settings; choose another.")
    return decoded(raw)
