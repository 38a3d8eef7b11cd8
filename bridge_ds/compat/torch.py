"""torch: the workspaces of cuBLAS, and the timeout of process groups that exist already."""

from __future__ import annotations

from datetime import timedelta

import torch

__all__ = ["free_workspaces", "set_timeout"]


def free_workspaces() -> None:
    """Give the workspaces of cuBLAS back to torch's allocator; the next matrix product takes one again.

    torch (2.13 at least) has a cuBLAS handle for each thread that multiplies while others live, and keeps a workspace
    for each pair of handle and stream (32 MiB on Hopper) after the thread has ended: neither is freed by itself
    (aten/src/ATen/cuda/CublasHandlePool.cpp). :func:`bridge_ds.frozen.lockstep.lockstep` has such threads. A workspace
    goes back to the stream that used it, so nothing is waited for.

    tests/frozen/test_lockstep.py says on a GPU when it can go.
    """
    if torch.cuda.is_initialized() and hasattr(torch._C, "_cuda_clearCublasWorkspaces"):  # a build for CPUs has none
        torch._C._cuda_clearCublasWorkspaces()


def set_timeout(seconds: float) -> None:
    """From now on a collective that takes longer than `seconds` fails, in every process group of this rank.

    torch (2.13 at least) has no public function for it; when it has one, tests/test_compat.py fails and this can go.
    """
    from torch.distributed import distributed_c10d as c10d

    for group in list(c10d._world.pg_map):
        # DeepSpeed's own groups too; those without this rank have no backend here.
        if isinstance(group, torch.distributed.ProcessGroup):
            c10d._set_pg_timeout(timedelta(seconds=seconds), group)
