"""Whole runs with injection on real processes: the losses of one process in every stage, and exact resume."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import launch, tiny
from tests.engine.test_bad_input import settings
from tests.engine.test_runs import lines

pytestmark = pytest.mark.slow

STEPS = 3
SAME = {
    "fusion__name": "global_softmax", "data__max_source_tokens": 60, "data__max_target_tokens": 20, "data__workers": 0,
    "data__augment_prompt": True, "train__steps": STEPS, "train__max_grad_norm": 0, "train__lr": 1e-2,
    "checkpoint__every": 1, "checkpoint__keep_last": 0,
}  # fmt: skip


class Runs:
    def __init__(self, zygote: launch.Zygote, small_run: list[str], root: Path) -> None:
        self.zygote, self.root = zygote, root
        self.common = [*small_run, *settings(model__llm=tiny.make_llm("qwen3", root / "llm"))]

    def __call__(self, name: str, ranks: int, ds: str | Path, **more: Any) -> Path:
        values = {"run__output": self.root / name} | SAME | more
        arguments = ["--ds_config", str(ds), *self.common, *settings(**values)]
        launch.succeed(self.zygote.start(arguments, ranks, self.root / f"{name}-logs").wait(120))
        return self.root / name


@pytest.fixture(scope="module")
def runs(zygote: launch.Zygote, small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(zygote, small_run, tmp_path_factory.mktemp("injected"))


def tensors(run: Path, step: int, name: str) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{name}.safetensors")


@pytest.mark.parametrize("form", ["every_layer", "gated_prompt"])
def test_every_stage_has_the_losses_of_one_process_and_a_killed_run_resumes(runs: Runs, form: str) -> None:
    values = json.loads(Path("ds_configs/zero3.json").read_text())
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # no parameter stays gathered
    ds = runs.root / "gather_all.json"
    ds.write_text(json.dumps(values))
    choice = {"injection__form": form, "injection__soft_prompt": False}
    one = runs(f"{form}-1", 1, "zero2.json", **choice)
    expected = [line["loss"] for line in lines(one)]
    assert tensors(one, STEPS, "bridge")["injection.gates"].abs().max() > 0
    for name, stage, more in (("2", "zero2.json", {}), ("3", ds, {"model__activation_checkpointing": True})):
        run = runs(f"{form}-stage{name}", 2, stage, **choice, **more)
        assert [line["loss"] for line in lines(run)] == pytest.approx(expected, rel=1e-5)
        for key, tensor in tensors(run, STEPS, "bridge").items():
            torch.testing.assert_close(tensor, tensors(one, STEPS, "bridge")[key], rtol=1e-3, atol=1e-4)
    # As after a kill behind the first step: the same losses and bytes.
    whole = runs.root / f"{form}-stage3"
    again = runs.root / f"{form}-again"
    shutil.copytree(whole, again)
    for step in (2, 3):
        shutil.rmtree(again / "checkpoints" / f"step-{step:08d}")
    runs(f"{form}-again", 2, ds, **choice, model__activation_checkpointing=True)
    assert [line["loss"] for line in lines(again)][-2:] == [line["loss"] for line in lines(whole)][-2:]
    for name in ("bridge", "optimizer"):
        found, wanted = tensors(again, STEPS, name), tensors(whole, STEPS, name)
        assert all(torch.equal(found[key], wanted[key]) for key in wanted)
