"""Rank and number of processes, read once from the launcher's environment variables and then passed as a value."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from itertools import islice

from bridge_ds.errors import LaunchError
from bridge_ds.hosts import host_names

__all__ = ["World"]

# field -> names in order of precedence: torchrun / deepspeed first, so that values already set win over Slurm's. Of
# Slurm's, those of the step: in an interactive step (salloc) SLURM_NTASKS is the job's.
_NAMES = {
    "rank": ("RANK", "SLURM_PROCID"),
    "size": ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
    "local_rank": ("LOCAL_RANK", "SLURM_LOCALID"),
    "node": ("NODE_RANK", "CROSS_RANK", "SLURM_NODEID"),
}
_LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE",
               "SLURM_NTASKS_PER_NODE")  # fmt: skip
_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
"""Set by mpirun, which sets neither ranks nor an address that torch.distributed reads."""


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
        found: dict[str, int] = {}
        for field, names in _NAMES.items():
            if name := _first_set(names, env):
                found[field] = _whole(name, env[name])
        if name := _first_set(_LOCAL_SIZE, env):
            found["local_size"] = _of_node(name, env[name], found.get("node", 0))
        found.setdefault("local_size", found.get("size", 1) if found.get("node", 0) == 0 else 1)
        world = cls(**found)
        if not 0 <= world.rank < world.size:
            raise LaunchError(
                f"rank {world.rank} lies outside a world of {world.size}: "
                "set RANK and WORLD_SIZE together, or start with deepspeed, torchrun or srun."
            )
        mpi = next((name for name in _MPI if env.get(name, "1") != "1"), "")
        if mpi and not found.keys() & {"rank", "size"}:
            raise LaunchError(
                f"{mpi} is {env[mpi]!r}, but neither RANK nor a step of Slurm is set; expected deepspeed, torchrun or "
                "srun to start the ranks, not mpirun."
            )
        return world

    def export(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Write the variables that torch.distributed and DeepSpeed read; values already set stay.

        In a step of Slurm the ranks meet on the step's first node, where rank 0 is, at a port made of the numbers of
        job and step, below the ephemeral ports.

        Raises:
            LaunchError: the address of rank 0 is not known.
        """
        env = os.environ if environ is None else environ
        if self.size > 1:
            in_step = _in_step(env)
            if "MASTER_ADDR" not in env:
                env["MASTER_ADDR"] = _first_host(env, self) if in_step else self._own_address()
            job, step = env.get("SLURM_JOB_ID", ""), env.get("SLURM_STEP_ID", "")
            port = 29500  # torchrun's default
            if in_step and job.isdecimal() and step.isdecimal():
                port = 10000 + int(job) % 2000 * 10 + int(step) % 10  # as in slurm/env.sh
            env.setdefault("MASTER_PORT", str(port))
            _check_port(env["MASTER_PORT"])
        values = {
            "RANK": self.rank,
            "WORLD_SIZE": self.size,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.local_size,
            "LOCAL_SIZE": self.local_size,
        }
        for name, value in values.items():
            env.setdefault(name, str(value))
        env.setdefault("MASTER_ADDR", _LOOPBACK)

    def _own_address(self) -> str:
        if self.node > 0 or self.local_size < self.size:
            raise LaunchError(
                f"MASTER_ADDR is not set and the {self.size} ranks are on several nodes; expected the host name or "
                "address of rank 0; set MASTER_ADDR and MASTER_PORT, or start with deepspeed, torchrun or srun."
            )
        return _LOOPBACK


_LOOPBACK = "127.0.0.1"


def _in_step(env: Mapping[str, str]) -> bool:
    # An interactive Slurm shell (salloc) has SLURM_NTASKS but no step: only srun starts tasks.
    return "SLURM_STEP_ID" in env and "SLURM_PROCID" in env


def _first_set(names: tuple[str, ...], env: Mapping[str, str]) -> str:
    in_step = _in_step(env)
    return next((name for name in names if name in env and (in_step or not name.startswith("SLURM_"))), "")


def _first_host(env: Mapping[str, str], world: World) -> str:
    """The host of rank 0: the step's first, unless a host file places the ranks."""
    name = next((name for name in ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST") if env.get(name)), "")
    hint = "set MASTER_ADDR to the host name or address of the node with rank 0."
    if not name:
        raise LaunchError(f"neither SLURM_STEP_NODELIST nor MASTER_ADDR is set in this step of Slurm; {hint}")
    try:
        first, *others = islice(host_names(env[name]), 2)
    except ValueError as error:
        raise LaunchError(f"{name} is {env[name][:80]!r} ({error}); expected a list of hosts; {hint}") from None
    if not others or world.local_size == world.size:
        return _LOOPBACK
    if env.get("SLURM_DISTRIBUTION", "").startswith("arbitrary"):
        raise LaunchError(f"SLURM_DISTRIBUTION is arbitrary, so any node of {env[name][:80]} may have rank 0; {hint}")
    try:
        socket.getaddrinfo(first, None)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise LaunchError(f"the first host of {name}, {first!r}, has no address here ({why}); {hint}") from None
    return first


def _check_port(text: str) -> None:
    if not (text.isascii() and text.isdecimal() and 0 < int(text[:6]) < 65536):
        raise LaunchError(f"MASTER_PORT is {text[:40]!r}; expected a port from 1 to 65535; set it, or leave it unset.")


def _whole(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise LaunchError(
            f"{name} is {text[:40]!r}; expected a whole number; unset it or start with a launcher."
        ) from None


def _of_node(name: str, text: str, node: int) -> int:
    """Processes on a node: one number for all, or Slurm's list over the nodes, such as `2(x3),1`."""
    place = 0
    for part in text.split(","):
        found = re.fullmatch(r"(\d{1,9})(?:\(x(\d{1,9})\))?", part.strip(), re.ASCII)
        if found is None:
            raise LaunchError(
                f"{name} is {text[:40]!r}; expected a whole number, or a list such as 2(x3),1; unset it or start with "
                "a launcher."
            )
        place += int(found[2] or 1)
        if node < place or (part == text and found[2] is None):
            return int(found[1])
    raise LaunchError(f"{name} is {text[:40]!r}, for {place} nodes, and this is node {node}; expected one number each.")
