"""Self-teaching: its divergence against float64, what it trains, and that it needs no label."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bridge_ds.bridge import TRAINABLE, BridgeModel
from bridge_ds.config.build import check
from bridge_ds.config.load import load_config
from bridge_ds.config.schema import Config, DataConfig, FusionConfig, LoraConfig, ModelConfig, TrainConfig
from bridge_ds.data.loading.batch import Batch, StepBatches, _buffer
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.collate import collate, unwrap, wrap
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.steps import StepDataset
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.engine.setup import build_model, make_optimizer
from bridge_ds.errors import ConfigError
from bridge_ds.llm import teaching
from bridge_ds.llm.teaching import divergence_sum
from bridge_ds.testbed import english_rows
from bridge_ds.world import World
from tests.samples import tokenize_sample

SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "eine Brücke", "text": "a bridge joins two banks of one river", "target": "good day"},
    {"source": "a dog", "target": "Neutral", "prompt": "one dog"},
]


@pytest.mark.parametrize(
    ("dtype", "temperature", "error"),
    [(torch.float32, 1.0, 1e-6), (torch.float32, 2.5, 1e-6), (torch.bfloat16, 0.7, 0.01)],
)
def test_the_divergence_is_that_of_float64(
    dtype: torch.dtype, temperature: float, error: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, taught = (
        (4 * torch.randn(11, 37, generator=draw)).to(dtype),
        (4 * torch.randn(11, 37, generator=draw)).to(dtype),
    )
    exact = logits.double().requires_grad_()
    p = (taught.double() / temperature).softmax(-1)
    expected = (p * (p.log() - (exact / temperature).log_softmax(-1))).sum()
    (expected * 3).backward()
    for chunk in (1 << 24, 3 * 37, 1):  # all rows together, three of them, one
        monkeypatch.setattr(teaching, "_CHUNK", chunk)
        own = logits.clone().requires_grad_()
        found = divergence_sum(own, taught, temperature)
        (found * 3).backward()
        assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=1e-6)
        assert own.grad is not None and exact.grad is not None
        assert float((own.grad.double() - exact.grad).norm() / exact.grad.norm()) < error
    assert divergence_sum(taught, taught, temperature).item() == pytest.approx(0, abs=1e-5)
    assert divergence_sum(logits[:0], taught[:0], temperature).item() == 0


def made(
    models: dict[str, Path], objective: str, packing: Packing | None = None, **train: float
) -> tuple[BridgeModel, Tokenizers, Batch]:
    """A model with random weights, and the batch of all samples as the loader hands it out."""
    config = Config(
        model=ModelConfig(encoder=str(models["encoder"]), llm=str(models["llm"]), dtype="float32"),
        data=DataConfig(objective=objective),  # type: ignore[arg-type]
        fusion=FusionConfig(dropout=0.0),
        train=TrainConfig(**train),  # type: ignore[arg-type]
    )
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id).train()
    rows = [tokenize_sample(sample, tokenizers, config.data) for sample in SAMPLES]
    batch = collate(rows, tokenizers.encoder_pad_id, tokenizers.pad_id, tokenizers.bos_id is not None, 0, packing)
    return model, tokenizers, unwrap(wrap(StepBatches(1, [batch], "", 0))).micro[0]


def test_the_loss_and_its_gradients_are_those_of_two_plain_passes(models: dict[str, Path]) -> None:
    model, tokenizers, batch = made(models, "task_and_self_teaching", teaching_weight=0.4, teaching_temperature=2.0)
    assert batch.lesson is not None and _buffer(list(batch.tensors().values())) is not None  # still one copy to a GPU
    heads: list[torch.Size] = []
    hook = model.llm.model.get_output_embeddings().register_forward_hook(lambda _m, _i, out: heads.append(out.shape))
    loss, right, kl = model(batch, counted=True)
    hook.remove()
    # No logits but at the targets' tokens.
    assert [shape[:2] for shape in heads] == [(1, batch.target_tokens)] * 2
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad == name.startswith(TRAINABLE), name
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    expected_nll, expected_kl, count = torch.zeros(()), torch.zeros((), dtype=torch.float64), 0
    for row, sample in enumerate(SAMPLES):
        target = tokenizers.labels([sample["target"]])[0]
        english = tokenizers.prompt_ids(sample.get("text") or sample.get("prompt") or sample["source"])
        ids = torch.tensor([[tokenizers.bos_id, *english, *target]])
        with torch.no_grad():
            taught = model.llm.model(input_ids=ids).logits[0, -len(target) - 1 : -1].double()
        single = collate([tokenize_sample(sample, tokenizers, DataConfig())], 0, 0)
        spliced = model.spliced(single)
        logits = model.llm.model(inputs_embeds=spliced.embeds_BXH).logits[0, -len(target) - 1 : -1]
        expected_nll = expected_nll + F.cross_entropy(logits, torch.tensor(target), reduction="sum")
        p = (taught / 2).softmax(-1)
        expected_kl = expected_kl + (p * (p.log() - (logits.double() / 2).log_softmax(-1))).sum()
        count += int((logits.argmax(-1) == torch.tensor(target)).sum())
        assert row == 1 or (sample.get("prompt") or sample["source"]) in tokenizers.llm.decode(ids[0])
    expected = expected_nll + 0.4 * 4 * expected_kl
    assert kl.item() == pytest.approx(expected_kl.item(), rel=1e-5) and right.item() == count
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    for name, parameter in model.named_parameters():
        if name in found:
            assert parameter.grad is not None and torch.allclose(found[name], parameter.grad, atol=1e-5), name


def test_packed_rows_teach_the_same(models: dict[str, Path]) -> None:
    results = []
    for packing in (None, Packing(llm_keys=1e6, encoder_keys=1e6, encoder_call=1e-3)):
        model, _, batch = made(models, "self_teaching", packing)
        assert batch.lesson is not None and batch.lesson.layout is not None
        assert (batch.lesson.layout.packed is not None) == (packing is not None)
        assert batch.lesson.source_tokens == 0 and batch.lesson.target_tokens == batch.target_tokens
        results.append(model(batch, counted=True))
    loss, agreeing, kl = results[0]
    assert loss == kl and 0 <= agreeing <= batch.target_tokens
    assert torch.allclose(*results, rtol=1e-5)


def test_without_a_target_the_first_token_of_the_answer_is_taught(models: dict[str, Path]) -> None:
    model, tokenizers, _ = made(models, "self_teaching")
    data = DataConfig(objective="self_teaching")
    with_target, without = ({"source": "a dog"} | more for more in ({"target": "Neutral"}, {}))
    rows = [tokenize_sample(sample, tokenizers, data) for sample in (with_target, without)]
    assert [len(row.target) for row in rows] == [len(tokenizers.labels(["Neutral"])[0]), 1]
    one = dataclasses.replace(rows[0], target=rows[0].target[:1])
    first, none = (model(collate([row], 0, 0, True)) for row in (one, rows[1]))
    assert first[1].item() == none[1].item() > 0


def test_a_bridge_is_taught_without_labels(tmp_path: Path) -> None:
    """On the testbed: no sample holds an answer, and the divergence falls."""
    pack_rows(({"text": row["source"]} for row in english_rows(96)), tmp_path / "texts")
    base = load_config("testbed", ["data.objective=self_teaching", f"data.shards={tmp_path / 'texts'}",
                                   "train.micro_batch=32", "fusion.dropout=0", "train.lr=0.003"])  # fmt: skip
    tokenizers = load_tokenizers(base.model, data=base.data)
    dataset = StepDataset(base, World(), tokenizers, open_corpus(base.data, 0, World()), 1)
    model = build_model(base, tokenizers.bos_id).train()
    optimizer, found = make_optimizer(model, base), []
    for step in range(1, 13):
        loss, kl = model(dataset.make(step).micro[0])
        found.append(kl.item() / 32)
        optimizer.zero_grad()
        (loss / 32).backward()
        optimizer.step()
    assert sum(found[-3:]) < 0.5 * sum(found[:3]), found


def test_a_trained_llm_cannot_teach() -> None:
    for section in (
        {"lora": LoraConfig(rank=4)}, {"model": ModelConfig(encoder="none"), "lora": LoraConfig(rank=4)},
    ):  # fmt: skip
        config = Config(data=DataConfig(objective="self_teaching"), **section)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match="expected an encoder and a frozen LLM"):
            check(config)
