"""Process group and device; nothing else initializes torch.distributed."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, MutableMapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch

from bridge_ds.compat.deepspeed import import_deepspeed
from bridge_ds.engine.cpu import settle_on_cpu
from bridge_ds.engine.gpu import gpu_of, grow_segments, refuse_shared
from bridge_ds.errors import BridgeError
from bridge_ds.world import World

__all__ = [
    "INIT_TIMEOUT",
    "agree",
    "any_rank",
    "barrier",
    "device_of",
    "everyones",
    "init_distributed",
    "name_interface",
    "next_port",
    "on_all",
    "on_main",
    "peak_memory_gib",
    "shutdown",
    "sum_counts",
    "whole_shape",
]

T = TypeVar("T")
INIT_TIMEOUT = timedelta(minutes=60)
"""Other ranks wait in broadcasts while rank 0 reads a large model from disk, longer than DeepSpeed's 10 minutes."""
_control: torch.distributed.ProcessGroup | None = None
"""The gloo group for everything but the model's tensors; None = the default group, which on CPU is gloo's. Over NCCL
each message would be a kernel behind everything in the stream, and the host would wait for it."""


def init_distributed(world: World, workers: int = 0) -> None:
    """Join the job's process group (NCCL on GPUs, gloo on CPU); a single process makes a group of one.

    NCCL connects when it is first used, which nothing in this module does: data workers must be forked before (NCCL
    and InfiniBand are not fork-safe, see torch's page on DistributedDataParallel). DeepSpeed would initialize the group
    bound to a device, which connects at once; it uses one that exists already.

    Args:
        world: this process among the others.
        workers: data workers of this rank, which need a core too.

    Raises:
        LaunchError: see :func:`bridge_ds.engine.gpu.gpu_of` and :func:`bridge_ds.engine.gpu.refuse_shared`.
    """
    world.export()
    if world.size == 1:
        os.environ.setdefault("MASTER_PORT", str(_free_port()))
    backend = "gloo"
    if torch.cuda.is_available():
        grow_segments()
        device = device_of(world)
        os.environ["LOCAL_RANK"] = str(device.index)  # by which DeepSpeed picks the device
        torch.cuda.set_device(device)
        backend = "nccl"
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group(backend, timeout=INIT_TIMEOUT)
        global _control
        name_interface(os.environ, [name for _, name in socket.if_nameindex()])
        _control = torch.distributed.new_group(timeout=INIT_TIMEOUT, backend="gloo")
        own = socket.gethostname(), str(torch.cuda.get_device_properties(device).uuid)
        refuse_shared(everyones(own, world))
    else:
        settle_on_cpu(world.local_size, workers)
    import_deepspeed().init_distributed(dist_backend=backend, timeout=INIT_TIMEOUT, verbose=False)


def name_interface(environ: MutableMapping[str, str], interfaces: Sequence[str]) -> None:
    """Let gloo use the network interface that NCCL is set to use, unless gloo's own variable is set.

    By default it takes the one that the host name resolves to, which on some systems is the loopback.

    Args:
        environ: NCCL_SOCKET_IFNAME gives beginnings of names, or after `=` whole ones; after `^` what not to use.
        interfaces: of this host.
    """
    wanted = environ.get("NCCL_SOCKET_IFNAME", "")
    if not wanted or wanted.startswith("^") or "GLOO_SOCKET_IFNAME" in environ:
        return
    names = wanted.removeprefix("=").split(",")
    exact = wanted.startswith("=")
    fits = [each for name in names for each in interfaces if each == name or (not exact and each.startswith(name))]
    if fits:
        environ["GLOO_SOCKET_IFNAME"] = fits[0]


def device_of(world: World) -> torch.device:
    """This rank's device."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", gpu_of(world, torch.cuda.device_count()))


def agree(value: object, world: World) -> object:
    """Rank 0's value, on every rank (a collective)."""
    if world.size == 1:
        return value
    box = [value]
    torch.distributed.broadcast_object_list(box, src=0, group=_control)
    return box[0]


def everyones(value: T, world: World) -> list[T]:
    """The value of each rank, in their order (a collective)."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(values, value, group=_control)
    return values


def sum_counts(counts: Sequence[int]) -> list[int]:
    """Sums over all ranks (a collective)."""
    sums = torch.tensor(counts, dtype=torch.int64)
    torch.distributed.all_reduce(sums, group=_control)
    return list(map(int, sums.tolist()))


def on_main(action: Callable[[], T], world: World) -> T:
    """Run `action` on rank 0 and return its result on every rank (a collective).

    Raises:
        BridgeError: rank 0's, on every rank, so that none waits forever.
    """
    outcome: Any = None
    if world.is_main:
        try:
            outcome = action()
        except BridgeError as error:
            outcome = error
    outcome = agree(outcome, world)
    if isinstance(outcome, BridgeError):
        raise outcome
    return outcome  # type: ignore[no-any-return]


def on_all(action: Callable[[], T], world: World) -> T:
    """Run `action` on every rank (a collective); returns the result of this one.

    Raises:
        BridgeError: of this rank or of another, on every rank, so that none waits forever.
    """
    outcome: Any = None
    error: BridgeError | None = None
    try:
        outcome = action()
    except BridgeError as raised:
        error = raised
    errors = everyones(error, world)
    if first := error or next(filter(None, errors), None):
        raise first
    return outcome  # type: ignore[no-any-return]


def any_rank(flag: bool) -> bool:
    """Whether `flag` is true on some rank (a collective)."""
    return sum_counts([int(flag)])[0] > 0


def barrier(world: World) -> None:
    """Wait for all ranks (a collective)."""
    if world.size > 1:
        torch.distributed.barrier(group=_control)


def shutdown() -> None:
    """Destroy the process group; only after success (after an error a rank may hang in it: pytorch#76287)."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def next_port(world: World) -> int:
    """A port that is free on rank 0's host, on every rank (a collective): for the next group of the same processes."""
    return int(agree(_free_port(), world))  # type: ignore[call-overload, no-any-return]


def whole_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    """Full shape of a tensor that ZeRO-3 may have sharded; its own shape is then empty."""
    return tuple(getattr(tensor, "ds_shape", tensor.shape))


def peak_memory_gib() -> float:
    """Peak device memory of this process so far, in GiB (on CPU: its peak resident memory)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    try:
        # Not getrusage: what it gives is at least what the parent had when it started this process (exec(2) keeps it).
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**20
    except (OSError, StopIteration):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
