"""metrics.jsonl, the source of all trackers and plots: one JSON object a line, one line an optimizer step."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import math
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from bridge_ds.disk import atomic_write
from bridge_ds.engine.hooks import Hook, RecordedStep, StepRecord
from bridge_ds.errors import DataError
from bridge_ds.typed import typed_value

__all__ = ["MetricsLog", "iter_metrics", "not_a_record", "parse_line", "plain", "read_metrics"]

_log = logging.getLogger(__name__)

_LARGEST = sys.float_info.max
_PERHAPS_NOT_FINITE = re.compile(r"NaN|Infinity|[eE]\+?\d\d\d|\d{300}")


class MetricsLog(Hook):
    """Appends every step to a file and flushes it. Put it before all other hooks: its line is there first.

    While the disk is full, lines wait in memory (about 1 KiB each) and follow when there is room: a line is not worth
    ending a run. `checkpoint.max_failed_saves` ends one whose disk stays full.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._file: BinaryIO | None = None
        self._waiting: list[bytes] = []
        self._size = 0

    def on_start(self, *, step: int, total_steps: int) -> None:
        """Open the file. Steps after `step` will be done again: their lines go, as does an incomplete last one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_file():
            _keep_up_to(self.path, step)
        self._file = self.path.open("ab", buffering=0)
        self._size = self.path.stat().st_size

    def on_step(self, record: StepRecord) -> None:
        """Write the step, with `time` (Unix seconds) added; numbers that are not finite become null."""
        line = plain({**record, "time": round(time.time(), 3)})
        self._waiting.append((json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode())
        self._write()

    def on_save(self, step: int) -> None:
        """Force the lines to disk, so that a checkpoint never outlives the record of the steps before it."""
        if self._file is not None:
            with contextlib.suppress(OSError):  # the checkpoint's own writing will meet the same fault and name it
                os.fsync(self._file.fileno())

    def on_end(self, status: str) -> None:
        """Close the file."""
        if self._file is not None:
            self._write()
            if self._waiting:
                _log.warning(f"{len(self._waiting)} lines of {self.path} could not be written and are lost")
            self._file.close()
            self._file = None

    def _write(self) -> None:
        assert self._file is not None, "on_start comes first"
        if not self._waiting:
            return
        lines = b"".join(self._waiting)
        try:
            if not self.path.exists():
                raise FileNotFoundError(errno.ENOENT, "the file has vanished", str(self.path))
            written = self._file.write(lines) or 0
            if written < len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            # Part of a line may be there; it must not stay in front of the whole one.
            with contextlib.suppress(OSError):
                self._file.truncate(self._size)
            if len(self._waiting) == 1:
                _log.warning(f"{self.path} cannot be written ({error.strerror}); its lines wait in memory")
            with contextlib.suppress(OSError):
                self._reopen()
            return
        self._size += len(lines)
        if len(self._waiting) > 1:
            _log.info(f"{self.path} is written again; {len(self._waiting)} lines had waited")
        self._waiting = []

    def _reopen(self) -> None:
        # A folder that vanished may come back, without the file that was open.
        assert self._file is not None
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file.close()
            self._file = self.path.open("ab", buffering=0)
            self._size = 0


def read_metrics(path: Path) -> list[StepRecord]:
    """All whole lines, in order; null where a number was not finite.

    Raises:
        DataError: the file is absent, or a line that is not the last is not a JSON object with `step`.
    """
    return list(iter_metrics(path))


def iter_metrics(path: Path) -> Iterator[StepRecord]:
    """As :func:`read_metrics`, one line at a time."""
    if not Path(path).is_file():
        raise DataError(f"{path} is absent; expected the metrics of a run; give the run.output of one.")
    with Path(path).open(encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, start=1):
            record = parse_line(line)
            if record is not None:
                yield record
            elif line.endswith("\n"):
                raise not_a_record(path, line, number)


def not_a_record(path: Path, line: str, number: int = 0) -> DataError:
    """The error about a whole line, by its number where that is known, that :func:`parse_line` does not take."""
    where = f"{path} line {number}" if number else f"a line of {path}"
    return DataError(
        f"{where} is {line[:40].strip()!r}; expected a JSON object with `step` and finite numbers; remove the line, or "
        "restore the file."
    )


def parse_line(line: str) -> StepRecord | None:
    """The record of one line; None if it is no record, or incomplete (a kill while writing: no line end)."""
    if not line.endswith("\n"):
        return None
    try:
        record = typed_value(line, RecordedStep)
    except ValueError:
        return None
    # The first look is for speed.
    return None if _PERHAPS_NOT_FINITE.search(line) and not _finite(record) else record


def _finite(value: Any) -> bool:
    """Whether all numbers in it are finite as float; null stands for those that are not."""
    if isinstance(value, dict | list):
        return all(map(_finite, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int | float) or -_LARGEST <= value <= _LARGEST


def plain(value: Any) -> Any:
    """The value as JSON holds it: numbers that are not finite become None, tensors lists or numbers."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _keep_up_to(path: Path, step: int) -> None:
    with atomic_write(path) as file:
        for record in iter_metrics(path):
            if record["step"] <= step:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
