"""World: the launchers' variables, read once."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path

import pytest

from bridge_ds.errors import LaunchError
from bridge_ds.hosts import host_names
from bridge_ds.world import World
from tests import launch

STEP = {"SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_NODEID": "0"}
"""Of a task of srun; the step's list of nodes is added."""


def test_alone() -> None:
    assert World.detect({}) == World(0, 1, 0, 1, 0)


def test_torchrun_wins_over_slurm() -> None:
    slurm = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NODEID": "2",
             "SLURM_NTASKS_PER_NODE": "2(x4)"}  # fmt: skip
    assert World.detect(slurm) == World(5, 8, 1, 2, 2)
    assert World.detect(slurm | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}).rank == 1


def test_a_shell_inside_an_allocation_is_alone() -> None:
    assert World.detect({"SLURM_NTASKS": "8", "SLURM_PROCID": "0"}).size == 1


def test_an_interactive_step_is_alone() -> None:
    """salloc with use_interactive_step: the job's SLURM_NTASKS, in a step of one."""
    env = STEP | {"SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"}
    assert World.detect(env) == World()


@pytest.mark.parametrize(("node", "ranks"), [(0, 2), (2, 2), (3, 1), (4, 12)])
def test_nodes_of_unequal_size(node: int, ranks: int) -> None:
    env = STEP | {"SLURM_NODEID": str(node), "SLURM_NTASKS": "19", "SLURM_STEP_TASKS_PER_NODE": "2(x3),1,12"}
    assert World.detect(env).local_size == ranks


@pytest.mark.parametrize(
    "env",
    [
        {"RANK": "x"},
        {"RANK": "2", "WORLD_SIZE": "2"},
        {"RANK": "1"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
        STEP | {"SLURM_TASKS_PER_NODE": "2(x"},
        STEP | {"SLURM_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "3"},
    ],
)
def test_impossible_worlds(env: dict[str, str]) -> None:
    with pytest.raises(LaunchError):
        World.detect(env)


def test_export_keeps_what_is_set() -> None:
    env = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"}
    World(1, 2, 1, 2, 0).export(env)
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "LOCAL_SIZE": "2"}
    assert env == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "7"} | ranks


def exported(world: World, **env: str) -> tuple[str, str]:
    world.export(env)
    return env["MASTER_ADDR"], env["MASTER_PORT"]


def test_where_the_ranks_of_a_step_meet() -> None:
    two_nodes = World(0, 4, 0, 2)
    nodes = STEP | {"SLURM_STEP_NODELIST": "localhost,n[1-3]", "SLURM_JOB_NODELIST": "n[1-3]"}
    assert exported(two_nodes, **nodes) == ("localhost", str(10000 + 711 * 10 + 2))
    assert exported(World(0, 4, 0, 4), **(nodes | {"SLURM_STEP_NODELIST": "n[7-9]"}))[0] == "127.0.0.1"  # one node
    assert exported(two_nodes, **nodes, MASTER_ADDR="10.0.0.1", MASTER_PORT="7") == ("10.0.0.1", "7")
    assert exported(World(1, 2, 1, 2)) == ("127.0.0.1", "29500")
    assert exported(two_nodes, MASTER_ADDR="10.0.0.1") == ("10.0.0.1", "29500")


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({}, "MASTER_ADDR is not set and the 4 ranks are on several nodes"),
        ({"MASTER_ADDR": "a", "MASTER_PORT": "high"}, "MASTER_PORT is 'high'"),
        (STEP, "neither SLURM_STEP_NODELIST nor MASTER_ADDR"),
        (STEP | {"SLURM_JOB_NODELIST": "n[1-"}, r"SLURM_JOB_NODELIST is 'n\[1-' "),
        (STEP | {"SLURM_JOB_NODELIST": "nowhere.invalid,n2"}, "'nowhere.invalid', has no address here"),
        (STEP | {"SLURM_JOB_NODELIST": "n1,n2", "SLURM_DISTRIBUTION": "arbitrary"}, "any node of n1,n2 may have"),
    ],
)
def test_no_place_to_meet(env: dict[str, str], said: str) -> None:
    with pytest.raises(LaunchError, match=said):
        exported(World(0, 4, 0, 2), **env)


def test_host_lists() -> None:
    listed = "node[01-03,07],gpu-1[2-4]x,login,r[1-2]n[09-10]"
    expected = "node01 node02 node03 node07 gpu-12x gpu-13x gpu-14x login r1n09 r1n10 r2n09 r2n10"
    assert list(host_names(listed)) == expected.split()
    assert next(host_names("n[0-99999999999999]")) == "n0"


def test_generated_host_lists() -> None:
    """An expression made from known names gives these names; a cut or changed one gives names or a ValueError."""
    seed = int(os.environ.get("SEED", "0"))
    draw = random.Random(seed)
    for case in range(300 * int(os.environ.get("BRIDGE_DS_FUZZ", "1"))):
        names, parts = [], []
        for _ in range(draw.randint(1, 4)):
            before, after = (draw.choice(["", "n", "gpu-1", "a.b-", "rack0x"]) for _ in range(2))
            width, ranges, numbers = draw.randint(1, 5), [], []
            for _ in range(draw.randint(1, 3)):
                first = draw.randint(0, 10**width - 1)
                last = min(first + draw.randint(0, 5), 10**width - 1)
                ranges.append(f"{first:0{width}d}" + (f"-{last:0{width}d}" if last > first else ""))
                numbers += [f"{number:0{width}d}" for number in range(first, last + 1)]
            parts.append(f"{before}[{','.join(ranges)}]{after}")
            names += [f"{before}{number}{after}" for number in numbers]
        text = ",".join(parts)
        assert list(host_names(text)) == names, f"seed {seed}, case {case}: {text}"
        place = draw.randrange(len(text))
        changed = text[:place] + draw.choice(["", "[", "]", ",", "-", "x"]) + text[place + 1 :]
        with contextlib.suppress(ValueError):
            assert next(host_names(changed)), f"seed {seed}, case {case}: {changed}"


@pytest.mark.slow
def test_two_ranks_with_the_variables_of_srun_alone(small_run: list[str], tmp_path: Path) -> None:
    step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost,elsewhere"}
    step |= {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_LAUNCH_NODE_IPADDR": "192.0.2.1"}
    command = [*small_run, "--set", f"run.output={tmp_path}/run", "--set", "train.steps=2"]
    launch.succeed(launch.train(command, 2, tmp_path / "logs", step))
    assert (tmp_path / "run" / "metrics.jsonl").read_text().count("\n") == 2
