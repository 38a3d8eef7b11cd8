"""This rank's GPU: which one it is, what is set before CUDA starts, and how far it is."""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, MutableMapping, Sequence
from contextlib import suppress
from typing import Protocol

import torch

from bridge_ds.errors import LaunchError
from bridge_ds.world import World

__all__ = [
    "DeviceEvent",
    "DeviceProgress",
    "Point",
    "device_event",
    "gpu_of",
    "grow_segments",
    "refuse_shared",
    "settle_numbers",
]

Point = tuple[int, int, str]
"""Step, number of its phases that have begun, and the last of these."""


def gpu_of(world: World, visible: int) -> int:
    """Index of this rank's GPU among those that are visible to it.

    A launcher makes all GPUs of the node visible to each rank, or its own alone (`srun --gpus-per-task=1`).

    Args:
        visible: GPUs that this process sees, at least 1.

    Raises:
        LaunchError: it sees some of the node's, but not as many as there are ranks.
    """
    if visible == 1:
        return 0
    if visible < world.local_size:
        raise LaunchError(
            f"rank {world.rank} sees {visible} GPUs for the {world.local_size} ranks of its node; expected one for "
            "each of them, or only its own; start fewer ranks a node, or ask for more GPUs."
        )
    return world.local_rank


def refuse_shared(gpus: Sequence[tuple[str, str]]) -> None:
    """Check that each rank has its own GPU: NCCL fails with two ranks on one, and its message does not say so.

    Args:
        gpus: host name and UUID of the GPU of each rank, in their order.

    Raises:
        LaunchError: two ranks have the same one.
    """
    gpu, count = Counter(gpus).most_common(1)[0]
    if count > 1:
        ranks = [str(rank) for rank, own in enumerate(gpus) if own == gpu]
        raise LaunchError(
            f"ranks {', '.join(ranks)} have the same GPU of {gpu[0]}; expected one for each rank; start "
            "fewer ranks a node, or show them more GPUs (CUDA_VISIBLE_DEVICES, --gpus-per-task)."
        )


def grow_segments(environ: MutableMapping[str, str] | None = None) -> None:
    """Let CUDA's allocator grow its segments, unless the user has set it. Before CUDA starts.

    Lengths vary from step to step, which fragments segments of fixed sizes. torch 2.9 and later
    read PYTORCH_ALLOC_CONF when the allocator starts (c10/cuda/CUDAAllocatorConfig.h), the older name first.
    """
    env = os.environ if environ is None else environ
    if not any(f"PYTORCH_{kind}ALLOC_CONF" in env for kind in ("", "CUDA_", "HIP_")):
        env["PYTORCH_ALLOC_CONF"] = "expandable_segments:True"


def settle_numbers(deterministic: bool, tf32: bool) -> None:
    """Set determinism and TF32. Before CUDA starts.

    Args:
        deterministic: only algorithms that give the same each time. So asked, torch runs flash and memory-efficient
            attention backward without atomic sums, leaves cuDNN's attention alone, and fails at an operator that has
            no such algorithm (aten/src/ATen/native/transformers/cuda/attention_backward.cu, sdp_utils.cpp).
        tf32: multiply float32 matrices in TF32 on CUDA.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Nothing here reads uninitialized memory; filling it would cost a pass over every new tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if tf32 and torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")


class DeviceEvent(Protocol):
    """A mark behind the work that was launched before it, such as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether the device has reached it; never waits."""


def device_event() -> DeviceEvent | None:
    """An event behind everything launched on this rank's GPU; None if CUDA is not initialized."""
    if not torch.cuda.is_initialized():
        return None
    event = torch.cuda.Event()
    event.record()
    return event


class DeviceProgress:
    """How far a device is, which runs asynchronously behind the host.

    `note` is called by the main thread, `reached` by another.
    """

    def __init__(self, event: Callable[[], DeviceEvent | None] = device_event) -> None:
        """Args:
        event: makes one behind the work launched so far; None = there is no device.
        """
        self._event = event
        self._ahead: deque[tuple[Point, DeviceEvent]] = deque(maxlen=1024)
        self._reached: Point | None = None

    def note(self, point: Point) -> None:
        """The host has reached `point`."""
        event = self._event()
        if event is not None:
            self._ahead.append((point, event))

    def reached(self) -> Point | None:
        """The last point that the device has reached; None before the first, and without a device.

        After a device error, which the events then raise, it is the last that was known before.
        """
        with suppress(RuntimeError):
            while self._ahead and self._ahead[0][1].query():
                self._reached = self._ahead.popleft()[0]
        return self._reached
