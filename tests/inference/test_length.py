"""How long an answer may be is the same for every door: what is asked for, else the bridge's own, else one default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.errors import DataError
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.inference.generator import ANSWER_TOKENS
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.protocol import APIError, CompletionRequest
from tests.made import make_run, on_bases
from tests.test_doors import models  # noqa: F401  (a fixture)

TEXTS = ["a dog", "the cat sat on the mat"]


@pytest.fixture(scope="module")
def shared(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    folder = tmp_path_factory.mktemp("length")
    run = make_run(folder / "run", on_bases(models))
    BridgeForCausalLM.from_pretrained(run).save_pretrained(folder / "shared")
    return folder / "shared"


def write_options(folder: Path, options: dict[str, Any]) -> None:
    (folder / "generation_config.json").write_text(json.dumps(options))


@pytest.mark.parametrize("options", [{}, {"max_length": 40}, {"max_new_tokens": 7}])
def test_every_door_has_the_same_default(shared: Path, options: dict[str, int]) -> None:
    write_options(shared, options)
    model, processor = BridgeForCausalLM.from_pretrained(shared), BridgeProcessor.from_pretrained(shared)
    pipeline, served = Pipeline(model, processor, GenerateOptions()), ServedModel(model)
    for text in TEXTS:
        row = pipeline.row(text)
        used, most = pipeline.needs(row)
        of = options.get("max_new_tokens", options.get("max_length", used + ANSWER_TOKENS) - used)
        expected = min(of, model.generator.positions - used)
        assert most == expected
        (asked,) = served.rows(CompletionRequest(model="m", prompt=[text]), lambda _: None)
        assert asked.limit == expected
        endless = {"eos_token_id": None, "suppress_tokens": sorted(model.generator.ends)}
        assert model.generate(**processor(text), **endless).shape[1] == expected
    assert processor.max_new_tokens == options.get("max_new_tokens", options.get("max_length", ANSWER_TOKENS))


def test_rows_that_share_a_batch_write_as_much_as_alone(shared: Path) -> None:
    write_options(shared, {"max_length": 40})
    model, processor = BridgeForCausalLM.from_pretrained(shared), BridgeProcessor.from_pretrained(shared)
    assert Pipeline(model, processor, GenerateOptions()).positions == 40
    assert Pipeline(model, processor, GenerateOptions(max_new_tokens=9)).positions == model.generator.positions
    (row,) = ServedModel(model).rows(CompletionRequest(model="m", prompt=["a dog"], max_tokens=60), lambda _: None)
    assert row.limit == 60, "what is asked for wins"


def test_nothing_to_write_is_refused(shared: Path) -> None:
    write_options(shared, {"max_length": 2})
    model, processor = BridgeForCausalLM.from_pretrained(shared), BridgeProcessor.from_pretrained(shared)
    inputs = processor(TEXTS[0])
    with pytest.raises(DataError, match="max_new_tokens is 0; expected at least 1"):
        model.generate(**inputs, max_new_tokens=0)
    with pytest.raises(DataError, match="max_length is 2 and the prompt takes"):
        model.generate(**inputs)
    with pytest.raises(APIError, match="no room"):
        ServedModel(model).rows(CompletionRequest(model="m", prompt=TEXTS[:1]), lambda _: None)
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), model.generate(**inputs, max_new_tokens=4)[:, :3])
