"""Rank and number of processes, read once from the launcher's environment variables and then passed as a value."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from bridge_ds.errors import LaunchError

__all__ = ["World"]

# field -> names in order of precedence: torchrun / deepspeed first, so that values already set win over Slurm's.
_NAMES = {
    "rank": ("RANK", "SLURM_PROCID"),
    "size": ("WORLD_SIZE", "SLURM_NTASKS"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID"),
    "local_size": ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_NTASKS_PER_NODE"),
    "node": ("NODE_RANK", "CROSS_RANK", "SLURM_NODEID"),
}


@dataclass(frozen=True)
class World:
    """Rank of this process in the job."""

    rank: int = 0
    """This process, 0 <= rank < size."""
    size: int = 1
    """Processes in the job."""
    local_rank: int = 0
    """This process on its node; picks the device."""
    local_size: int = 1
    """Processes on this node."""
    node: int = 0
    """This node, counted from 0."""

    @property
    def is_main(self) -> bool:
        """True on the one process that prints, tracks and writes."""
        return self.rank == 0

    @classmethod
    def detect(cls, environ: Mapping[str, str] | None = None) -> World:
        """Read the variables of torchrun, deepspeed or Slurm (in this order); without any, a single process.

        Raises:
            LaunchError: a variable is not an integer, or the rank is outside the world.
        """
        env = os.environ if environ is None else environ
        # An interactive Slurm shell (salloc) has SLURM_NTASKS but no step: only srun starts tasks.
        in_step = "SLURM_STEP_ID" in env and "SLURM_PROCID" in env
        found: dict[str, int] = {}
        for field, names in _NAMES.items():
            for name in names:
                if name.startswith("SLURM_") and not in_step:
                    continue
                if name in env:
                    found[field] = _whole(name, env[name])
                    break
        found.setdefault("local_size", found.get("size", 1) if found.get("node", 0) == 0 else 1)
        world = cls(**found)
        if not 0 <= world.rank < world.size:
            raise LaunchError(
                f"rank {world.rank} lies outside a world of {world.size}: "
                "set RANK and WORLD_SIZE together, or start with deepspeed, torchrun or srun."
            )
        return world

    def export(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Write the variables that torch.distributed and DeepSpeed read; values already set stay."""
        env = os.environ if environ is None else environ
        values = {
            "RANK": self.rank,
            "WORLD_SIZE": self.size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_size,
            "LOCAL_SIZE": self.local_size,
        }
        for name, value in values.items():
            env.setdefault(name, str(value))
        env.setdefault("MASTER_ADDR", "127.0.0.1")


def _whole(name: str, text: str) -> int:
    # SLURM_NTASKS_PER_NODE may read "2(x3)"; the part before the bracket is this node's count on a uniform job.
    try:
        return int(text.split("(")[0].split(",")[0])
    except ValueError:
        raise LaunchError(f"{name} is {text!r}; expected a whole number; unset it or start with a launcher.") from None
