"""Progress of each rank: `heartbeat/rank-00000.json` in the run folder, and which ranks cause a hang."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from bridge_ds.disk import real, write_text

__all__ = [
    "Beat", "await_leaving", "blamed", "claim", "living", "owner", "read_beats", "where_is_main", "write_beat",
]  # fmt: skip

_FRESH_SECONDS = 30.0
"""Three times the longest pause between two heartbeats."""
_PATIENCE_SECONDS = 25.0
"""After these the ranks of an earlier start count as gone, with their node."""

_COLLECTIVES = (f"torch{os.sep}distributed{os.sep}", f"deepspeed{os.sep}comm{os.sep}")


@dataclass(frozen=True)
class Beat:
    """Progress of one rank."""

    rank: int
    host: str
    pid: int
    step: int
    """The current step."""
    phase: str
    """start, data, agree, forward, backward, update (these three for each micro-batch), reduce, validate (for each
    micro-batch), hooks or end."""
    age: float
    """Seconds in this phase, not counting time for which the whole process was stopped."""
    time: float
    """When this was written (Unix seconds)."""
    in_collective: bool = False
    """Whether the main thread waits inside torch.distributed: it waits for others, they do not wait for it."""
    where: str = ""
    """Innermost line of the main thread: `file:line function`."""
    count: int = 0
    """Phases of the step that have begun, the same on every rank at the same point."""
    device_step: int = -1
    """Step of the GPU, which runs behind the host; -1 = there is none."""
    device_count: int = 0
    device_phase: str = ""

    @property
    def progress(self) -> tuple[int, int, int, int]:
        """Comparable between ranks; less is further behind. The host comes first: a GPU runs only what was
        launched. Under NCCL all hosts may wait at the end of the step; then the GPUs differ."""
        return self.step, self.count, self.device_step, self.device_count

    def describe(self) -> str:
        """One clause for a person."""
        behind = (self.device_step, self.device_count) < (self.step, self.count) and self.device_step >= 0
        device = f" (its GPU: step {self.device_step}, phase {self.device_phase})" if behind else ""
        return (
            f"rank {self.rank} ({self.host}, pid {self.pid}) at step {self.step}, phase {self.phase}{device}, "
            f"for {self.age:.0f} s, in {self.where or 'unknown code'}"
        )


def blamed(beats: Sequence[Beat], ranks: int, now: float, silent_after: float) -> list[str]:
    """Which ranks the others wait for, each as a clause; empty if all wait for each other inside a collective.

    First those that have not written for `silent_after` seconds (stopped, dead, or their node is gone), then those
    furthest behind that do not themselves wait in a collective.
    """
    seen = {beat.rank: beat for beat in beats}
    silent = [f"rank {rank} (no heartbeat file)" for rank in range(ranks) if rank not in seen]
    silent += [
        f"{beat.describe()}, silent for {now - beat.time:.0f} s (stopped, dead, or its node is gone)"
        for beat in beats
        if now - beat.time > silent_after
    ]
    if silent:
        return silent
    behind = min(beat.progress for beat in beats)
    last = [beat for beat in beats if beat.progress == behind]
    if len(last) == len(beats):
        last = [beat for beat in last if not beat.in_collective]
        # Without a difference between them no rank is the cause: it is the network, or something that all share.
        last = [] if len(last) == len(beats) and len(beats) > 1 else last
    return [beat.describe() for beat in last]


def write_beat(folder: Path, beat: Beat) -> None:
    """Replace this rank's file. Raises OSError."""
    write_text(folder / f"rank-{beat.rank:05d}.json", json.dumps(asdict(beat)), fsync=False)


def read_beats(folder: Path, ranks: int) -> list[Beat]:
    """The files of ranks 0 to `ranks` - 1 that can be read."""
    found = []
    for rank in range(ranks):
        try:
            values = json.loads((folder / f"rank-{rank:05d}.json").read_text(encoding="utf-8"))
            found.append(Beat(**{field.name: values[field.name] for field in fields(Beat)}))
        except (OSError, ValueError, KeyError):
            continue
    return found


def claim(folder: Path) -> str:
    """Take the run over: an earlier start of it that still runs (the scheduler lost its node) reads this and exits.
    Returns the mark to compare :func:`owner` with. Raises OSError."""
    real(folder).mkdir(parents=True, exist_ok=True)
    mark = f"{socket.gethostname()}, pid {os.getpid()}, {uuid.uuid4().hex[:8]}"
    write_text(folder / "owner.txt", mark, fsync=False)
    return mark


def owner(folder: Path) -> str:
    """The mark of the start that has the run; empty if that cannot be read."""
    try:
        return (folder / "owner.txt").read_text(encoding="utf-8")
    except OSError:
        return ""


def living(folder: Path) -> list[Beat]:
    """Heartbeats of ranks that have written within the last half minute and may still run."""
    numbers = [int(path.stem[5:]) for path in folder.glob("rank-*.json") if path.stem[5:].isdigit()]
    beats = read_beats(folder, max(numbers, default=-1) + 1)
    return [beat for beat in beats if abs(time.time() - beat.time) < _FRESH_SECONDS and not _has_ended(beat)]


def await_leaving(folder: Path, beats: Sequence[Beat]) -> None:
    """Wait until the ranks of an earlier start have exited, which they do after their next heartbeat once the run is
    claimed; two starts that write checkpoints would remove each other's files.

    Args:
        folder: with the heartbeats.
        beats: theirs, read after :func:`claim`.
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    waited_for = {beat.rank: beat for beat in beats}
    while waited_for and time.monotonic() < deadline:
        now = {beat.rank: beat for beat in read_beats(folder, max(waited_for) + 1)}
        for rank, beat in list(waited_for.items()):
            if _has_ended(beat) or (beat.host != socket.gethostname() and now.get(rank, beat).time != beat.time):
                del waited_for[rank]
        time.sleep(0.1)


def _has_ended(beat: Beat) -> bool:
    """Whether the process is known to be gone: it was on this host, and is not there or is a zombie."""
    if beat.host != socket.gethostname():
        return False
    try:
        os.kill(beat.pid, 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    try:
        state = Path(f"/proc/{beat.pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return False
    return beat.pid == os.getpid() or state.split()[0] in "ZX"


def where_is_main() -> tuple[str, bool]:
    """The main thread's innermost line, and whether it is inside a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    where, inside = "", False
    while frame is not None:
        file = frame.f_code.co_filename
        where = where or f"{file}:{frame.f_lineno} {frame.f_code.co_name}"
        inside = inside or any(part in file for part in _COLLECTIVES)
        frame = frame.f_back
    return where, inside
