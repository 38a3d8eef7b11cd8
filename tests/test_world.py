"""World: the launchers' variables, read once."""

from __future__ import annotations

import pytest

from bridge_ds.errors import LaunchError
from bridge_ds.world import World


def test_alone() -> None:
    assert World.detect({}) == World(0, 1, 0, 1, 0)


def test_torchrun_wins_over_slurm() -> None:
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
             "SLURM_NTASKS_PER_NODE": "2(x4)"}  # fmt: skip
    assert World.detect(slurm) == World(5, 8, 1, 2, 2)
    assert World.detect(slurm | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}).rank == 1


def test_a_shell_inside_an_allocation_is_alone() -> None:
    assert World.detect({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}).size == 1


@pytest.mark.parametrize("env", [{"RANK": "x"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "1"}])
def test_impossible_worlds(env: dict[str, str]) -> None:
    with pytest.raises(LaunchError):
        World.detect(env)


def test_export_keeps_what_is_set() -> None:
    env = {"MASTER_ADDR": "10.0.0.1"}
    World(1, 2, 1, 2, 0).export(env)
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    assert env == {"MASTER_ADDR": "10.0.0.1"} | ranks
