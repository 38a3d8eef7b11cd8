"""Encoder states on disk: what one key holds, found by the ids that the encoder read.

A process that adds something has two files of its own: `NAME.states`, blocks end to end, and `NAME.index`, a line of
JSON for each block. It writes the blocks first, then their lines at once. Nobody else writes these files, so processes
need no locks, and a killed one leaves at most bytes that no line names. Readers follow the lines of all files.

Dimensions: N states of a token, S encoder tokens, D encoder width.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bridge_ds.errors import LaunchError

__all__ = ["StatesBlock", "StatesFiles", "key_of", "used_bytes"]

_log = logging.getLogger(__name__)
_BLOCKS, _INDEX = ".states", ".index"
_MOST_OPEN = 64
"""Files of blocks that are open at a time: each process of each start has written one."""


class StatesBlock(NamedTuple):
    """Where the states of one text are."""

    file: Path
    """Of the blocks."""
    offset: int
    """Bytes before it."""
    tokens: int
    """S."""
    checksum: int
    """See :func:`_checksum`."""


def key_of(ids_S: torch.Tensor) -> str:
    """Of a text, by the ids (int64, on the host, no padding) that the encoder reads: equal ids have equal states."""
    return hashlib.blake2b(ids_S.numpy().astype("<i8").tobytes(), digest_size=16).hexdigest()


def used_bytes(folder: Path) -> int:
    """Bytes of all blocks in the keys' folders under `folder`."""
    sizes = 0
    for path in folder.glob(f"*/*{_BLOCKS}"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            sizes += path.stat().st_size
    return sizes


class StatesFiles:
    """The files of one key. Reading is by pread and not by memory maps: a file that is cut while it is mapped kills the
    process, and a map would save no copy."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Args:
        folder: of the key; its parent, which holds those of other keys too, is bounded. It must exist.
        limit: bytes of all blocks under the parent.
        """
        self.folder, self.limit = folder, limit
        self.full = ""
        """Why nothing more is added; empty = it may be."""
        self._blocks: dict[str, list[StatesBlock]] = {}
        self._followed: dict[Path, int] = {}
        """Bytes of each index that are read."""
        self._open: dict[Path, int] = {}
        self._own: tuple[Path, int, int] | None = None
        """File of the blocks that this process adds, and the descriptors of it and of its index."""
        self._noted: set[Path] = set()

    @property
    def count(self) -> int:
        """Keys that are known."""
        return len(self._blocks)

    def __contains__(self, key: str) -> bool:
        return key in self._blocks

    def refresh(self) -> None:
        """Follow what this and other processes have added since. Of several blocks of a key the first is read."""
        for path in sorted(self.folder.glob(f"*{_INDEX}")):
            done = self._followed.get(path, 0)
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                if path.stat().st_size > done:
                    with path.open("rb") as file:
                        file.seek(done)
                        lines = file.read()
                    end = lines.rfind(b"\n") + 1  # a line may be only begun
                    self._followed[path] = done + end
                    for line in lines[:end].splitlines():
                        self._follow(path.with_suffix(_BLOCKS), line)

    def _follow(self, blocks: Path, line: bytes) -> None:
        try:
            key, *numbers = json.loads(line)
            block = StatesBlock(blocks, *map(int, numbers))
            self._blocks.setdefault(str(key), []).append(block)
        except (ValueError, TypeError):
            self._note(blocks.with_suffix(_INDEX), "a line")

    def read(self, key: str, into_NSD: torch.Tensor) -> bool:
        """Fill `into_NSD` (host memory; each [S, D] contiguous) with the states of `key`.

        A block that cannot be read, or is not what was written, is forgotten, with a note.

        Returns:
            whether they are there and whole.

        Raises:
            LaunchError: the process may open no more files.
        """
        parts = [part.view(torch.uint8).numpy() for part in into_NSD]
        while blocks := self._blocks.get(key):
            block, whole = blocks[0], blocks[0].tokens == into_NSD.shape[1] and self._fill(blocks[0], parts)
            if whole and _checksum(into_NSD) == block.checksum:
                return True
            self._note(block.file, f"what lies at byte {block.offset}")
            into_NSD.zero_()
            self._blocks[key] = blocks[1:]
        self._blocks.pop(key, None)
        return False

    def _fill(self, block: StatesBlock, parts: Sequence[Any]) -> bool:
        try:
            return os.preadv(self._opened(block.file), parts, block.offset) == sum(part.nbytes for part in parts)
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):  # the block may be whole
                raise LaunchError(
                    f"{block.file} cannot be read ({error.strerror}); expected room for {_MOST_OPEN} open files beside "
                    "the run's others; raise the limit (ulimit -n)."
                ) from None
            return False
        except OverflowError:  # a damaged line may name any offset
            return False

    def _opened(self, file: Path) -> int:
        if file not in self._open:
            if len(self._open) >= _MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[file] = os.open(file, os.O_RDONLY)
        return self._open[file]

    def _note(self, path: Path, what: str) -> None:
        """Once for each file."""
        if path not in self._noted:
            self._noted.add(path)
            _log.warning("note: %s of %s is damaged; such states are computed again.", what, path)

    def add(self, found: Sequence[tuple[str, torch.Tensor]]) -> bool:
        """Write states [N, S, D] (host memory, contiguous) of keys that are not there: all of them or none.

        None where the limit or the disk has no room for all; nothing is then added ever after, with a note.

        Returns:
            whether they are written.
        """
        fresh = {key: states for key, states in found if key not in self._blocks}
        size = sum(states.nbytes for states in fresh.values())
        if self.full or not fresh:
            return not self.full
        if used_bytes(self.folder.parent) + size > self.limit:
            self._stop(f"data.states_cache_gib {self.limit / 2**30:g} is used up")
            return False
        try:
            self._write(fresh)
        except OSError as error:
            self._stop(f"it cannot be written ({error.strerror})")
            return False
        return True

    def _write(self, fresh: dict[str, torch.Tensor]) -> None:
        if self._own is None:
            path = self.folder / f"{uuid.uuid4().hex[:12]}{_BLOCKS}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._own = path, os.open(path, flags, 0o666), os.open(path.with_suffix(_INDEX), flags, 0o666)
        path, blocks, index = self._own
        offset = os.fstat(blocks).st_size
        added = {}
        for key, states in fresh.items():
            added[key] = StatesBlock(path, offset, states.shape[1], _checksum(states))
            left = states.view(torch.uint8).numpy().reshape(-1).data
            offset += len(left)
            while left:
                left = left[os.write(blocks, left) :]
        # In one write, so that after a kill all blocks of a micro-batch are found or none: those that are missing are
        # then computed in the company in which they were.
        lines = "".join(json.dumps([key, *block[1:]]) + "\n" for key, block in added.items()).encode()
        if os.write(index, lines) != len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._followed[path.with_suffix(_INDEX)] = os.fstat(index).st_size
        self._blocks |= {key: [block] for key, block in added.items()}

    def _stop(self, why: str) -> None:
        self.full = why
        _log.warning("note: no more encoder states are kept in %s, as %s; the rest is computed.", self.folder, why)

    def close(self) -> None:
        """Close all files."""
        for descriptor in [*self._open.values(), *(self._own or ())[1:]]:
            os.close(descriptor)
        self._open, self._own = {}, None


def _checksum(states_NSD: torch.Tensor) -> int:
    """The sum of all words (64 bits, modulo 2^64). A change of any one byte changes it, and it costs one pass at the
    speed of memory: reading must be faster than the encoder."""
    row = states_NSD.shape[-1] * states_NSD.element_size()
    words = states_NSD.view(torch.int64 if row % 8 == 0 else torch.int16)
    return int(words.sum(dtype=torch.int64)) & (2**64 - 1)
