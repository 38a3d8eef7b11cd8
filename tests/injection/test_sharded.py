"""At gate 0 under ZeRO-3, on two ranks: the LLM alone, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import launch, tiny

pytestmark = pytest.mark.slow
PROGRAM = str(Path(__file__).parents[1] / "programs" / "gate_sharded.py")


@pytest.mark.parametrize(
    ("form", "llm"), [("every_layer", "llama"), ("every_layer", "olmo2"), ("gated_prompt", "gemma3")]
)
def test_at_gate_0_a_sharded_llm_computes_what_it_computes_alone(
    zygote: launch.Zygote, tmp_path: Path, form: str, llm: str
) -> None:
    values = json.loads(Path("ds_configs/zero3.json").read_text())
    values["zero_optimization"]["stage3_param_persistence_threshold"] = 0  # no parameter stays gathered
    ds = tmp_path / "zero3.json"
    ds.write_text(json.dumps(values))
    settings = [
        f"model.encoder={tiny.make_encoder('mt5', tmp_path / 'encoder')}",
        f"model.llm={tiny.make_llm(llm, tmp_path / 'llm')}", "model.dtype=float32", "data.augment_prompt=true",
        f"injection.form={form}", "injection.soft_prompt=false", "fusion.dropout=0", "train.micro_batch=1",
    ]  # fmt: skip
    outcome = launch.succeed(zygote.start([str(ds), *settings], 2, tmp_path / "logs", program=PROGRAM).wait())
    for output in outcome.outputs:
        (found,) = (json.loads(line) for line in output.splitlines() if line.startswith("{"))
        assert found["sharded"] and found["equal"] == [True] * 4
        assert found["open"] == [False] * 4
