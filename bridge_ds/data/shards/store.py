"""The files of a data set: in a folder, or fetched once to this node and verified.

A remote data set is read through fsspec into a bounded cache; with `data.stage_dir` any data set is copied to a disk of
the node before training. Either way a file appears under its final name only when it has the size and the sha256 in
the index, so that a dropped connection can never leave a short shard that passes for a complete one.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from bridge_ds.data.shards.locations import default_cache, has_host
from bridge_ds.data.shards.scan import diagnose
from bridge_ds.disk import file_sha256, locked
from bridge_ds.errors import DataError

__all__ = ["GIB", "SCHEMES", "Folder", "NodeCache", "ShardStore", "is_remote", "open_store"]

GIB = 1 << 30
"""Bytes in a GiB."""

SCHEMES = {"https": "aiohttp", "http": "aiohttp", "s3": "s3fs", "hf": "huggingface_hub"}
"""Schemes of remote data sets, and the package that fsspec needs for each."""

_Found = TypeVar("_Found")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_COPY_AGAIN = "copy it again from where it was made, or index it again: bridge-ds pack index DIR"


class ShardStore:
    """A location that holds the files of one data set."""

    location: str
    """Folder or URL, for messages."""

    def read(self, name: str) -> bytes:
        """A small file in full (`index.json`), fresh.

        Raises:
            DataError: it is not there or cannot be read.
        """
        raise NotImplementedError

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        """A local path of a file that is there in full.

        Args:
            name: inside the data set.
            size: bytes, as the index says.
            sha256: hex digest, as the index says.

        Raises:
            DataError: it is missing or cannot be made to match.
        """
        raise NotImplementedError

    def remedy(self, path: Path) -> str:
        """What to do about a file that :meth:`fetch` gave and whose content is wrong."""
        return _COPY_AGAIN


class Folder(ShardStore):
    """A folder on a disk that this node sees. Sizes are checked here, contents at each read of a sample."""

    def __init__(self, folder: Path) -> None:
        self.location = str(folder)
        self._folder = folder

    def read(self, name: str) -> bytes:
        path = self._folder / name
        if not path.is_file():
            what = "is no folder" if not self._folder.is_dir() else f"has no {name}"
            raise DataError(
                f"{self._folder} {what}; expected a folder of tars with {name}: make both with bridge-ds pack, "
                "or index existing tars with bridge-ds pack index."
            )
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} cannot be read ({error.strerror}); check its rights and the disk.") from None

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        path = self._folder / name
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(
                f"shard {name} is missing from {self._folder} ({error.strerror}); the index lists it; {_COPY_AGAIN}."
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"shard {name} in {self._folder} is no plain file; the index lists it; {_COPY_AGAIN}.")
        if status.st_size != size:
            reason = diagnose(path) if name.endswith(".tar") else ""
            raise DataError(
                f"shard {name} in {self._folder} has {status.st_size} bytes; the index says {size} bytes{reason}; "
                f"{_COPY_AGAIN}."
            )
        return path


class NodeCache(ShardStore):
    """A remote data set, its files kept on a disk of this node under names that hold their hash.

    All processes of the node share the folder: a lock beside each file makes one of them fetch while others wait.
    """

    def __init__(self, location: str, root: Path, limit: int | None, *, tries: int = 5, wait_s: float = 1.0) -> None:
        """Args:
        location: URL or folder to fetch from.
        root: folder on this node; created if absent.
        limit: bytes to keep at most, the least recently used files go first; None = all are kept.
        tries: attempts for each file.
        wait_s: seconds before the second attempt; doubled before each further one.
        """
        self.location = location.rstrip("/")
        self.limit = limit
        self._tries, self._wait_s = tries, wait_s
        self._filesystem: tuple[int, Any] = (0, None)
        self._root = root / hashlib.sha256(self.location.encode("utf-8", "surrogateescape")).hexdigest()[:16]
        try:
            self._root.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a NUL in it
            raise DataError(
                f"the folder {str(root)!r} for fetched shards cannot be made ({getattr(error, 'strerror', error)}); "
                "choose another with --set data.cache_dir=PATH or data.stage_dir=PATH."
            ) from None

    def read(self, name: str) -> bytes:
        # Nodes may share the folder (a home), and processes on two of them may have one pid (containers).
        path = self._root / f".{uuid.uuid4().hex[:8]}-{name}"
        try:
            with self._local_faults(name):
                return self._attempt(name, path, path.read_bytes)
        finally:
            path.unlink(missing_ok=True)

    def fetch(self, name: str, size: int, sha256: str) -> Path:
        target = self._root / f"{sha256[:16]}-{name}"
        with self._local_faults(name), locked(self._root / f".{target.name}.lock"):
            if not self._is_there(target, size):
                self._make_room(name, size)
                self._fetch(name, size, sha256, target)
        return target

    def _fetch(self, name: str, size: int, sha256: str, target: Path) -> None:
        temporary = self._root / f".{target.name}.part"

        def prove() -> None:
            found = temporary.stat().st_size
            if found != size:
                raise OSError(f"{found} bytes came, the index says {size}")
            digest = file_sha256(temporary)
            if digest != sha256:
                raise OSError(f"its sha256 is {digest[:12]}..., the index says {sha256[:12]}...")
            temporary.replace(target)

        try:
            self._attempt(name, temporary, prove)
        finally:
            temporary.unlink(missing_ok=True)

    def remedy(self, path: Path) -> str:
        return f"remove {path}, and it is fetched again"

    def holds(self, name: str, size: int, sha256: str) -> bool:
        """Whether a file has been fetched already (by its size; it was verified when it came)."""
        return self._is_there(self._root / f"{sha256[:16]}-{name}", size)

    def unfinished(self, name: str, sha256: str) -> int:
        """Bytes that a fetch that goes on, or was killed, has written of a file; the next one writes over them."""
        try:
            return (self._root / f".{sha256[:16]}-{name}.part").stat().st_size
        except OSError:
            return 0

    def free(self) -> int:
        """Bytes free on the disk of the cache."""
        return shutil.disk_usage(self._root).free

    def _attempt(self, name: str, path: Path, prove: Callable[[], _Found]) -> _Found:
        reason = ""
        for attempt in range(self._tries):
            if attempt:
                time.sleep(self._wait_s * 2 ** (attempt - 1))
            try:
                self._download(name, path)
                return prove()
            except Exception as error:  # aiohttp, botocore, ... raise classes of their own
                # Waiting helps neither where the disk of the cache is at fault, nor where there is no such file.
                if isinstance(error, DataError) or self._is_local(error):
                    raise
                if isinstance(error, FileNotFoundError | PermissionError):
                    raise DataError(
                        f"{self.location}/{name} cannot be fetched ({type(error).__name__}); expected a file that this "
                        "node may read: check data.shards, and credentials if the location needs some."
                    ) from None
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(
            f"{self.location}/{name} could not be fetched in {self._tries} attempts (the last: {reason}); check the "
            "network and that the files there are those that were indexed."
        )

    def _download(self, name: str, path: Path) -> None:
        # One file system for each process: fsspec's event loop does not outlive a fork.
        if self._filesystem[0] != os.getpid():
            self._filesystem = os.getpid(), _filesystem(self.location)
        filesystem, root = self._filesystem[1]
        filesystem.get_file(f"{root}/{name}", str(path))

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_filesystem": (0, None)}

    def _is_there(self, path: Path, size: int) -> bool:
        try:
            if path.stat().st_size != size:
                return False
            os.utime(path)  # its last use is now
        except OSError:
            return False
        return True

    def _make_room(self, name: str, size: int) -> None:
        if self.limit is None:
            return
        if size > self.limit:
            raise DataError(
                f"shard {name} has {size / GIB:.2f} GiB; data.cache_gib allows {self.limit / GIB:.2f}; raise it."
            )
        with locked(self._root / ".eviction.lock"):
            files = []
            for path in self._root.iterdir():
                if not path.name.startswith(".") and path.is_file():
                    status = path.stat()
                    files.append((status.st_mtime_ns, status.st_size, path))
            used = sum(kept for _, kept, _ in files)
            for _, kept, path in sorted(files):
                if used + size <= self.limit:
                    break
                path.unlink(missing_ok=True)  # a reader that has it open keeps it
                used -= kept

    def _is_local(self, error: BaseException) -> bool:
        if not isinstance(error, OSError):
            return False
        names = str(error.filename), str(error.filename2)
        return error.errno in _FULL or any(name.startswith(str(self._root)) for name in names)

    @contextlib.contextmanager
    def _local_faults(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = "has no space left" if error.errno in _FULL else f"cannot be used ({error.strerror or error})"
            raise DataError(
                f"the folder {self._root} {what} for {name}; expected one with space that this process may write: free "
                "some, remove the folder, or choose another with data.cache_dir or data.stage_dir."
            ) from None


def is_remote(location: str) -> bool:
    """Whether a location is a URL of a known scheme."""
    return location.partition("://")[0] in SCHEMES and "://" in location


def open_store(location: str, *, stage_dir: str = "", cache_dir: str = "", cache_gib: float = 50.0) -> ShardStore:
    """The store of a data set.

    Args:
        location: folder, or URL of one (`s3://`, `https://`, `hf://`, `http://`).
        stage_dir: folder on the node's own disk to copy everything to; empty = no staging.
        cache_dir: folder for fetched shards of remote data sets; empty = `~/.cache/bridge_ds`.
        cache_gib: GiB of fetched shards to keep.

    Raises:
        DataError: a `pipe:`, a chain of URLs, an unknown scheme, or a missing package.
    """
    scheme, sign, _ = location.partition("://")
    if location.startswith("pipe:") or "::" in location or (sign and scheme not in SCHEMES):
        raise DataError(
            f"data.shards is {location!r}; expected a folder, or a URL that begins with "
            f"{', '.join(f'{name}://' for name in SCHEMES)}; nothing is ever run to get data."
        )
    if sign and not has_host(location):
        raise DataError(f"data.shards is {location!r}, a URL without a host; expected {scheme}://HOST/FOLDER.")
    if sign and not stage_dir:
        return NodeCache(location, Path(cache_dir) if cache_dir else default_cache(), int(cache_gib * GIB))
    if stage_dir:
        where = location if sign else str(Path(location).absolute())
        return NodeCache(where, Path(stage_dir), None)
    return Folder(Path(location))


def _filesystem(location: str) -> Any:
    """(file system, path of the data set on it)."""
    import fsspec

    scheme = location.partition("://")[0]
    options: dict[str, Any] = {}
    try:
        if scheme in ("http", "https"):
            import aiohttp

            # No limit on the total time (shards are large), one on silence.
            options["client_kwargs"] = {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=60)}
        return fsspec.url_to_fs(location, **options)
    except ImportError as error:
        package = SCHEMES[scheme]
        raise DataError(
            f"{location} needs the package {package} ({error}); install it: pip install {package}."
        ) from None
