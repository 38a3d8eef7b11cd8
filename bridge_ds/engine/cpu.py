"""Threads and allocator of a process that trains on the CPU."""

from __future__ import annotations

import ctypes
import os

import torch

__all__ = ["cpu_threads", "keep_freed_memory", "settle_on_cpu"]

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
KEPT = 256 << 20
"""Bytes of freed memory that a process keeps at the top of its heap."""
LARGE = 4 << 20
"""Bytes from which an allocation is a mapping of its own, returned when freed: in the heap, what loading and gathering
a large model leaves would fragment the space between its shards (glibc by itself goes up to 32 MiB)."""


def settle_on_cpu(local_ranks: int, workers: int) -> None:
    """Threads by :func:`cpu_threads`, unless OMP_NUM_THREADS is set, and :func:`keep_freed_memory`."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpu_threads(len(os.sched_getaffinity(0)), local_ranks, workers))
    keep_freed_memory()


def cpu_threads(cores: int, local_ranks: int, workers: int) -> int:
    """Threads of one rank that trains on the CPU: its share of the cores, less one where data workers need it.

    Waiting OpenMP threads spin; on a core that a worker shares they make every operator wait for it (on 2 cores the
    testbed's step took 1.5 times as long with 2 threads as with 1).
    """
    return max(1, cores // local_ranks - (workers > 0))


def keep_freed_memory() -> bool:
    """Let glibc keep the memory that a step frees for the next step; returns whether it does.

    By default it returns a tensor of some 100 KB to the system when it is freed, and the next step faults its pages in
    again: over 1,000 page faults a step in the testbed's fusion alone. The user's variables (MALLOC_*,
    GLIBC_TUNABLES) take precedence; other allocators and C libraries are left alone (mallopt(3)).
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGE) and mallopt(M_TRIM_THRESHOLD, KEPT))
