"""The whole model on every family: frozen means frozen, a batch equals its rows, scores equal the loss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bridge_ds.bridge import TRAINABLE, BridgeModel
from bridge_ds.config.schema import Config, DataConfig, FusionConfig, ModelConfig, TrainConfig
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.tokenize import check_vocabulary, load_tokenizers
from bridge_ds.engine.setup import build_model, make_optimizer
from bridge_ds.engine.trainable import trainable_table
from bridge_ds.errors import ConfigError
from bridge_ds.inference.score import score_choices
from bridge_ds.llm.loss import predicting
from tests import tiny
from tests.samples import tokenize_sample

SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "a dog", "target": "Neutral"},
    {"source": "one river of rain and a bridge that joins two banks", "target": "Contradiction"},
]
PAIRS = [(encoder, "llama") for encoder in tiny.ENCODERS] + [("mt5", llm) for llm in tiny.LLMS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    made = {kind: tiny.make_encoder(kind, root / kind) for kind in tiny.ENCODERS}
    return made | {kind: tiny.make_llm(kind, root / kind) for kind in tiny.LLMS}


def load(folders: dict[str, Path], encoder: str, llm: str, **options: object) -> tuple[BridgeModel, list[Batch], Batch]:
    config = Config(
        model=ModelConfig(encoder=str(folders[encoder]), llm=str(folders[llm]), dtype="float32", **options),  # type: ignore[arg-type]
        fusion=FusionConfig(dropout=0.0),
    )
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id)
    with torch.no_grad():
        model.mapping.scale.fill_(0.1)
    check_vocabulary(tokenizers.encoder, model.encoder.vocab_size, "model.encoder")
    check_vocabulary(tokenizers.llm, model.llm.vocab_size, "model.llm")
    rows = [tokenize_sample(sample, tokenizers, DataConfig(augment_prompt=True)) for sample in SAMPLES]
    singles = [collate([row], tokenizers.encoder_pad_id, tokenizers.pad_id) for row in rows]
    return model, singles, collate(rows, tokenizers.encoder_pad_id, tokenizers.pad_id)


@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_family(folders: dict[str, Path], encoder: str, llm: str) -> None:
    model, singles, batch = load(folders, encoder, llm)
    model.train()
    loss = model(batch)
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == name.startswith(TRAINABLE), name

    # Frozen stays in eval mode: two passes in train mode are the same.
    assert not any(module.training for part in (model.encoder, model.llm) for module in part.modules())
    assert torch.equal(model(batch), loss)

    # A padded batch is its rows one by one.
    with torch.no_grad():
        alone = [model(single) for single in singles]
    assert loss.item() == pytest.approx(sum(alone).item(), rel=1e-5)

    # Scoring with a cached, left-padded prefix gives the likelihood that training computes.
    labels = [row.target_ids[0].tolist() for row in singles]
    found = score_choices(model.llm, model.prefix(batch), [labels] * 3)
    scores, greedy = found.log_p.view(3, 3), found.greedy.view(3, 3)
    for row in range(len(SAMPLES)):
        assert scores[row, row].item() == pytest.approx(-alone[row].item(), rel=1e-4)
    assert greedy.shape == scores.shape == (3, 3)


def test_greedy_match_is_what_generate_writes(folders: dict[str, Path]) -> None:
    model, _, batch = load(folders, "mt5", "llama")
    prefix = model.prefix(batch)
    with torch.no_grad():
        written = model.llm.model.generate(
            inputs_embeds=prefix.embeds_BXH, attention_mask=prefix.mask_BX, max_new_tokens=4, do_sample=False,
            eos_token_id=-1, pad_token_id=0,
        )  # fmt: skip
    for row in range(len(SAMPLES)):
        choices = [[written[row].tolist(), [5, 5, 5, 5]]] * len(SAMPLES)
        assert score_choices(model.llm, prefix, choices).greedy.view(-1, 2)[row].tolist() == [True, False]


def test_the_llm_alone_reads_text_only(folders: dict[str, Path]) -> None:
    model, _, batch = load(folders, "mt5", "llama")
    none = batch.source_ids[:, :0]
    alone, with_bridge = model.prefix(replace(batch, source_ids=none, source_mask=none)), model.prefix(batch)
    assert alone.mask_BX.sum(1).tolist() == [1 + int(n) for n in batch.prompt_mask.sum(1)]
    soft = batch.source_mask.sum(1) + 1
    assert with_bridge.mask_BX.sum(1).tolist() == (alone.mask_BX.sum(1) + soft).tolist()


def test_logits_are_computed_at_target_places_only(folders: dict[str, Path]) -> None:
    model, _, batch = load(folders, "mt5", "gemma2")
    spliced = model.spliced(batch)
    places, _ = predicting(spliced.labels_BX)
    seen = []
    handle = model.llm.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    chosen, _ = model.llm.logits_at(spliced.embeds_BXH, places)
    handle.remove()
    assert seen[0][:2] == (1, batch.target_tokens)
    full = model.llm.model(inputs_embeds=spliced.embeds_BXH).logits
    assert torch.allclose(chosen, full.flatten(0, 1)[places], atol=1e-5)


def test_activation_checkpointing_runs_while_dropout_stays_off(folders: dict[str, Path]) -> None:
    plain, _, batch = load(folders, "mt5", "gpt2")
    saving, _, _ = load(folders, "mt5", "gpt2", activation_checkpointing=True)
    calls = []
    for layer in saving.llm.model.transformer.h:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for model in (plain, saving):
        model.train()
        model(batch).backward()
    assert len(calls) == 2 * len(saving.llm.model.transformer.h)  # once forward, once again in backward
    for (name, a), (_, b) in zip(plain.named_parameters(), saving.named_parameters(), strict=True):
        if a.requires_grad:
            assert torch.allclose(a.grad, b.grad, atol=1e-6), name


def test_trainable_table_counts(folders: dict[str, Path]) -> None:
    model, _, _ = load(folders, "mt5", "llama")
    table = trainable_table(model)
    assert f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}" in table
    assert "fusion.cls" in table
    assert "encoder, frozen" in table


def test_the_optimizer_holds_the_bridge_and_nothing_else(folders: dict[str, Path]) -> None:
    model, _, _ = load(folders, "mt5", "llama")
    config = Config(fusion=FusionConfig(lr_scale=0.5), train=TrainConfig(weight_decay=0.3))
    found = {
        id(parameter): (group["weight_decay"], group["lr_scale"])
        for group in make_optimizer(model, config).param_groups
        for parameter in group["params"]
    }
    wanted = {
        id(parameter): (0.3 if parameter.ndim >= 2 else 0.0, 0.5 if name.startswith("fusion.") else 1.0)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }
    assert found == wanted


@pytest.mark.parametrize(
    ("encoder", "llm", "words"),
    [
        ("nowhere/at-all", "llama", "model.encoder 'nowhere/at-all' cannot be found"),
        ("mt5", "nowhere/at-all", "model.llm 'nowhere/at-all' cannot be found"),
        ("llama", "llama", "expected an encoder-only model"),
        ("mt5", "t5", r"model.llm .*t5.* is an encoder with a decoder; expected a decoder-only language model"),
    ],
)
def test_models_that_do_not_fit_are_refused(folders: dict[str, Path], encoder: str, llm: str, words: str) -> None:
    names = {kind: str(path) for kind, path in folders.items()}
    config = Config(model=ModelConfig(encoder=names.get(encoder, encoder), llm=names.get(llm, llm), dtype="float32"))
    with pytest.raises(ConfigError, match=words):
        build_model(config, None)


def test_a_checkpoint_with_missing_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folders["llama"], tmp_path / "torn")
    weights = load_file(tmp_path / "torn" / "model.safetensors")
    weights.pop("model.layers.1.mlp.up_proj.weight")
    save_file(weights, tmp_path / "torn" / "model.safetensors", metadata={"format": "pt"})
    config = Config(model=ModelConfig(encoder=str(folders["mt5"]), llm=str(tmp_path / "torn"), dtype="float32"))
    with pytest.raises(ConfigError, match=r"lacks 1 weights, such as model\.layers\.1\.mlp\.up_proj\.weight"):
        build_model(config, None)
