"""Start real training processes, one per rank, as a launcher would, and never let them outlive the test."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass
class Outcome:
    """What the ranks left behind."""

    codes: list[int]
    outputs: list[str]

    @property
    def text(self) -> str:
        """Everything that all ranks printed."""
        return "\n".join(f"--- rank {rank}\n{text}" for rank, text in enumerate(self.outputs))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Job:
    """Ranks in their own process group each."""

    def __init__(self, command: list[str], ranks: int, folder: Path, env: dict[str, str] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
        common = os.environ | {
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "LOCAL_SIZE": str(ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONUNBUFFERED": "1",
        }
        self.processes = []
        for rank, log in enumerate(self.logs):
            with log.open("w") as out:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | (env or {}),
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                )

    @property
    def running(self) -> bool:
        """No rank has ended yet."""
        return all(process.poll() is None for process in self.processes)

    def wait(self, timeout: float = 240) -> Outcome:
        """Wait for all ranks; past `timeout` seconds they are killed and the test fails with what they printed."""
        deadline = time.monotonic() + timeout
        try:
            codes = [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"ranks still ran after {timeout} s\n{self._outcome([]).text[-6000:]}") from None
        return self._outcome(codes)

    def kill(self) -> None:
        """SIGKILL for every rank and its workers."""
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _outcome(self, codes: list[int]) -> Outcome:
        return Outcome(codes, [log.read_text(errors="replace") for log in self.logs])


class Zygote:
    """Starts job after job from one process that has imported everything (see tests/programs/zygote.py)."""

    def __init__(self) -> None:
        self._job: ForkedJob | None = None
        env = os.environ | {
            "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "",
            "MASTER_ADDR": "127.0.0.1",
        }  # fmt: skip
        command = [sys.executable, "tests/programs/zygote.py"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._read = b""
        assert self._answer(120).get("ready")

    def start(
        self,
        arguments: list[str],
        ranks: int,
        folder: Path,
        env: dict[str, str] | None = None,
        program: str = "train",
    ) -> ForkedJob:
        """One job (`train`, `evaluation`, or a file of tests/programs); wait for it before the next. One that a test
        has left behind is killed."""
        if self._job:
            self._job.kill()
        folder.mkdir(parents=True, exist_ok=True)
        logs = [folder / f"rank{rank}.log" for rank in range(ranks)]
        for log in logs:
            log.write_text("")  # here, so that whoever reads it next finds it; the rank opens it when it has begun
        job: dict[str, Any] = {"ranks": ranks, "arguments": arguments, "folder": str(folder), "program": program}
        job["env"] = {"MASTER_PORT": str(free_port()), **(env or {})}
        assert self.process.stdin
        self.process.stdin.write(json.dumps(job).encode() + b"\n")
        self._job = ForkedJob(self, self._answer(30)["pids"], logs)
        return self._job

    def codes(self, timeout: float) -> list[int]:
        """Exit statuses of the job, when all its ranks have ended."""
        codes: list[int] = self._answer(timeout)["codes"]
        self._job = None
        return codes

    def close(self) -> None:
        """End it; jobs must have ended before."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)

    def _answer(self, timeout: float) -> dict[str, Any]:
        if not self.answered(timeout):
            raise TimeoutError
        line, _, self._read = self._read.partition(b"\n")
        return json.loads(line)

    def answered(self, timeout: float) -> bool:
        """Whether there is an answer, after `timeout` seconds at most."""
        # Not readline: it may take in two answers, and select would then wait for the second in vain.
        assert self.process.stdout
        deadline = time.monotonic() + timeout
        while b"\n" not in self._read:
            if not select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                return False
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            assert more, "the process that starts jobs has ended"
            self._read += more
        return True


@dataclass
class ForkedJob:
    """Ranks of a :class:`Zygote`."""

    zygote: Zygote
    pids: list[int]
    logs: list[Path]

    @property
    def running(self) -> bool:
        """Some rank has not ended yet."""
        return not self.zygote.answered(0)

    def wait(self, timeout: float = 240) -> Outcome:
        """As :meth:`Job.wait`."""
        try:
            codes = self.zygote.codes(timeout)
        except TimeoutError:
            self.kill()
            raise AssertionError(f"ranks still ran after {timeout} s\n{self._outcome([]).text[-6000:]}") from None
        return self._outcome(codes)

    def kill(self) -> Outcome:
        """SIGKILL for every rank and its workers."""
        for pid in self.pids:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        return self._outcome(self.zygote.codes(30))

    def _outcome(self, codes: list[int]) -> Outcome:
        return Outcome(codes, [log.read_text(errors="replace") if log.exists() else "" for log in self.logs])


def train(
    arguments: list[str], ranks: int, folder: Path, env: dict[str, str] | None = None, timeout: float = 240
) -> Outcome:
    """Run bridge_ds/train.py on `ranks` processes to its end, started by :func:`zygote`."""
    return begin(arguments, ranks, folder, env).wait(timeout)


def begin(arguments: list[str], ranks: int, folder: Path, env: dict[str, str] | None = None) -> ForkedJob:
    """As :func:`train`, but only start it; it must have ended before the next is begun."""
    return zygote().start(arguments, ranks, folder, env)


@functools.cache
def zygote() -> Zygote:
    """The one of this test process."""
    started = Zygote()
    atexit.register(started.close)
    return started


def train_command(arguments: list[str]) -> list[str]:
    """The command of one rank."""
    return [sys.executable, "bridge_ds/train.py", *arguments]


def succeed(outcome: Outcome) -> Outcome:
    """Fail with the ranks' last words unless all ended well."""
    assert set(outcome.codes) == {0}, outcome.text[-6000:]
    return outcome
