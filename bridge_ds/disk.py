"""Atomic writes of files and folders: complete or not at all. A symlink is kept, and its target is replaced."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from bridge_ds.reading import is_macos

__all__ = [
    "atomic_folder", "atomic_write", "beside", "file_sha256", "locked", "missing_or_empty", "move_folder", "real",
    "remove", "write_text",
]  # fmt: skip

_log = logging.getLogger(__name__)


def real(path: str | Path) -> Path:
    """The absolute path, symlinks resolved; it need not exist.

    Rename to this path: a rename to a link's own path would replace the link, and leave its target, on the disk that
    the user chose, as it was.
    """
    return Path(os.path.realpath(path))


def beside(path: Path, ending: str) -> Path:
    """A hidden name in the folder of `path` (a :func:`real` one), for a file or folder that will be renamed to it."""
    return path.with_name(f".{path.name}.{ending}")


@contextlib.contextmanager
def atomic_write(path: Path, mode: str = "w", fsync: bool = True) -> Iterator[IO[Any]]:
    """A file that replaces `path` when the block ends; after an error the old file is unchanged.

    Args:
        path: its folder must exist.
        mode: `w` (UTF-8) or `wb`.
        fsync: flush to disk before the rename, so that a power loss cannot leave an empty file.

    Raises:
        OSError: it cannot be written.
    """
    path = real(path)
    temporary = beside(path, f"{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open(mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_text(path: Path, text: str, fsync: bool = True) -> None:
    """Replace the content of a file, see :func:`atomic_write`."""
    with atomic_write(path, fsync=fsync) as file:
        file.write(text)


@contextlib.contextmanager
def atomic_folder(path: Path, ending: str = "tmp", replace: bool = False, fsync: bool = False) -> Iterator[Path]:
    """An empty folder that is renamed to `path` when the block ends; after an error nothing of it is left.

    Args:
        path: folders above it are made.
        ending: of the hidden name under which it is written; leftovers of an earlier start are removed.
        replace: whether an existing folder may hold files; it is then replaced.
        fsync: flush its files (not those of subfolders) and both folders to disk.

    Raises:
        OSError: it cannot be written, or without `replace`, `path` is not empty.
    """
    final = real(path)
    temporary = beside(final, ending)
    if temporary.exists():
        shutil.rmtree(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if fsync:
            for file in temporary.iterdir():
                _fsync(file)
            _fsync(temporary)
        move_folder(temporary, final, replace)
        if fsync:
            _fsync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[IO[str]]:
    """The open lock file `path`, made where it is missing, held while the block runs; a killed process lets it go.

    A file system without locks (Lustre mounted without flock, some NFS) gives none: the block runs all the same, and a
    warning says so once a folder.

    Args:
        path: its folder must exist.
        wait: until another process lets it go.

    Raises:
        BlockingIOError: another process holds it, without `wait`.
        OSError: it cannot be opened.
    """
    with path.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            if path.parent not in _warned:
                _warned.add(path.parent)
                _log.warning(
                    "the file system of %s has no locks (%s); see to it that one command at a time writes there",
                    path.parent, error.strerror,
                )  # fmt: skip
        try:
            yield file
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_UN)  # closing alone would not, if a process forked meanwhile has a copy


_NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EIO, errno.EBADF}
_warned: set[Path] = set()


def move_folder(folder: Path, path: Path, replace: bool = False) -> None:
    """Rename a complete folder on the same file system to `path`; see :func:`atomic_folder`. Raises OSError."""
    path = real(path)
    old = beside(path, f"{uuid.uuid4().hex[:8]}.old")
    if path.exists() and (replace or missing_or_empty(path)):
        path.rename(old)
    os.replace(folder, path)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Remove a folder, a file, or a link to one (not its target). Raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def missing_or_empty(folder: Path) -> bool:
    """Whether `folder` is absent, empty (except for files of macOS), or a link to such a folder."""
    folder = real(folder)
    if not os.path.lexists(folder):
        return True
    return folder.is_dir() and all(is_macos(path.name) for path in folder.iterdir())


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
