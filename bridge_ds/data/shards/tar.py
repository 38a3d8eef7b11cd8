"""The members of a tar (ustar, GNU, PAX), header by header, in constant memory.

tarfile does what a header says: it allocates the size that a long name or a PAX header claims, calls itself for each of
a chain of them, and goes backwards, or never ends, after a negative size or in the map of a sparse file. It silently
takes a damaged header, or a tar truncated between two members, for the end of the archive. Here each size is compared
with the bytes that are there, and only the zero blocks that end a tar may follow its last member.
"""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

__all__ = ["BLOCK", "BadTar", "Member", "crc32_of", "members", "reads"]

BLOCK = 512
"""Bytes of a header; data is padded to a multiple of them."""

# A file system takes names of 4,096 bytes. A PAX header may also hold extended attributes, 64 KiB each.
_LONGEST_NAME = 4096
_LONGEST_HEADER = 1 << 20
_PIECE = 1 << 20
_EXTENDED = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]+)=")


class BadTar(ValueError):
    """Bytes that are not a whole tar; the message completes a sentence that begins with the shard's name."""


class Member(NamedTuple):
    """One member."""

    name: str
    """Bytes of it that are not UTF-8 are surrogate escapes."""
    kind: bytes
    """Type flag, such as `tarfile.REGTYPE`."""
    offset: int
    """Byte of the tar at which its headers begin."""
    start: int
    """Byte of the tar at which its data begins."""
    size: int
    """Bytes of its data; 0 for what is no file."""

    @property
    def is_file(self) -> bool:
        """Whether it is a plain file."""
        return self.kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)

    @property
    def end(self) -> int:
        """Byte after its data and padding."""
        return self.start + -(-self.size // BLOCK) * BLOCK


def reads(file: BinaryIO) -> Callable[[int, int], bytes]:
    """A function (offset, bytes) that reads an open file without moving its position."""
    return lambda at, count: os.pread(file.fileno(), count, at)


def members(read: Callable[[int, int], bytes], size: int, *, ended: bool = True) -> Iterator[Member]:
    """The members of a tar, in order.

    Args:
        read: gives up to so many bytes from an offset.
        size: bytes of the tar.
        ended: whether zero blocks must end it; else it may end after a member.

    Raises:
        BadTar: it is damaged, truncated, or no tar; or holds a sparse file or a name that no file can have.
        OSError: it cannot be read.
    """
    at = begin = 0
    extra: dict[bytes, bytes] = {}  # of the extended headers before a member, by their type
    while True:
        header = read(at, BLOCK)
        if len(header) < BLOCK or not any(header):
            if extra:
                raise BadTar("is not a complete tar (an extended header without its member)")
            if ended or len(header) == BLOCK:
                _check_end(read, at, size)
            elif header:
                raise BadTar("is not a complete tar (unexpected end of data)")
            return
        try:
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise BadTar(f"is not a complete tar ({error})" if at == 0 else _damage(at, size)) from None
        start = at + BLOCK
        if info.type in (*_EXTENDED, tarfile.XGLTYPE):
            if not 0 <= info.size <= _LONGEST_HEADER:
                raise BadTar(
                    f"is damaged: the extended header at byte {at} has {info.size} bytes; expected at most "
                    f"{_LONGEST_HEADER}"
                )
            content = read(start, info.size)
            at = _end(start, info.size, size)
            if info.type == tarfile.XGLTYPE:
                if any(key in (b"path", b"size") or key.startswith(b"GNU.sparse.") for key in _records(content, start)):
                    raise BadTar(f"is damaged: the header at byte {start} sets the name or size of all members")
                begin = begin if extra else at
            elif info.type in extra:
                raise BadTar(f"is damaged: the member before byte {at} has two extended headers of one kind")
            else:
                extra[info.type] = content
            continue
        member = _member(info, begin, start, extra)
        at = begin = _end(start, member.size, size)
        extra.clear()
        yield member


def crc32_of(file: BinaryIO, start: int, stop: int) -> int:
    """CRC-32 of the bytes in [start, stop) of an open file, as far as they are there; in constant memory."""
    value = 0
    while start < stop and (piece := os.pread(file.fileno(), min(_PIECE, stop - start), start)):
        value, start = zlib.crc32(piece, value), start + len(piece)
    return value


def _member(info: tarfile.TarInfo, begin: int, start: int, extra: dict[bytes, bytes]) -> Member:
    records: dict[bytes, bytes] = {}
    for kind in (tarfile.SOLARIS_XHDTYPE, tarfile.XHDTYPE):
        records |= _records(extra.get(kind, b""), begin)
    raw = records.get(b"path", extra.get(tarfile.GNUTYPE_LONGNAME, b"").rstrip(b"\0"))
    if len(raw) > _LONGEST_NAME or b"\0" in raw:
        fault = "a NUL in it" if b"\0" in raw else f"{len(raw)} bytes"
        raise BadTar(f"is damaged: the name of the member at byte {begin} has {fault}; expected a file's name")
    name = raw.decode("utf-8", "surrogateescape") or info.name
    if info.type == tarfile.GNUTYPE_SPARSE or any(key.startswith(b"GNU.sparse.") for key in records):
        raise BadTar(f"holds {name!r}, a sparse file; expected plain files only")
    kind = tarfile.DIRTYPE if info.type == tarfile.AREGTYPE and name.endswith("/") else info.type
    bare = kind in tarfile.SUPPORTED_TYPES and kind not in tarfile.REGULAR_TYPES  # folders, links, devices: no data
    size = records.get(b"size", str(info.size).encode())
    if not re.fullmatch(rb"[0-9]{1,18}", size):
        raise BadTar(f"is damaged: the member {name!r} at byte {begin} has the size {size[:40].decode('latin-1')!r}")
    return Member(name.rstrip("/") if kind == tarfile.DIRTYPE else name, kind, begin, start, 0 if bare else int(size))


def _records(content: bytes, where: int) -> dict[bytes, bytes]:
    """The records `LENGTH KEY=VALUE\\n` of a PAX header."""
    found: dict[bytes, bytes] = {}
    content, at = content.rstrip(b"\0"), 0
    while at < len(content):
        record = _RECORD.match(content, at)
        end = at + int(record[1]) if record else 0
        if record is None or not record.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise BadTar(f"is damaged: the PAX header at byte {where} has a malformed record")
        found[record[2]] = content[record.end() : end - 1]
        at = end
    return found


def _end(start: int, length: int, size: int) -> int:
    end = start + -(-length // BLOCK) * BLOCK
    if end > size:
        raise BadTar("is not a complete tar (unexpected end of data)")
    return end


def _check_end(read: Callable[[int, int], bytes], offset: int, size: int) -> None:
    at = offset
    while piece := read(at, _PIECE):
        if piece.strip(b"\0"):
            raise BadTar("is not a complete tar (no tar header)" if offset == 0 else _damage(offset, size))
        at += len(piece)
    if size - offset < BLOCK:
        raise BadTar(f"ends at byte {size} without the zeros that end a tar: it was truncated")


def _damage(offset: int, size: int) -> str:
    return (
        f"is damaged: bytes {offset} to {size - 1} are neither a tar header nor the zeros that end a tar (two tars in "
        "one file are not read either)"
    )
