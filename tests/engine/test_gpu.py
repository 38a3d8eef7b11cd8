"""Which GPU a rank takes, what is set before it starts, and how far it has come: all that needs none to be tested."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from bridge_ds.engine.distributed import name_interface
from bridge_ds.engine.gpu import (
    DeviceEvent,
    DeviceProgress,
    device_event,
    gpu_of,
    grow_segments,
    refuse_shared,
    settle_numbers,
)
from bridge_ds.engine.heartbeat import Beat, read_beats
from bridge_ds.engine.watchdog import Watchdog
from bridge_ds.errors import LaunchError
from bridge_ds.world import World


@pytest.mark.parametrize(
    ("local_rank", "local_size", "visible", "index"),
    [(0, 1, 1, 0), (3, 4, 4, 3), (3, 4, 8, 3), (3, 4, 1, 0), (0, 1, 8, 0), (7, 8, 1, 0)],
)
def test_a_rank_takes_its_own_gpu(local_rank: int, local_size: int, visible: int, index: int) -> None:
    world = World(rank=8 + local_rank, size=16, local_rank=local_rank, local_size=local_size)
    assert gpu_of(world, visible) == index


def test_too_few_gpus_are_one_sentence() -> None:
    with pytest.raises(LaunchError, match="rank 5 sees 2 GPUs for the 4 ranks of its node; expected one for each"):
        gpu_of(World(rank=5, size=8, local_rank=1, local_size=4), 2)


def test_ranks_on_one_gpu_are_one_sentence() -> None:
    refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-1"), ("b", "GPU-2")])
    with pytest.raises(LaunchError, match=r"^ranks 1, 3 have the same GPU of a; expected one for each rank;"):
        refuse_shared([("a", "GPU-1"), ("a", "GPU-2"), ("b", "GPU-2"), ("a", "GPU-2")])


def test_the_allocator_is_the_users_to_set() -> None:
    ours: dict[str, str] = {}
    grow_segments(ours)
    assert ours == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        theirs = {name: "max_split_size_mb:512"}
        grow_segments(theirs)
        assert theirs == {name: "max_split_size_mb:512"}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ({}, None),
        ({"NCCL_SOCKET_IFNAME": "ib"}, "ib0"),
        ({"NCCL_SOCKET_IFNAME": "=ib1"}, "ib1"),
        ({"NCCL_SOCKET_IFNAME": "=ib"}, None),
        ({"NCCL_SOCKET_IFNAME": "hsn,eth"}, "eth0"),
        ({"NCCL_SOCKET_IFNAME": "^docker"}, None),
        ({"NCCL_SOCKET_IFNAME": "ib", "GLOO_SOCKET_IFNAME": "eth0"}, "eth0"),
    ],
)
def test_ranks_talk_over_the_network_that_nccl_was_given(told: dict[str, str], found: str | None) -> None:
    name_interface(told, ["lo", "eth0", "ib0", "ib1"])
    assert told.get("GLOO_SOCKET_IFNAME") == found


def test_what_is_computed_can_be_made_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    precision = torch.get_float32_matmul_precision()
    try:
        settle_numbers(deterministic=False, tf32=True)
        assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        assert torch.get_float32_matmul_precision() == ("high" if torch.cuda.is_available() else precision)
        settle_numbers(deterministic=True, tf32=False)
        assert (
            torch.are_deterministic_algorithms_enabled() and not torch.is_deterministic_algorithms_warn_only_enabled()
        )
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = True
        torch.set_float32_matmul_precision(precision)
        os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@dataclass
class Mark:
    """An event of a device that is told when it has come to it."""

    done: bool = False

    def query(self) -> bool:
        return self.done


def test_a_device_is_where_its_last_event_is_done() -> None:
    marks: list[Mark] = []

    def event() -> DeviceEvent:
        marks.append(Mark())
        return marks[-1]

    device = DeviceProgress(event)
    assert device.reached() is None
    places = [(1, count, phase) for count, phase in enumerate(("data", "forward", "backward"), start=1)]
    for place in places:
        device.note(place)
    assert device.reached() is None
    marks[0].done = marks[1].done = True
    assert device.reached() == places[1]
    marks[2].done = True
    assert device.reached() == device.reached() == places[2]


class Broken:
    """An event after a fault of the device."""

    def query(self) -> bool:
        raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


def test_after_a_fault_a_device_is_where_it_was_last_seen(tmp_path: Path) -> None:
    events: list[DeviceEvent] = [Mark(True), Broken(), Mark(True)]
    device = DeviceProgress(iter(events).__next__)
    watchdog = Watchdog(tmp_path, World(), limit=1.0, device=device)
    for phase in ("data", "forward", "backward"):
        watchdog.mark(phase, 1 if phase == "data" else None)
    assert device.reached() == device.reached() == (1, 1, "data")
    watchdog.start("")
    first = beat_of(tmp_path)
    deadline = time.monotonic() + 30
    while beat_of(tmp_path).time == first.time:  # the thread goes on
        assert time.monotonic() < deadline
        time.sleep(0.02)
    watchdog.stop()
    assert (first.phase, first.device_phase) == ("backward", "data")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_watchdog_stands_on_its_ranks_gpu(tmp_path: Path) -> None:
    torch.cuda.set_device(1)
    seen: list[int] = []

    class Seen(DeviceProgress):
        def reached(self) -> None:
            seen.append(torch.cuda.current_device())

    watchdog = Watchdog(tmp_path, World(rank=1, size=2, local_rank=1, local_size=2), limit=1.0, device=Seen())
    watchdog.start("")
    beat_of(tmp_path, rank=1)
    watchdog.stop()
    assert set(seen) == {1}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_there_is_no_trail() -> None:
    assert device_event() is None
    device = DeviceProgress()
    device.note((1, 1, "data"))
    assert device.reached() is None


def test_a_heartbeat_says_where_host_and_device_are(tmp_path: Path) -> None:
    marks: list[Mark] = []

    def event() -> DeviceEvent:
        marks.append(Mark())
        return marks[-1]

    watchdog = Watchdog(tmp_path, World(), limit=1.0, device=DeviceProgress(event))
    for phase in ("data", "agree", "forward"):
        watchdog.mark(phase, 4 if phase == "data" else None)
    marks[0].done = marks[1].done = True
    watchdog.start("")
    beat = beat_of(tmp_path)
    watchdog.stop()
    assert (beat.step, beat.count, beat.phase) == (4, 3, "forward")
    assert (beat.device_step, beat.device_count, beat.device_phase) == (4, 2, "agree")
    assert "phase forward (its GPU: step 4, phase agree)" in beat.describe()


def beat_of(folder: Path, rank: int = 0) -> Beat:
    """The rank's heartbeat, once there is one."""
    deadline = time.monotonic() + 30
    while not (found := [beat for beat in read_beats(folder, rank + 1) if beat.rank == rank]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found[0]
