"""Shipped recipes carry what the planner chooses for their cluster, and its arithmetic in their comment."""

from __future__ import annotations

import re
import shlex
import textwrap
from pathlib import Path

import pytest

from bridge_ds.config.load import RECIPES, flatten, load_config
from bridge_ds.plan.advice import LAYOUTS, choices
from bridge_ds.plan.job import ENCODE_ONCE, PROCESS_GIB, Job, layout, planned
from bridge_ds.plan.memory import memory
from bridge_ds.plan.timing import GPUS, Gpu, Network, step_time

ROOT = Path(__file__).parents[2]
LAPTOP = ("testbed", "sib200_small", "adapt")
"""Made for two cores, or of the encoder alone; no script starts them on a cluster."""
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml") if path.stem not in LAPTOP)
LAUNCHERS = {"mt5xl_13b": "train_13b.sh", "mt5xl_70b": "train_70b.sh"}
"""Of the others the cluster is that of train_1b.sh."""


def cluster(name: str) -> tuple[int, int]:
    """Nodes and GPUs a node of the script that starts the recipe."""
    text = (ROOT / "slurm" / LAUNCHERS.get(name, "train_1b.sh")).read_text()
    nodes, gpus = re.findall(r"#SBATCH --(?:nodes|gpus-per-node)=(\d+)", text)
    return int(nodes), int(gpus)


def comment(command: str, job: Job, gpu: Gpu) -> str:
    """What the recipe's comment says of its plan."""
    parts = ", ".join(f"{part} {gib:.1f}" for part, gib in memory(job).items() if gib >= 0.05 and part != "total")
    times = step_time(job, gpu, Network())
    seconds = ", ".join(f"{part} {times[part]:.2f}" for part in ("compute", "gather", "launch"))
    lines = [
        command,
        f"{memory(job)['total']:.1f} GiB a rank: {parts}",
        f"{times['step']:.2f} s a step at least: {seconds}",
    ]
    wrapped = [textwrap.fill(line, 120, initial_indent="#   ", subsequent_indent="#     ") for line in lines]
    return "\n".join(wrapped)


@pytest.mark.parametrize("name", NAMES)
def test_recipes_are_what_the_planner_chooses(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    (command,) = re.findall(r"^#   (bridge-ds plan .+)$", text, re.MULTILINE)
    said = dict(zip(*(iter(shlex.split(command)[2:]),) * 2, strict=True))
    assert said["--recipe"] == name
    assert cluster(name) == (int(said["--nodes"]), int(said["--gpus"])), "not the cluster of its script"
    config, gpu = load_config(name), GPUS[said["--gpu"]]
    job = planned(config, *cluster(name)).having(process=PROCESS_GIB)
    best = choices(job, gpu, Network())[0]
    assert best.fits
    chosen = {
        "run.ds_config": best.ds_config,
        "train.micro_batch": best.job.micro_batch,
        "model.activation_checkpointing": best.job.checkpointing,
        ENCODE_ONCE: best.job.encode_once or not best.job.may_encode_once,
    }
    found = {key: flatten(config).get(key, False) for key in chosen}
    found["train.micro_batch"] = job.micro_batch  # 0 in a recipe: the whole share of a rank
    assert found == chosen
    wanted = comment(command, best.job, gpu)
    assert wanted in text, f"{name}.yaml says otherwise; its comment should say:\n{wanted}"


def test_layouts_are_those_of_the_shipped_files() -> None:
    from bridge_ds.config.zero import SHIPPED, read_ds_config

    assert set(LAYOUTS) == {path.name for path in SHIPPED.glob("*.json")}
    for name, meant in LAYOUTS.items():
        found = layout(read_ds_config(name))
        assert {key: found[key] for key in meant} == meant, name


def test_70b_says_only_what_differs_from_13b() -> None:
    small, large = flatten(load_config("mt5xl_13b")), flatten(load_config("mt5xl_70b"))
    differing = {key for key in small if small[key] != large[key]}
    assert differing == {"run.output", "run.ds_config", "model.llm", "train.micro_batch"}
