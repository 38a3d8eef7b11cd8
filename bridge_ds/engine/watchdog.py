"""A thread that writes this rank's heartbeat and, when training hangs, names the rank that causes it and ends the job.

Collectives hang silently when one rank is stuck; the scheduler then bills all of them until the time limit.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from bridge_ds.engine.distributed import device_of
from bridge_ds.engine.gpu import DeviceProgress
from bridge_ds.engine.heartbeat import Beat, blamed, owner, read_beats, where_is_main, write_beat
from bridge_ds.errors import EXIT_HUNG, EXIT_LOST, last_words
from bridge_ds.world import World

__all__ = ["Watchdog"]

_log = logging.getLogger(__name__)
_LOOK_SECONDS = 1.0
"""Between two looks at whether this rank still belongs to a job."""


class Watchdog:
    """Started on every rank. `mark` is called by the loop; the rest is the thread's."""

    def __init__(self, folder: Path, world: World, limit: float, device: DeviceProgress | None = None) -> None:
        """Args:
        folder: where the heartbeats go; made if absent.
        world: this rank among the others.
        limit: seconds without progress after which the job is ended; 0 = never.
        device: of this rank; by default that of its GPU, if it has one.
        """
        self._folder, self._world, self._limit = folder, world, limit
        self._interval = min(10.0, limit / 10) if limit else 10.0
        self._step, self._count, self._phase, self._age = 0, 0, "start", 0.0
        self._device = device or DeviceProgress()
        self._armed = False
        self._mark = ""
        self._launcher = os.getppid() if _is_launched(os.environ) else 0
        self._runner = _deepspeed_above(self._launcher)
        self._stop = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._work, name="watchdog", daemon=True)

    def start(self, mark: str) -> None:
        """Begin to write heartbeats; hangs are looked for only while armed. `mark`: what `claim` gave this start."""
        self._mark = mark
        self._thread.start()

    def mark(self, phase: str, step: int | None = None) -> None:
        """This rank has reached `phase` of `step` (default: the same step)."""
        if step is not None:
            self._step, self._count = step, 0
        self._count += 1
        self._phase, self._age = phase, 0.0
        self._device.note((self._step, self._count, phase))

    def arm(self, armed: bool = True) -> None:
        """Look for hangs from now on, or no longer (loading and scoring may take long without progress)."""
        self._age, self._armed = 0.0, armed and self._limit > 0

    def stop(self) -> None:
        """End the thread."""
        self._armed = False
        self._stop.set()

    def _work(self) -> None:
        before = time.monotonic()
        on_gpu = False
        while not self._wait():
            now = time.monotonic()
            # A process that was stopped as a whole (SIGSTOP, a suspended node) does not hang: such time does not count.
            self._age += min(now - before, 2 * self._interval)
            before = now
            if not on_gpu and torch.cuda.is_initialized():
                # Every thread begins on device 0, where a CUDA call would create a context of this rank.
                torch.cuda.set_device(device_of(self._world))
                on_gpu = True
            self._write()
            if self._armed and self._age > self._limit:
                self._end()

    def _wait(self) -> bool:
        """Until the next heartbeat; true once the thread is to end."""
        end = time.monotonic() + self._interval
        while (left := end - time.monotonic()) > 0 and not self._stop.wait(min(_LOOK_SECONDS, left)):
            self._leave_if_superseded()
            if self._launcher and os.getppid() != self._launcher:
                # Killed: when it is only asked to end, it waits for its ranks.
                self._leave(f"the launcher (pid {self._launcher}) is gone; rank {self._world.rank} leaves.")
            if self._runner and _parent(self._launcher) != self._runner:
                self._runner = 0
                _say(f"warning: the command that started rank {self._world.rank} was killed; the run saves and stops.")
                os.kill(os.getpid(), signal.SIGTERM)
        return self._stop.is_set()

    def _write(self) -> None:
        where, inside = where_is_main()
        reached = self._device.reached() or (-1, 0, "")
        beat = Beat(
            rank=self._world.rank,
            host=socket.gethostname(),
            pid=os.getpid(),
            step=self._step,
            count=self._count,
            phase=self._phase,
            device_step=reached[0],
            device_count=reached[1],
            device_phase=reached[2],
            age=round(self._age, 1),
            time=time.time(),
            in_collective=inside,
            where=where,
        )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_beat(self._folder, beat)
        except OSError as error:
            # A full disk is reported by the checkpoint; a heartbeat must not end a run.
            if not self._warned:
                self._warned = True
                _log.warning("heartbeats cannot be written to %s (%s)", self._folder, error.strerror)

    def _leave_if_superseded(self) -> None:
        # Two trainings in one folder would mix their lines and checkpoints. Slurm starts a job again when a node's
        # daemon is gone, whether or not the job's processes there are. (Printed, not logged, here and below: the main
        # thread may hang while it holds the lock of a logging handler.)
        now = owner(self._folder)
        if now and self._mark and now != self._mark:
            self._leave(f"this run was started again ({now}); this start of it leaves.")

    def _leave(self, why: str) -> None:
        _say(f"error: {why}")
        os._exit(EXIT_LOST)

    def _end(self) -> None:
        time.sleep(2 * self._interval)  # the others write their heartbeats, too
        self._write()
        if self._age == 0 or not self._armed:
            return
        beats = read_beats(self._folder, self._world.size)
        guilty = blamed(beats, self._world.size, time.time(), 4 * self._interval)
        silent = {beat.rank for beat in beats if time.time() - beat.time > 4 * self._interval}
        who = "; ".join(guilty) or "no single rank: all wait for each other inside a collective (network?)"
        text = f"error: no progress for {self._limit:.0f} s (run.hang_seconds); stuck: {who}; the job is ended."
        if self._world.rank == min((beat.rank for beat in beats if beat.rank not in silent), default=0):
            _say(text)
            last_words(text, EXIT_HUNG)
        # The launcher ends all ranks when the first exits: those that only wait give the stuck one time to print.
        mine = any(clause.startswith(f"rank {self._world.rank} ") for clause in guilty)
        time.sleep(0.5 if mine or not guilty else 2.0)
        if mine or not guilty or self._world.is_main:
            _say(f"stack of rank {self._world.rank}:")
            faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
        time.sleep(0.5)
        os._exit(EXIT_HUNG)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # its reader may have left, or have been the launcher
        print(text, file=sys.stderr, flush=True)


def _deepspeed_above(launcher: int) -> int:
    """The `deepspeed` command that waits for its launcher of this node; 0 = another launcher, or a remote one.

    On one node it passes no signal on: where SIGTERM or SIGKILL ends it, launcher and ranks stay.
    """
    runner = _parent(launcher) if launcher else 0
    try:
        words = Path(f"/proc/{runner}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return 0
    names = b"deepspeed", b"deepspeed.pt", b"deepspeed.launcher.runner"
    return runner if any(os.path.basename(word) in names for word in words[:4]) else 0


def _parent(pid: int) -> int:
    """The process that started it; 0 = unknown."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        return int(status.rpartition(")")[2].split()[1])
    except (OSError, ValueError, IndexError):
        return 0


def _is_launched(environ: Mapping[str, str]) -> bool:
    """Whether torchrun, deepspeed or srun started this process and lives as long as it: a shell may end before."""
    return bool({"TORCHELASTIC_RUN_ID", "CROSS_SIZE"} & environ.keys()) or {
        "SLURM_STEP_ID", "SLURM_PROCID"
    } <= environ.keys()  # fmt: skip
