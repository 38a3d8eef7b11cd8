"""Random access to samples: one positioned read and one JSON parse each. Nothing is unpickled, fetched or run."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from typing import Any, BinaryIO

from bridge_ds.data.index import ShardEntry, ShardIndex
from bridge_ds.errors import DataError

__all__ = ["REQUIRED_FIELDS", "SampleReader", "fault_in"]

REQUIRED_FIELDS: dict[str, tuple[str, ...]] = {"task": ("source", "target"), "prefix_lm": ("text",)}
"""What a sample must hold, by `data.objective`. A task sample may also hold `prompt`."""


class SampleReader:
    """Reads samples of a :class:`ShardIndex` by number.

    Files open at first use and at most `open_files` stay open. It may be pickled (without its files) or inherited by a
    forked worker: reads name their position (pread), so that processes that share a file do not disturb each other.
    """

    def __init__(self, index: ShardIndex, objective: str, open_files: int = 16) -> None:
        """Args:
        index: the shards.
        objective: `task` or `prefix_lm`; decides which fields a sample must have.
        open_files: shards kept open at a time by each process.
        """
        self._index = index
        self._objective = objective
        self._open_files = open_files
        self._files: OrderedDict[str, BinaryIO] = OrderedDict()

    def read(self, sample: int) -> dict[str, Any]:
        """The sample with this number, its required fields checked.

        Raises:
            DataError: the shard cannot be read, the JSON is malformed, or a field is missing or wrong.
        """
        shard, row = self._index.locate(sample)
        raw = self._bytes(shard, int(shard.offsets[row]), int(shard.lengths[row]), sample)
        try:
            content = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self._index.describe(sample)} is malformed JSON ({error}); the shard or its index was changed after "
                "packing: copy both again or pack them again with tools/pack_shards.py."
            ) from None
        fault = fault_in(content, self._objective)
        if fault:
            raise DataError(
                f"{self._index.describe(sample)} {fault}; mend the input and pack it again with tools/pack_shards.py."
            )
        return content

    def close(self) -> None:
        """Close all files; the next read opens what it needs."""
        while self._files:
            self._files.popitem()[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": OrderedDict()}

    def _bytes(self, shard: ShardEntry, offset: int, length: int, sample: int) -> bytes:
        try:
            raw = os.pread(self._file(shard.name).fileno(), length, offset)
        except OSError as error:
            raise DataError(
                f"{self._index.describe(sample)} cannot be read ({error.strerror or error}); "
                "check that the shard still exists and that this process may read it."
            ) from None
        if len(raw) != length:
            raise DataError(
                f"{self._index.describe(sample)} ends after {len(raw)} of {length} bytes; "
                "the shard was cut while the run used it: copy it again."
            )
        return raw

    def _file(self, name: str) -> BinaryIO:
        if name in self._files:
            self._files.move_to_end(name)
            return self._files[name]
        while len(self._files) >= self._open_files:
            self._files.popitem(last=False)[1].close()
        file = (self._index.folder / name).open("rb", buffering=0)
        self._files[name] = file
        return file


def fault_in(sample: Any, objective: str) -> str:
    """What is wrong with a sample, as the rest of a sentence that began with its place; empty if nothing is.

    >>> fault_in({"source": "2 + 2"}, "task")
    'has no `target`; the objective task needs `source` and `target`'
    """
    if not isinstance(sample, dict):
        return f"is a JSON {type(sample).__name__}; expected an object with named fields"
    required = REQUIRED_FIELDS[objective]
    optional = ("prompt",) if objective == "task" and sample.get("prompt") is not None else ()
    for field in required + optional:
        if field not in sample:
            return f"has no `{field}`; the objective {objective} needs {' and '.join(f'`{name}`' for name in required)}"
        value = sample[field]
        if not isinstance(value, str):
            return f"has a `{field}` of type {type(value).__name__}; expected text"
        if not value.strip():
            return f"has an empty `{field}`; expected text"
        if not _is_unicode(value):
            return f"has half a surrogate pair in `{field}`; expected text that can be written as UTF-8"
    if objective == "prefix_lm" and len(sample["text"].split(maxsplit=1)) < 2:
        return "has fewer than two words in `text`; a prefix and a rest need at least two"
    return ""


def _is_unicode(text: str) -> bool:
    # JSON may hold "\ud800" alone; tokenizers then fail with a message that names neither sample nor reason.
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
