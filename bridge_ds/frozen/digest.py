"""The content of files as hashes: every byte is read, in parallel, once; then the hash is kept beside the file.

A hash that was kept is believed while size, inode, time of the last change of content (mtime) and of the file (ctime,
which no program can set back) are those of the file that was read, in nanoseconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bridge_ds.disk import write_text
from bridge_ds.errors import ConfigError

__all__ = ["BLOCK", "KEPT", "KEPT_FROM", "digests"]

_log = logging.getLogger(__name__)

BLOCK = 32 << 20
"""Bytes of a block. A file's hash is the sha256 of its length and of its blocks' sha256, so that many threads read one
file. A part of the format: identities in checkpoints are made of it."""
KEPT = ".bridge_ds-sha256.json"
"""Name of the file that keeps the hashes of the files in its folder."""
KEPT_FROM = 8 << 20
"""Bytes from which on a file's hash is kept; smaller ones are read about as fast as it is looked up."""
_TOLD_FROM = 1 << 30
"""Bytes to read from which on it is said."""
_TOLD_EVERY = 10.0
"""Seconds between two lines."""
_TICK, _COARSE_TICK = 100_000_000, 2_000_000_000
"""Nanoseconds within which two changes may get the same time: of file systems that keep nanoseconds (the kernel's clock
moves every 1 to 10 ms), and of those that keep whole seconds (Lustre, FAT)."""

_Stamp = list[int]


def digests(paths: Sequence[Path]) -> list[str]:
    """Hex digest of each file's whole content, see :data:`BLOCK`.

    Those that must be read are read by all CPU cores that this process may use; of much, progress is logged.
    What is kept lies beside the file (of a link: beside the file that it leads to), or where that folder cannot be
    written, in `$XDG_CACHE_HOME/bridge_ds` (default `~/.cache`).

    Raises:
        ConfigError: a file is missing, cannot be read, or was changed meanwhile.
    """
    try:
        files = [path.resolve(strict=True) for path in paths]
        kept = {folder: _kept(folder) for folder in {file.parent for file in files}}
        found = {file: said for file in files if (said := _believed(kept[file.parent].get(file.name), file))}
        unread = [file for file in dict.fromkeys(files) if file not in found]
        if unread:
            stamps = {file: _settled(file) for file in unread}
            found |= _read(unread, {file: stamp[0] for file, stamp in stamps.items()})
            for file in unread:
                if _stamp(file) != stamps[file]:
                    raise ConfigError(f"{file} was changed while it was read; expected a file at rest; start again.")
            _keep({file: (stamps[file], found[file]) for file in unread if stamps[file][0] >= KEPT_FROM})
    except OSError as error:
        raise ConfigError(
            f"{error.filename or paths[0]} cannot be read ({error.strerror or error}); expected a file of the model; "
            "download it again, or mend its permissions."
        ) from None
    return [found[file] for file in files]


def _stamp(file: Path) -> _Stamp:
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


def _settled(file: Path) -> _Stamp:
    """The file's stamp, taken once any later change is bound to give another one."""
    for _ in range(3):
        stamp = _stamp(file)
        if stamp[0] < KEPT_FROM:
            return stamp
        tick = _TICK if stamp[2] % 1_000_000_000 else _COARSE_TICK
        left = tick - (_clock(file.parent) - stamp[2])
        if left <= 0:
            return stamp
        time.sleep(min(left, _COARSE_TICK) / 1e9)
    return stamp


def _clock(folder: Path) -> int:
    """Now, in ns, by the clock of the file system where it can be asked: a server's may differ from this host's."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_mtime_ns
    except OSError:
        return time.time_ns()


def _read(files: Sequence[Path], sizes: Mapping[Path, int]) -> dict[Path, str]:
    """Hash files, all blocks of all of them at once."""
    blocks = [(file, start) for file in files for start in range(0, sizes[file], BLOCK)]
    told = _Told(sum(sizes.values()), len(files))
    # Threads, for hashlib lets others run while it works; more than 16 do not make a disk faster.
    with ThreadPoolExecutor(min(16, len(os.sched_getaffinity(0)), max(1, len(blocks)))) as pool:
        hashes = list(pool.map(lambda block: _hash_block(block[0], block[1], told), blocks))
    whole = {file: hashlib.sha256(str(sizes[file]).encode()) for file in files}
    for (file, _), block in zip(blocks, hashes, strict=True):
        whole[file].update(block)
    return {file: digest.hexdigest() for file, digest in whole.items()}


def _hash_block(file: Path, start: int, told: _Told) -> bytes:
    digest, left, buffer = hashlib.sha256(), BLOCK, memoryview(bytearray(1 << 20))
    with file.open("rb", buffering=0) as opened:
        opened.seek(start)
        while left and (got := opened.readinto(buffer[:left])):
            digest.update(buffer[:got])
            left -= got
            told.add(got)
    return digest.digest()


class _Told:
    """Reports how far it is, where there is much to read."""

    def __init__(self, total: int, files: int) -> None:
        self.total, self.done, self.lock, self.last = total, 0, threading.Lock(), time.monotonic()
        if total >= _TOLD_FROM:
            _log.info(f"reading {total / 1e9:.1f} GB in {files} files to identify the model; done once, then kept")

    def add(self, count: int) -> None:
        """Count bytes that were read."""
        with self.lock:
            self.done += count
            now = time.monotonic()
            if self.total >= _TOLD_FROM and now - self.last >= _TOLD_EVERY:
                self.last = now
                _log.info(f"{self.done / 1e9:.1f} of {self.total / 1e9:.1f} GB read to identify the model")


def _places(folder: Path) -> Iterator[Path]:
    """Where the hashes of a folder's files may be kept, the best place first."""
    yield folder / KEPT
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    yield cache / "bridge_ds" / "sha256" / f"{hashlib.sha256(os.fsencode(folder)).hexdigest()[:32]}.json"


def _kept(folder: Path) -> dict[str, Any]:
    """{file name: {"stamp": ..., "sha256": ...}} of all places; what cannot be read is as if it were not there."""
    found: dict[str, Any] = {}
    for place in reversed(list(_places(folder))):
        try:
            values = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(values, dict) and values.get("block") == BLOCK and isinstance(values.get("files"), dict):
            found |= values["files"]
    return found


def _believed(entry: Any, file: Path) -> str:
    """The hash that was kept of this very content, or nothing."""
    if not isinstance(entry, dict) or entry.get("stamp") != _stamp(file):
        return ""
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) and len(digest) == 64 else ""


def _keep(new: Mapping[Path, tuple[_Stamp, str]]) -> None:
    for folder in {file.parent for file in new}:
        entries = {f.name: {"stamp": stamp, "sha256": said} for f, (stamp, said) in new.items() if f.parent == folder}
        for place in _places(folder):
            if _wrote(place, entries, folder):
                break


def _wrote(place: Path, entries: Mapping[str, Any], folder: Path) -> bool:
    """Whether the entries are in the file `place` now, beside those of files that are still there."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        others = {name: entry for name, entry in _kept(folder).items() if (folder / name).is_file()}
        text = json.dumps({"block": BLOCK, "files": others | dict(entries)}, indent=1, sort_keys=True)
        write_text(place, text, fsync=False)
        place.chmod(0o644)  # others who use this copy of the model gain by it too
    except OSError:
        return False
    return True
