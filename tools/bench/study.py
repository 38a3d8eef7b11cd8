"""What the studies share: runs of the main job as processes, what is done already, and the report."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import os
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from bridge_ds.errors import TrainingError
from bridge_ds.report.__main__ import main as report
from tools.bench.bench_rows import provenance

__all__ = [
    "ROOT", "Arm", "Job", "OutOfTime", "Outcome", "Processes", "Runs", "archive", "free_port", "record_of", "run_jobs",
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
RECORD = "study.json"
"""In a run folder: how long its process took, and where."""
_LEAVE = 10.0
"""Seconds for a run to save and leave when the time is over."""
_ports = itertools.count(20_000 + os.getpid() % 8_000)
"""Below those that systems give to connections (32,768 up): each process gets one of its own to try."""


class OutOfTime(Exception):
    """The study's time was over before a process had ended."""


@dataclass(frozen=True)
class Arm:
    """One way to train, with all seeds."""

    name: str
    """Of the system in the report."""
    folder: str
    """Of its runs, before the seed."""
    settings: tuple[str, ...] = ()
    """Those that make it: KEY=VALUE. They win over those of all runs."""
    llm: str = ""
    """Which LLM; the LLM alone answers the same in all arms with one LLM."""


@dataclass(frozen=True)
class Job:
    """Something to do."""

    name: str
    action: Callable[[], None]
    """Raises TrainingError or OutOfTime."""
    needs: tuple[str, ...] = ()
    """Names of the jobs that must have succeeded before it."""


@dataclass(frozen=True)
class Outcome:
    """Of :func:`run_jobs`."""

    failed: list[str]
    """What each job that failed said."""
    left: list[str]
    """Names of the jobs that were not done, for want of time or of what they need."""


def run_jobs(jobs: Sequence[Job], at_once: int, until: float = math.inf) -> Outcome:
    """Do the jobs in their order, each as soon as what it needs is done. One that fails does not stop the others.

    Args:
        at_once: most jobs at the same time.
        until: none begins after this, by time.monotonic.
    """
    waiting, done = list(jobs), set[str]()
    running: dict[Future[None], Job] = {}
    failed: list[str] = []
    late: list[str] = []
    with ThreadPoolExecutor(at_once) as pool, tqdm(total=len(jobs), unit="run", dynamic_ncols=True) as bar:
        while True:
            ready = [job for job in waiting if done.issuperset(job.needs)] if time.monotonic() < until else []
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running[pool.submit(job.action)] = job
            if not running:
                return Outcome(failed, late + [job.name for job in waiting])
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job = running.pop(future)
                try:
                    future.result()
                    done.add(job.name)
                    bar.update()
                except TrainingError as error:
                    failed.append(str(error))
                except OutOfTime:
                    late.append(job.name)


@dataclass(frozen=True)
class Processes:
    """How the processes of a study run."""

    threads: int = 1
    """Of each."""
    environment: tuple[tuple[str, str], ...] = ()
    """Further variables."""
    until: float = math.inf
    """By time.monotonic: those that still run are then ended."""

    def run(self, command: Sequence[str], log: Path) -> float:
        """Run Python with these arguments to its end; the seconds that it took.

        Args:
            log: where its output is added.

        Raises:
            OutOfTime: it was ended because the time was over.
            TrainingError: it failed.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        # DeepSpeed has functions to be compiled by dynamo, whose imports take seconds; nothing here calls them.
        quick = {"TORCHDYNAMO_DISABLE": "1"}
        own = {"OMP_NUM_THREADS": str(self.threads), "MASTER_PORT": str(free_port())}
        environment = quick | os.environ | own | dict(self.environment)
        began = time.monotonic()
        with log.open("a", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            )
            try:
                status = process.wait(None if self.until == math.inf else max(0.0, self.until - began))
            except subprocess.TimeoutExpired:
                _end(process)
                raise OutOfTime from None
        if status:
            said = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
            raise TrainingError(
                f"{command[0]} ended with status {status} ({''.join(said)}; all it said is in {log}); expected 0; "
                "start again, it goes on."
            )
        return time.monotonic() - began


def free_port() -> int:
    for port in _ports:
        with socket.socket() as found:
            try:
                found.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_LEAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(frozen=True)
class Runs:
    """Arms x seeds below one folder: RUN = OUTPUT/ARM-SEED, what it said is in RUN.log."""

    output: Path
    """Absolute."""
    arms: Sequence[Arm]
    seeds: Sequence[int]
    processes: Processes = Processes()
    arguments: tuple[str, ...] = ()
    """Of train.py, before the settings."""
    settings: tuple[str, ...] = ()
    """Of every run."""

    def __iter__(self) -> Any:
        """(arm, seed), seed by seed: whatever there is when it is interrupted has every arm."""
        return ((arm, seed) for seed in self.seeds for arm in self.arms)

    def folder(self, arm: Arm, seed: int) -> Path:
        """The run folder."""
        return self.output / f"{arm.folder}-{seed}"

    def is_scored(self, arm: Arm, seed: int) -> bool:
        """Whether the predictions of a run are all there."""
        folder = self.folder(arm, seed)
        systems = [folder / "evaluation" / system / "index.json" for system in ("bridge", "llm")]
        return all(path.is_file() for path in (folder / "evaluation.json", *systems))

    def prepare(self, arm: Arm, seed: int) -> None:
        """Train and score a run, unless that is done. What the LLM alone answers is taken from any run that has it.

        Raises:
            OutOfTime: as :meth:`Processes.run`; likewise TrainingError.
        """
        folder = self.folder(arm, seed)
        same = [(other, n) for other, n in self if other.llm == arm.llm and self.folder(other, n) != folder]
        scored = next((self.folder(other, n) for other, n in same if self.is_scored(other, n)), None)
        settings = [*self.settings, *arm.settings, *([f"evaluation.llm_from={scored}"] if scored else [])]
        if not (folder / "evaluation.json").is_file():
            self.train(folder, [f"run.seed={seed}", *settings])
        if not self.is_scored(arm, seed):
            self.processes.run(["-m", "bridge_ds.evaluation", "--run", str(folder)], folder.with_suffix(".log"))

    def job(self, arm: Arm, seed: int, needs: tuple[str, ...] = ()) -> Job:
        """:meth:`prepare` of a run, under the name of its folder."""
        return Job(self.folder(arm, seed).name, partial(self.prepare, arm, seed), needs)

    def train(self, folder: Path, settings: Sequence[str], *arguments: str) -> None:
        """One run of the main job, in a process of its own; how long it took and where is written to its folder.

        Raises:
            OutOfTime: as :meth:`Processes.run`; likewise TrainingError.
        """
        settings = [f"run.output={folder}", "track.uri=none", *settings]
        pairs = [part for text in settings for part in ("--set", text)]
        seconds = self.processes.run(
            ["bridge_ds/train.py", *arguments, *self.arguments, *pairs], folder.with_suffix(".log")
        )
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        record = {"seconds": round(seconds, 1)} | provenance(device, self.processes.threads)
        (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")

    def whole_seeds(self) -> list[int]:
        """Those with which every arm was scored."""
        return [seed for seed in self.seeds if all(self.is_scored(arm, seed) for arm in self.arms)]

    def report(self, name: str = "report", *arguments: str) -> int:
        """Compare the runs of the whole seeds, in OUTPUT/NAME; the report command's exit status. `arguments` are more
        of that command's."""
        runs = [f"{arm.name}={self.folder(arm, seed)}" for seed in self.whole_seeds() for arm in self.arms]
        return report([*runs, "--output", str(self.output / name), *arguments])


def archive(runs: Sequence[Runs], path: Path) -> None:
    """Write what reports are made from as one .tar.xz: settings, metrics and predictions, no weights.

    A file that equals an earlier one (what the LLM alone answers) is a hard link to it. Files of one name are
    neighbors, so that the texts that all runs share fall into xz's window.
    """
    kept = (
        "config.yaml",
        "metrics.jsonl",
        "evaluation.json",
        RECORD,
        "evaluation/*/index.json",
        "evaluation/*/*/*.jsonl",
    )
    folders = [of.folder(arm, seed) for of in runs for arm, seed in of if of.is_scored(arm, seed)]
    files = [(file.relative_to(folder), file) for folder in folders for name in kept for file in folder.glob(name)]
    seen: dict[str, str] = {}
    with tarfile.open(path, "w:xz", preset=1) as tar:
        for _, file in sorted(files):
            name = str(file.relative_to(runs[0].output))
            member = tar.gettarinfo(file, name)
            first = seen.setdefault(hashlib.sha256(file.read_bytes()).hexdigest(), name)
            if first != name:
                member.type, member.linkname, member.size = tarfile.LNKTYPE, first, 0
                tar.addfile(member)
            else:
                with file.open("rb") as content:
                    tar.addfile(member, content)


def record_of(folder: Path) -> dict[str, Any]:
    """How long a run took and where; empty values where that was not recorded."""
    path = folder / RECORD
    found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {name: found.get(name, "") for name in ("seconds", "date", "machine", "torch", "commit")}
