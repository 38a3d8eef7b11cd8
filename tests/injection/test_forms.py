"""Every form on every family: at gate 0 the LLM alone, bit for bit; else the same batched, cached and row by row."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import load_config
from bridge_ds.config.schema import Config, DataConfig, FusionConfig, InjectionConfig, ModelConfig
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.loader import held_out
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.text.prompting import Context
from bridge_ds.data.text.truncate import Limits, SoftPrompt, fit
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import ConfigError
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.injection import FORMS
from bridge_ds.plan.job import Job, bridge_parameters
from bridge_ds.plan.shapes import Shape
from bridge_ds.world import World
from tests import tiny
from tests.samples import tokenize_sample

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3")
CASES = [(form, llm) for form in ("every_layer", "gated_prompt") for llm in FAMILIES]
CASES += [("gated_prompt", "gpt2"), ("every_layer", "olmo2")]
SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "a dog", "target": "Neutral"},
    {"source": "one river of rain and a bridge that joins two banks", "target": "Contradiction"},
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("injected")
    tiny.make_encoder("mt5", root / "mt5")
    for llm in (*FAMILIES, "gpt2", "bloom", "olmo2"):
        tiny.make_llm(llm, root / llm)
    return root


def load(root: Path, form: str, llm: str, gate: float, **options: object) -> tuple[BridgeModel, Tokenizers]:
    config = Config(
        model=ModelConfig(
            encoder=str(root / "mt5"), llm=str(root / llm), dtype="float32",
            activation_checkpointing=bool(options.pop("recompute", False)),
        ),
        fusion=FusionConfig(dropout=0.0), injection=InjectionConfig(form=form, **options),  # type: ignore[arg-type]
        data=DataConfig(augment_prompt=True),
    )  # fmt: skip
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id)
    assert model.injection is not None
    with torch.no_grad():
        model.injection.gates.fill_(gate)
        if model.makes_prompt:
            model.mapping.scale.fill_(0.1)
    return model, tokenizers


def batches(tokenizers: Tokenizers, layout: BridgeModel | None = None) -> tuple[Batch, list[Batch], Batch]:
    """Together, row by row, and what the LLM reads without a bridge."""
    rows = [tokenize_sample(sample, tokenizers, DataConfig(augment_prompt=True)) for sample in SAMPLES]
    alone = [TokenizedSample([], row.prompt, row.target, ()) for row in rows]
    opening = None if layout is None else tokenizers.bos_id is not None
    in_input = layout is None or layout.prompt_in_input

    def made(of: list[TokenizedSample]) -> Batch:
        pads = tokenizers.encoder_pad_id, tokenizers.pad_id
        return collate(of, *pads, opening, soft_prompt=in_input)

    return made(rows), [made([row]) for row in rows], made(alone)


@pytest.mark.parametrize(("form", "llm"), CASES)
def test_at_gate_0_the_llm_computes_what_it_computes_alone(folders: Path, form: str, llm: str) -> None:
    model, tokenizers = load(folders, form, llm, 0.0, soft_prompt=False)
    batch, _, alone = batches(tokenizers)
    model.eval()
    with torch.no_grad():
        for side in ("left", "right"):
            found, expected = model.spliced(batch, side), model.spliced(alone, side)
            assert found.injected is not None and expected.injected is None
            assert torch.equal(found.embeds_BXH, expected.embeds_BXH) and torch.equal(found.mask_BX, expected.mask_BX)
            places_N = found.mask_BX.flatten().nonzero().squeeze(1)
            logits = [
                model.llm.logits_at(
                    each.embeds_BXH, places_N, injected=each.injected, attention_mask=each.mask_BX, use_cache=False
                )[0]
                for each in (found, expected)
            ]
            assert torch.equal(*logits)
        assert torch.equal(model(batch), model(alone))
        generator = Generator(model, tokenizers)
        options = {"max_new_tokens": 6, "min_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
        written = [
            torch.stack(generator.generate(model.prefix(each), None, **options).logits) for each in (batch, alone)
        ]
        assert torch.equal(*written)
    # With the gates open it is something else, and closed again what it was: nothing is left in the layers.
    with torch.no_grad():
        model.injection.gates.fill_(0.5)  # type: ignore[union-attr]
        other = model(batch)
        assert not torch.allclose(other, model(alone))
        assert not any("beside" in name for module in model.llm.modules() for name in vars(module))


@pytest.mark.parametrize(("form", "llm"), [*CASES, ("with a soft prompt", "llama")])
def test_a_batch_is_its_rows_and_is_scored_as_it_is_trained(folders: Path, form: str, llm: str) -> None:
    options = {} if form == "with a soft prompt" else {"soft_prompt": False}
    model, tokenizers = load(folders, form if options else "every_layer", llm, 0.7, **options)
    model.train()
    for batch, singles, _ in (batches(tokenizers), batches(tokenizers, model)):
        loss = model(batch)
        loss.backward()
        of_batch = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        rows = [model(single) for single in singles]
        torch.stack(rows).sum().backward()
        torch.testing.assert_close(loss, torch.stack(rows).sum(), rtol=1e-5, atol=1e-5)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert set(of_batch) == trained and any(name == "injection.gates" for name in trained)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(of_batch[name], parameter.grad, rtol=1e-3, atol=1e-5)
        model.zero_grad()
    model.eval()
    batch, singles, _ = batches(tokenizers)
    generator = Generator(model, tokenizers)
    targets = [row[mask.bool()].tolist() for row, mask in zip(batch.target_ids, batch.target_mask, strict=True)]
    scores, _, _, read = generator.score(generator.prefix(batch), [[ids, ids[:1], ids[::-1]] for ids in targets])
    for (own, *_), single in zip(scores, singles, strict=True):
        assert own == pytest.approx(-float(model(single)), abs=1e-4)
    written = generator.greedy(generator.prefix(batch), 8, keep_end=True)
    after = generator.greedy(generator.prefix(batch), 8, keep_end=True, read=read)
    alone = [generator.greedy(generator.prefix(single), 8, keep_end=True)[0] for single in singles]
    own = generator.generate(generator.prefix(batch), None, max_new_tokens=8).tolist()
    assert written == alone == after == [row[: len(ids)] for row, ids in zip(own, written, strict=True)]
    beams = generator.generate(generator.prefix(batch), None, max_new_tokens=5, num_beams=3)
    single = [generator.generate(generator.prefix(each), None, max_new_tokens=5, num_beams=3)[0] for each in singles]
    ends = generator.ends | {tokenizers.pad_id}
    strip = lambda ids: [token for token in ids.tolist() if token not in ends]  # noqa: E731
    assert [strip(row) for row in beams] == [strip(row) for row in single]


@pytest.mark.parametrize("form", ["every_layer", "gated_prompt"])
def test_recomputed_layers_have_the_same_gradients(folders: Path, form: str) -> None:
    found = []
    for recompute in (False, True):
        model, tokenizers = load(folders, form, "llama", 0.7, soft_prompt=False, recompute=recompute)
        model.train()
        for _ in range(2):
            model.zero_grad()
            model(batches(tokenizers, model)[0]).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("form", FORMS)
def test_an_llm_of_half_precision_beside_a_float32_encoder(folders: Path, form: str) -> None:
    """As float16 is loaded: encoders of the T5 kind overflow in it."""
    model, tokenizers = load(folders, form, "llama", 0.7, soft_prompt=False)
    batch = batches(tokenizers)[0]
    whole = model(batch)
    model.llm.half()
    torch.testing.assert_close(model(batch).float(), whole, rtol=2e-2, atol=0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("llm", ["llama", "qwen2"])
def test_an_empty_text_has_the_answer_that_it_has_alone(folders: Path, form: str, llm: str) -> None:
    """Without a soft prompt in its input, an LLM that has no BOS would have no position to answer from."""
    model, tokenizers = load(folders, form, llm, 0.7, soft_prompt=False)
    prompts = PromptBuilder.of(DataConfig(augment_prompt=True), tokenizers, model.llm.positions, model.soft_prompt)
    writer = Generator(model.eval(), tokenizers)
    rows = [prompts.ids(Context(text), 4) for text in ("", "a dog", "   ")]
    alone = [writer.greedy(writer.prefix(prompts.batch([row])), 4)[0] for row in rows]
    assert writer.greedy(writer.prefix(prompts.batch(rows)), 4) == alone
    prefixes = [int(writer.prefix(prompts.batch([row])).mask_BX.sum()) for row in rows]
    assert prefixes == [prompts.length(row) for row in rows] and min(prefixes) > 0


@pytest.mark.parametrize("form", FORMS)
def test_a_row_that_fills_a_micro_batch_has_a_position(folders: Path, form: str, tmp_path: Path) -> None:
    """8 held-out samples in micro-batches of 3 on two ranks: one of them gets 2, 2 and 0 samples, or an empty row."""
    rows = [{"source": f"the cat sat on {number}", "target": "Neutral"} for number in range(60)]
    pack_rows(iter(rows), tmp_path / "shards")
    config = load_config("testbed", [
        f"model.encoder={folders / 'mt5'}", f"model.llm={folders / 'qwen2'}", f"data.shards={tmp_path / 'shards'}",
        "data.validation_percent=10", f"injection.form={form}", "injection.soft_prompt=false", "data.workers=0",
        "data.augment_prompt=true", "train.micro_batch=3", f"run.output={tmp_path / 'run'}",
    ])  # fmt: skip
    tokenizers = load_tokenizers(config.model, data=config.data)
    model, corpus = build_model(config, tokenizers.bos_id), open_corpus(config.data, config.run.seed, World())
    assert tokenizers.bos_id is None
    made = [held_out(config, World(rank, 2, rank, 2), tokenizers, corpus).micro for rank in range(2)]
    losses = [[float(model(batch, counted=True)[0].detach()) for batch in micro] for micro in made]
    assert len(losses[0]) == len(losses[1]) and 0.0 in losses[0] + losses[1]
    assert all(loss > 0 or not batch.target_tokens for own, micro in zip(losses, made, strict=True)
               for loss, batch in zip(own, micro, strict=True))  # fmt: skip


def test_positions_are_counted_where_the_soft_prompt_is(folders: Path) -> None:
    source, prompt = [5] * 9 + [1], [2] * 10
    for form, soft, expected in (
        ("gated_prompt", False, (7, 7)),  # each by itself: 8 positions, one is the end vector's or the answer's
        ("every_layer", False, (10, 7)),  # no vector of the source is among the positions
        ("every_layer", True, (3, 3)),
    ):
        of = SoftPrompt.of(Config(injection=InjectionConfig(form=form, soft_prompt=soft)))
        limits = replace(Limits(20, 20), positions=8, soft=of)
        assert tuple(map(len, fit(source, prompt, limits, (0, 1), room=7)[:2])) == expected, form
        assert of.positions(10) == (11 if expected == (3, 3) else 0)


def test_only_some_layers(folders: Path) -> None:
    model, tokenizers = load(folders, "every_layer", "llama", 0.7, llm_layers=(1,), mlp=True)
    assert len(model.llm.attention or ()) == 1 and model.injection.gates.shape == (1,)  # type: ignore[union-attr]
    assert model.injection.layers_weight.shape == (2, tiny.LAYERS)  # type: ignore[union-attr]
    assert torch.isfinite(model(batches(tokenizers)[0]))


def test_a_row_without_a_source_gets_nothing(folders: Path) -> None:
    for form in ("every_layer", "gated_prompt"):
        model, tokenizers = load(folders, form, "llama", 0.7, soft_prompt=False)
        batch, singles, alone = batches(tokenizers)
        mask = batch.source_mask.clone()
        mask[1] = 0
        without = replace(batch, source_mask=mask)
        expected = model(singles[0]) + model(singles[2])
        none = collate_alone(tokenizers, 1)
        torch.testing.assert_close(model(without), expected + model(none), rtol=1e-5, atol=1e-5)
        assert torch.isfinite(model(alone))


def collate_alone(tokenizers: Tokenizers, number: int) -> Batch:
    row = tokenize_sample(SAMPLES[number], tokenizers, DataConfig(augment_prompt=True))
    return collate([TokenizedSample([], row.prompt, row.target, ())], tokenizers.encoder_pad_id, tokenizers.pad_id)


@cache
def _message(root: Path, llm: str, **options: object) -> str:
    with pytest.raises(ConfigError) as error:
        load(root, llm=llm, gate=0.0, **options)  # type: ignore[arg-type]
    return str(error.value)


def test_what_cannot_be_is_refused(folders: Path) -> None:
    assert "no k_proj and v_proj" in _message(folders, "gpt2", form="every_layer")
    assert "outside of transformers' interface" in _message(folders, "bloom", form="gated_prompt")
    assert "injection.llm_layers has 2" in _message(folders, "llama", form="every_layer", llm_layers=(0, 2))


def test_a_form_without_prompt_and_text_needs_a_bos(folders: Path) -> None:
    settings = [f"model.encoder={folders / 'mt5'}", f"model.llm={folders / 'qwen2'}", "injection.form=every_layer",
                "injection.soft_prompt=false"]  # fmt: skip
    config = load_config("testbed", settings)
    tokenizers = load_tokenizers(config.model, data=config.data)
    with pytest.raises(ConfigError, match=r"the LLM has no BOS and reads no text, .*=true, or data.bos=always if its"):
        build_model(config, tokenizers.bos_id)


@pytest.mark.parametrize("form", sorted(FORMS))
@pytest.mark.parametrize("mlp", [False, True])
@pytest.mark.parametrize("embeddings", [False, True])
def test_its_parameters_are_those_of_the_plan(form: str, mlp: bool, embeddings: bool) -> None:
    shape = Shape("x", 6, 16, 24, 16, 16, 100, 2)
    chosen = InjectionConfig(form=form, mlp=mlp, soft_prompt=False, llm_layers=(0, 2, 3))
    fusion = FusionConfig(name="last_layer", include_embeddings=embeddings)
    job = Job(shape, shape, fusion=fusion, injection=chosen)
    states = 6 + (embeddings and form == "every_layer")  # a last layer with a gated prompt reads no other
    assert job.states == states
    module = FORMS[form](states, 16, 16, 3, **{key: getattr(chosen, key) for key in FORMS[form].options})
    own = sum(parameter.numel() for parameter in module.parameters())
    without = bridge_parameters(job.having(injection=InjectionConfig()))
    assert bridge_parameters(job) == own + (without if chosen.makes_prompt else 0)
