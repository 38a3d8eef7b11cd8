"""Threads, allocator and number format of a process that trains on the CPU."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["LARGEST", "cpu_threads", "keep_freed_memory", "set_threads", "settle_on_cpu", "slow_dtype"]

LARGE_MODEL = 20_000_000
"""Weights that each token is multiplied by, from which a step takes so much longer than reading its samples that data
workers need no core of their own. The testbed's models have 3 million, multilingual-e5-small and SmolLM2-135M 128."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's malloc.h."""
LARGE = 4 << 20
"""Bytes from which an allocation is a mapping of its own, returned when freed, while models are loaded: in the heap,
what loading and gathering a large model leaves would fragment the space between its shards."""
LARGEST = 256 << 20
"""The same once they are loaded. A feed-forward part of 2048 has results of 6 MiB for 768 tokens: over 3,000 page
faults a step where they are mappings of their own. Logits of 80 positions over 128,000 words have 39 MiB: 75,000 faults
a step, which takes 4 % longer."""
MOST = 32 << 20
"""Bytes that older versions of glibc take at most for it (mallopt(3))."""
KEPT = 256 << 20
"""Bytes of freed memory that a process keeps at the top of its heap, at least: four of the largest allocations."""


def settle_on_cpu(local_ranks: int, workers: int) -> None:
    """:func:`set_threads` for loading the models, and :func:`keep_freed_memory`."""
    set_threads(local_ranks, workers)
    keep_freed_memory()


def set_threads(local_ranks: int, workers: int, weights: int = 0) -> None:
    """Threads by :func:`cpu_threads`, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(cpu_threads(len(os.sched_getaffinity(0)), local_ranks, workers, weights))


def cpu_threads(cores: int, local_ranks: int, workers: int, weights: int = 0) -> int:
    """Threads of one rank that trains on the CPU: its share of the cores, less one where data workers need it.

    Waiting OpenMP threads spin; on a core that a worker shares they make every operator wait for it (on 2 cores the
    testbed's step took 1.5 times as long with 2 threads as with 1). Workers of large models are idle nearly always.
    Sums, and with them the last bits of a loss, depend on the number of threads: it must follow from config and
    machine, never from what was measured, so that a resumed run computes what it did before.

    Args:
        weights: of the layers of both models (:func:`bridge_ds.engine.layers.layer_weights`).
    """
    return max(1, cores // local_ranks - (workers > 0 and weights < LARGE_MODEL))


def slow_dtype(dtype: str, capabilities: Mapping[str, Any] | None = None) -> str:
    """What to do about a `model.dtype` that this CPU has no instructions for, for the user; empty = nothing.

    Args:
        capabilities: as of torch.cpu.get_capabilities(), which torch 2.11 does not have.
    """
    if capabilities is None:
        capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    known = [has for name, has in capabilities.items() if name.endswith("bf16")]
    if dtype != "bfloat16" or not known or any(known):
        return ""
    return (
        "this CPU has no instructions for bfloat16 (AVX512-BF16, AMX-BF16), so that steps take longer than in float32; "
        "set model.dtype=float32."
    )


def keep_freed_memory(large: int = LARGE) -> bool:
    """Let glibc keep the memory that a step frees for the next step; returns whether it does.

    By default it returns a tensor of some 100 KB to the system when it is freed, and the next step faults its pages in
    again: over 1,000 page faults a step in the testbed's fusion alone. The user's variables (MALLOC_*,
    GLIBC_TUNABLES) take precedence; other allocators and C libraries are left alone (mallopt(3)).

    Args:
        large: bytes from which an allocation is not kept; `LARGEST` once the models are loaded.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    taken = mallopt(M_MMAP_THRESHOLD, large) or mallopt(M_MMAP_THRESHOLD, min(large, MOST))
    return bool(taken and mallopt(M_TRIM_THRESHOLD, max(KEPT, 4 * large)))
