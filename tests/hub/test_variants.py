"""A fixed number of soft tokens, layer attention and trained biases go through every door as they were trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.config.load import load_run_config
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.text.prompting import Context
from bridge_ds.doctor.diagnose import diagnose
from bridge_ds.doctor.example import look
from bridge_ds.doctor.load import load_run
from bridge_ds.doctor.measure import examine
from bridge_ds.doctor.text import page
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.evaluation.scorer import Scorer
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.hub.export import export
from bridge_ds.inference.load import load_trained
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.protocol import CompletionRequest
from bridge_ds.tasks.base import Example
from tests.evaluation.fakes import FakeTask
from tests.made import harness_answerer, make_run
from tests.samples import tokenize_sample
from tools.export import main as export_command

TEXTS = ["a", "the cat sat on the mat and a dog looked at the river"]
LATENTS = 5
LATENT = [
    "mapping.kind=latent", f"mapping.latents={LATENTS}", "mapping.heads=2", "mapping.head_width=6",
    "mapping.end_init=zeros", "fusion.name=layer_attention", "data.max_target_tokens=8",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    models = [f"model.encoder={bases['mt5']}", f"model.llm={bases['qwen2']}", "model.dtype=float32"]
    return make_run(tmp_path_factory.mktemp("variants") / "run", [*models, *LATENT, "lora.rank=2", "lora.bias=all"])


@pytest.fixture(scope="module")
def long_run(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An LLM with BOS, whose 128 places are fewer than the encoder's tokens."""
    models = [f"model.encoder={bases['mt5']}", f"model.llm={bases['llama']}", "data.max_source_tokens=400"]
    return make_run(tmp_path_factory.mktemp("long") / "run", [*models, *LATENT])


def logits(model: BridgeForCausalLM, processor: BridgeProcessor) -> torch.Tensor:
    written = model.generate(**processor(TEXTS), max_new_tokens=4, return_dict_in_generate=True, output_logits=True)
    return torch.stack(written.logits)


def test_loaded_shared_exported_and_merged_it_is_the_same_function(run: Path, tmp_path: Path) -> None:
    model, processor = BridgeForCausalLM.from_pretrained(run), BridgeProcessor.from_pretrained(run)
    expected = logits(model, processor)
    model.save_pretrained(tmp_path / "one")
    held = load_file(tmp_path / "one" / "lora.safetensors")
    assert sum(name.endswith("trained_bias") for name in held) == 6
    shared = json.loads((tmp_path / "one" / "config.json").read_text())
    assert (shared["mapping"]["kind"], shared["mapping"]["latents"], shared["lora"]["bias"]) == ("latent", 5, "all")
    assert not {"end_init", "dropout", "match_embedding_rms"} & set(shared["mapping"])
    assert torch.equal(logits(BridgeForCausalLM.from_pretrained(tmp_path / "one"), processor), expected)

    with model.bridge.llm.without_adapters():
        assert not torch.allclose(logits(model, processor), expected, atol=1e-3)
    export(str(run), tmp_path / "out")
    assert torch.equal(logits(BridgeForCausalLM.from_pretrained(tmp_path / "out"), processor), expected)
    assert export_command(["--run", str(run), "--output", str(tmp_path / "merged"), "--merge-lora"]) == 0
    merged = BridgeForCausalLM.from_pretrained(tmp_path / "merged")
    assert not merged.bridge.llm.trained and not (tmp_path / "merged" / "lora.safetensors").exists()
    assert torch.allclose(logits(merged, processor), expected, atol=1e-5)
    assert "merged into `llm/`" in merged.card and "lora.safetensors" not in merged.card
    with pytest.raises(ConfigError, match="no updates of the LLM to merge"):
        export(str(tmp_path / "merged"), tmp_path / "again", merge=True)


def ask(text: str) -> CompletionRequest:
    return CompletionRequest(model="m", prompt=[text], max_tokens=4)


def test_every_door_gives_the_llm_as_many_soft_tokens_whatever_the_length(long_run: Path) -> None:
    config = load_run_config(long_run)
    model, tokenizers, _ = load_trained(long_run, config, torch.device("cpu"))
    answerer = Pipeline.load(str(long_run), GenerateOptions())
    processor = answerer.processor
    texts, sink = ServedModel(answerer.model), lambda event: None
    by_harness = harness_answerer(model, tokenizers, config.data)
    expected = 1 + LATENTS + 1  # BOS, latents, end
    for text in [*TEXTS, "one river of rain " * 20]:
        row = processor.context_ids(Context(text))
        assert processor.prompts.length(row) == expected
        assert int(answerer.model.prefix(**processor([text])).mask_BX.sum()) == expected
        assert texts.rows(ask(text), sink)[0].length == expected
        assert int(by_harness._prefix([Context(text)], [4]).mask_BX.sum()) == expected
    # More encoder tokens than the LLM has places: none is cut.
    assert len(row.source) > 128 and not row.truncated
    assert answerer.write([row])
    (longer,) = texts.rows(ask("one river of rain " * 400), sink)
    assert longer.truncated and longer.length == expected  # more than the encoder reads


def test_training_and_scoring_do_not_depend_on_the_batch_or_on_who_makes_the_layout(run: Path, long_run: Path) -> None:
    for folder in (run, long_run):
        config = load_run_config(folder)
        model, of, _ = load_trained(folder, config, torch.device("cpu"))
        samples = [{"source": text, "target": "good day"} for text in TEXTS]
        rows = [tokenize_sample(sample, of, config.data) for sample in samples]
        pads: dict[str, Any] = {"opening": of.bos_id is not None, "fixed_length": config.mapping.fixed_length}
        together = collate(rows, of.encoder_pad_id, of.pad_id, **pads)
        with torch.no_grad():
            spliced = model.spliced(together)
            opening = int(of.bos_id is not None)
            assert spliced.mask_BX.sum(1).tolist() == [opening + LATENTS + 1 + len(row.target) for row in rows]
            loss = float(model(together))
            plain = float(model(collate(rows, of.encoder_pad_id, of.pad_id)))
            alone = sum(float(model(collate([row], of.encoder_pad_id, of.pad_id, **pads))) for row in rows)
        assert loss == plain
        assert loss == pytest.approx(alone, abs=2e-2 if config.model.dtype == "bfloat16" else 1e-4)
        scorer, task = Scorer(model, of, config.data, torch.device("cpu"), bridge=True), FakeTask(labels=("good", "a"))
        examples = [Example(text, "good", 0, "en", text) for text in TEXTS]
        found = scorer(examples, task)
        assert [p.scores[0] for p in found.predictions] == pytest.approx(
            [scorer([example], task).predictions[0].scores[0] for example in examples], abs=5e-2
        )
        assert found.tokens == sum(len(row.source) for row in rows)
        assert sum(found.weights) == pytest.approx(found.tokens, rel=1e-3)


def test_the_doctor_examines_a_fixed_number_of_soft_tokens(bases: dict[str, Path], tmp_path: Path) -> None:
    models = [f"model.encoder={bases['mt5']}", f"model.llm={bases['llama']}", "model.dtype=float32"]
    loaded = load_run(make_run(tmp_path / "run", [*models, *LATENT]), torch.device("cpu"))
    measured, rows = examine(loaded, 16)
    assert len(measured.soft_norm_by_position) == LATENTS and measured.loss_right
    assert sum(measured.layer_weights) == pytest.approx(1, abs=1e-3)
    example = look(loaded, rows[0])
    assert [token.encoder for token in example.soft] == [*(f"(latent {n})" for n in range(1, 6)), "(end)"]
    assert "(latent 5)" in page("run", measured, diagnose(measured), example)


def test_more_soft_tokens_than_the_llm_has_places_are_one_sentence(bases: dict[str, Path], tmp_path: Path) -> None:
    models = [f"model.encoder={bases['mt5']}", f"model.llm={bases['llama']}"]
    run = make_run(tmp_path / "run", [*models, *LATENT, "mapping.latents=200"])
    with pytest.raises(DataError, match="positions"):
        BridgeProcessor.from_pretrained(run)(TEXTS)
