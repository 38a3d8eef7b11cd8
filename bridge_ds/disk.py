"""Files and folders that are whole or not there, put where the name leads: a symlink stays, its target changes."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from bridge_ds.reading import is_macos

__all__ = ["beside", "clear_empty", "missing_or_empty", "put", "real", "remove", "stage_text", "write_text"]


def real(path: str | Path) -> Path:
    """Where the name leads, absolute, symlinks followed; what is not there yet (a link's target too) may be made.

    Whatever is renamed into place goes to this name: to the link's own it would take the link away, and the target,
    on the disk that the user chose, would stay as it was.
    """
    return Path(os.path.realpath(path))


def beside(path: Path, ending: str) -> Path:
    """A hidden name on the file system of `path` (a :func:`real` one), for what is renamed to it."""
    return path.with_name(f".{path.name}.{ending}")


def write_text(path: Path, text: str) -> None:
    """Replace a file by temp + rename, flushed to disk; after an error the old one is there as it was.

    Raises:
        OSError: it cannot be written.
    """
    temporary = stage_text(path, text)
    try:
        put(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def stage_text(path: Path, text: str) -> Path:
    """The text in a file of another name, flushed to disk, ready for :func:`put`; after an error nothing is there.

    Raises:
        OSError: it cannot be written.
    """
    path = real(path)
    temporary = beside(path, f"{os.getpid()}.tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return temporary


def put(temporary: Path, path: Path) -> None:
    """Rename a whole file to where `path` leads; `temporary` lies in that folder. Raises OSError."""
    os.replace(temporary, real(path))


def remove(path: Path) -> None:
    """Take away a folder, a file, or a link to one (not what it leads to). Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def missing_or_empty(folder: Path) -> bool:
    """Whether a new folder can be put there: nothing, an empty folder (but for files of macOS), or a link to these."""
    folder = real(folder)
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(is_macos(path.name) for path in folder.iterdir())


def clear_empty(folder: Path) -> None:
    """Remove a folder that :func:`missing_or_empty` accepts, if it is there. Raises OSError if it holds more by now."""
    if folder.is_dir():
        for path in folder.iterdir():
            if is_macos(path.name):
                remove(path)
        folder.rmdir()
