"""A training that leaves finite numbers: what is left is the last state with which a step went well."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.checkpoint.load import newest
from tests import launch


def arguments(small_run: list[str], run: Path, **settings: Any) -> list[str]:
    of = {"run.output": run, "checkpoint.every": 1, "train.lr": 1e-3, "train.max_bad_steps": 0}
    of |= {key.replace("__", "."): value for key, value in settings.items()}
    return [*small_run, *(part for key, value in of.items() for part in ("--set", f"{key}={value}"))]


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_a_step_that_leaves_numbers_that_are_not_finite_is_no_checkpoint_and_lowering_the_rate_mends_it(
    small_run: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = launch.train(arguments(small_run, run, train__lr="1e38", train__steps=4), 2, tmp_path / "one")
    assert done.codes == [2, 2] and "Traceback" not in done.text, done.text[-4000:]
    assert "lower train.lr" in done.outputs[0] and "no checkpoint of it was written" in done.outputs[0]
    assert not (run / "checkpoints").exists() or steps(run) == []
    launch.succeed(launch.train(arguments(small_run, run, train__steps=2), 1, tmp_path / "two"))
    assert steps(run) == ["step-00000001", "step-00000002"]
    before = (run / "checkpoints" / "step-00000002" / "bridge.safetensors").read_bytes()

    # Weights that are finite, and with which the next step is not: known only then, when one checkpoint is kept.
    broken = {"train__lr": "1e7", "train__steps": 6, "checkpoint__keep_last": 1, "checkpoint__keep_best": 0}
    broken |= {"fusion__name": "transformer_softmax", "train__max_bad_steps": 1}
    done = launch.train(arguments(small_run, run, **broken), 1, tmp_path / "three")
    assert done.codes == [2] and "lower train.lr" in done.text, done.text[-4000:]
    (bad,) = re.findall(r"step-(\d+)\.not-finite now", done.text)
    left = steps(run)
    assert f"step-{bad}.not-finite" in left and f"step-{bad}" not in left
    good = newest(run / "checkpoints")
    assert good is not None and good.step == int(bad) - 1 >= 2
    if good.step == 2:
        assert (good.folder / "bridge.safetensors").read_bytes() == before

    fixed = arguments(small_run, run, **(broken | {"train__lr": 1e-3, "train__steps": good.step + 2}))
    done = launch.succeed(launch.train(fixed, 1, tmp_path / "four"))
    assert f"continuing from {good.folder}" in done.text
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == good.step + 2 and lines[-1]["loss"] < 7
    assert [name for name in steps(run) if "not" not in name] == [f"step-{good.step + 2:08d}"], "old ones are removed"


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_any_tensor_that_is_not_finite_is_found_wherever_it_is(value: float) -> None:
    from bridge_ds.checkpoint.finite import fault_in
    from bridge_ds.checkpoint.save import Snapshot

    names = ("fusion.a", "mapping.scale", "encoder.b", "llm.lora_A.c")
    good = {name: torch.randn(7, 3) for name in names}
    moments = {f"exp_avg/{name}": torch.full((7, 3), 1e30) for name in names}
    assert fault_in(good.items()) == "" == Snapshot(good, moments, 1).fault, "large moments are numbers"
    for name in names:
        odd = good[name].clone()
        odd[6, 2] = value
        assert fault_in([*good.items(), (name, odd)]) == f"{name} holds NaN or infinite values"
        assert name in Snapshot(good | {name: odd}, moments, 1).fault
        assert f"exp_avg/{name}" in Snapshot(good, moments | {f"exp_avg/{name}": odd}, 1).fault
    huge = good["fusion.a"] * 1e30
    assert "whose squares are no finite numbers" in fault_in([("x", huge)])
    assert fault_in([("x", good["fusion.a"] * 1e15), ("n", torch.tensor(2**62)), ("none", torch.zeros(0))]) == ""
