"""Who is to blame for a hang, read from heartbeats; and which start of a run has its folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from bridge_ds.engine.heartbeat import Beat, blamed, claim, owner, read_beats, where_is_main, write_beat
from bridge_ds.engine.preempt import StopRequest


def beat(rank: int, step: int = 7, phase: str = "forward", **more: object) -> Beat:
    values = {"host": "a", "pid": 10 + rank, "age": 99.0, "time": 1000.0, "where": "x.py:1 f"}
    values |= {"count": 3, "in_collective": True}
    return Beat(rank=rank, step=step, phase=phase, **(values | more))  # type: ignore[arg-type]


def device(rank: int, count: int, phase: str) -> Beat:
    """At the end of step 7, waiting for a GPU that is at `phase`."""
    own: dict[str, object] = {"device_step": 7, "device_count": count, "device_phase": phase}
    return beat(rank, phase="reduce", count=9, in_collective=False, **own)


@pytest.mark.parametrize(
    ("beats", "words"),
    [
        (
            [beat(0), beat(1, phase="data", count=1, in_collective=False), beat(2)],
            ["rank 1 (a, pid 11) at step 7, phase data"],
        ),
        ([beat(0), beat(1, step=6, phase="hooks", count=9), beat(2)], ["rank 1"]),
        # The second micro-batch's forward comes after the first one's backward.
        ([beat(0, count=6), beat(1, phase="backward", count=4), beat(2, count=6)], ["rank 1"]),
        # All hosts wait for their GPUs at the end of the step, none inside a collective; one GPU is behind.
        (
            [device(0, 4, "backward"), device(1, 4, "backward"), device(2, 3, "forward")],
            ["rank 2 (a, pid 12) at step 7, phase reduce (its GPU: step 7, phase forward)"],
        ),
        ([device(0, 4, "backward"), device(1, 4, "backward"), device(2, 4, "backward")], []),
        # A host that has stopped is to blame, also where the others' GPUs, which wait for its own, are no further.
        (
            [
                device(0, 3, "forward"),
                beat(1, device_step=7, device_count=3, in_collective=False),
                device(2, 3, "forward"),
            ],
            ["rank 1"],
        ),
        ([beat(0), beat(1), beat(2, in_collective=False)], ["rank 2"]),
        ([beat(0), beat(1, time=900.0), beat(2)], ["rank 1 (a, pid 11)", "silent for 100 s"]),
        ([beat(0), beat(2)], ["rank 1 (no heartbeat file)"]),
        ([beat(0), beat(1), beat(2)], []),
        ([beat(0, in_collective=False), beat(1, in_collective=False), beat(2, in_collective=False)], []),
    ],
)
def test_the_one_that_holds_up_the_others_is_named(beats: list[Beat], words: list[str]) -> None:
    found = blamed(beats, 3, now=1000.0, silent_after=40.0)
    assert len(found) == bool(words)
    for word in words:
        assert word in found[0]


def test_a_lone_rank_blames_itself() -> None:
    assert len(blamed([beat(0, in_collective=False)], 1, 1000.0, 40.0)) == 1


def test_files_come_back_and_damage_is_passed_over(tmp_path: Path) -> None:
    for rank in range(3):
        write_beat(tmp_path, beat(rank))
    (tmp_path / "rank-00001.json").write_text("{")
    assert read_beats(tmp_path, 3) == [beat(0), beat(2)]


def test_the_last_claim_counts(tmp_path: Path) -> None:
    assert owner(tmp_path) == ""
    first, second = claim(tmp_path / "h"), claim(tmp_path / "h")
    assert first != second and owner(tmp_path / "h") == second


def test_the_main_threads_line_is_seen_from_another() -> None:
    found: list[tuple[str, bool]] = []
    thread = threading.Thread(target=lambda: found.append(where_is_main()))
    thread.start()
    thread.join()
    assert "threading.py" in found[0][0] and not found[0][1]


def test_signals_set_a_flag_in_their_own_process_only() -> None:
    before = signal.getsignal(signal.SIGUSR2)
    try:
        stop = StopRequest().listen(["USR2"])
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGUSR2)
            os._exit(3 if stop else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        assert not stop
        os.kill(os.getpid(), signal.SIGUSR2)
        assert stop and stop.signal == "SIGUSR2"
    finally:
        signal.signal(signal.SIGUSR2, before)


RANK = """
import sys, time
from pathlib import Path
from bridge_ds.engine.watchdog import Watchdog
from bridge_ds.world import World
Watchdog(Path(sys.argv[1]), World(), 0).start("")
print("started", flush=True)
time.sleep(60)
"""
LAUNCHER = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=sys.stderr).pid, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.parametrize("launched", [True, False])
def test_a_rank_leaves_when_its_launcher_is_killed_and_not_with_a_shell(launched: bool, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name not in ("CROSS_SIZE", "TORCHELASTIC_RUN_ID")}
    log = tmp_path / "log"
    with log.open("w") as err:
        command = [sys.executable, "-c", LAUNCHER, RANK, str(tmp_path)]
        mother = subprocess.Popen(
            command, env=env | ({"CROSS_SIZE": "1"} if launched else {}), stdout=subprocess.PIPE, stderr=err, text=True
        )
    assert mother.stdout
    rank = Path("/proc") / mother.stdout.readline().strip()
    deadline = time.monotonic() + 60
    while "started" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    mother.kill()
    mother.communicate()
    deadline = time.monotonic() + (30 if launched else 3)

    def runs() -> bool:
        return rank.exists() and (rank / "stat").read_text().rpartition(")")[2].split()[0] != "Z"

    while runs() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert runs() is not launched
    assert (f"error: the launcher (pid {mother.pid}) is gone; rank 0 leaves." in log.read_text()) is launched
    if not launched:
        os.kill(int(rank.name), signal.SIGKILL)


STOPPED = """
import sys, time
from pathlib import Path
from bridge_ds.engine.preempt import StopRequest
from bridge_ds.engine.watchdog import Watchdog
from bridge_ds.world import World
stop = StopRequest().listen(["TERM"])
Watchdog(Path(sys.argv[1]), World(), 0).start("")
print("started", flush=True)
while not stop:
    time.sleep(0.05)
print("asked to stop by", stop.signal, flush=True)
"""
RUNNER = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", *sys.argv[2:]]).wait()
"""


@pytest.mark.slow
def test_a_rank_saves_and_stops_when_the_deepspeed_command_is_killed(tmp_path: Path) -> None:
    """Its own launcher stays, and would let the ranks train on in the background."""
    log = tmp_path / "log"
    command = [sys.executable, "-c", RUNNER, "deepspeed", LAUNCHER, STOPPED, str(tmp_path)]
    with log.open("w") as out:
        runner = subprocess.Popen(
            command, env=os.environ | {"CROSS_SIZE": "1"}, stdout=out, stderr=out, start_new_session=True
        )
    deadline = time.monotonic() + 60
    while "started" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        runner.terminate()
        runner.wait()
        while "asked to stop by SIGTERM" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        assert "the command that started rank 0 was killed; the run saves and stops" in log.read_text()
    finally:
        os.killpg(runner.pid, signal.SIGKILL)
