"""Replay: samples whose target is the LLM alone, among others that have labels."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.build import check
from bridge_ds.config.schema import Config, DataConfig, FusionConfig, LoraConfig, ModelConfig, TrainConfig
from bridge_ds.data.loading.batch import Batch, StepBatches, _buffer
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.collate import collate, unwrap, wrap
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.texts import is_replayed
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers, tokenize_samples
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import ConfigError
from tests.host_waits import NoHostWait

SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "a dog", "target": "Neutral", "prompt": "one dog"},
    {"source": "one river of rain and a bridge that joins two banks", "target": "good day"},
    {"source": "the train", "target": "Contradiction"},
]
REPLAY = 0.5
DATA = DataConfig(augment_prompt=True, augment_share=0.0, replay=REPLAY)
WEIGHT, TEMPERATURE = 0.4, 2.0


def drawn(replayed: list[bool]) -> list[int]:
    """Numbers of samples in the corpus that are replayed, or not, as wanted."""
    found: list[int] = []
    for wanted in replayed:
        start = found[-1] + 1 if found else 0
        found.append(next(n for n in range(start, start + 100) if is_replayed(REPLAY, 0, 0, n) == wanted))
    return found


def made(
    models: dict[str, Path], replayed: list[bool], packing: Packing | None = None
) -> tuple[BridgeModel, Tokenizers, list[TokenizedSample], Batch]:
    """A model with random weights, the samples, and their batch as the loader hands it out."""
    config = Config(
        model=ModelConfig(encoder=str(models["encoder"]), llm=str(models["llm"]), dtype="float32"),
        data=DATA,
        fusion=FusionConfig(dropout=0.0),
        train=TrainConfig(teaching_weight=WEIGHT, teaching_temperature=TEMPERATURE),
    )
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id).train()
    numbers = drawn(replayed)
    found = tokenize_samples(SAMPLES[: len(numbers)], tokenizers, DATA, epochs=[0] * len(numbers), numbers=numbers)
    rows = [row for row in found if isinstance(row, TokenizedSample)]
    opening = tokenizers.bos_id is not None
    batch = collate(rows, tokenizers.encoder_pad_id, tokenizers.pad_id, opening, 0, packing, True, REPLAY)
    return model, tokenizers, rows, unwrap(wrap(StepBatches(1, [batch], "", 0))).micro[0]


def test_the_share_is_a_pure_function() -> None:
    found = [is_replayed(0.3, 5, 0, number) for number in range(2000)]
    assert sum(found) / 2000 == pytest.approx(0.3, abs=0.04)
    assert found == [is_replayed(0.3, 5, 0, number) for number in range(2000)]
    assert found != [is_replayed(0.3, 5, 1, number) for number in range(2000)]
    assert not any(is_replayed(0.0, 5, 0, number) for number in range(100))


def test_a_replayed_sample_shows_its_text_as_it_is(models: dict[str, Path]) -> None:
    _, tokenizers, rows, batch = made(models, [True, False, True, False])
    for row, sample, replayed in zip(rows, SAMPLES, [True, False, True, False], strict=True):
        text = tokenizers.prompts([sample.get("prompt") or sample["source"]])[0]
        # With augment_share 0 the text of the others is not shown.
        assert (row.prompt, row.lesson) == ((text, text) if replayed else ([], None))
    assert batch.taught is not None and batch.lesson is not None
    lengths = [len(row.target) for row in rows]
    assert batch.taught.tolist() == [*range(lengths[0]), *range(sum(lengths[:2]), sum(lengths[:3]))]
    assert batch.taught_tokens == lengths[0] + lengths[2] == len(batch.taught)
    assert _buffer(list(batch.tensors().values())) is not None  # still one copy to a GPU


@pytest.mark.parametrize("packed", [False, True])
def test_the_loss_and_its_gradients_are_those_of_plain_passes(models: dict[str, Path], packed: bool) -> None:
    replayed = [True, False, True, False]
    packing = Packing(llm_keys=1e6, encoder_keys=1e6, encoder_call=1e-3) if packed else None
    model, _, rows, batch = made(models, replayed, packing)
    with NoHostWait():
        loss, kl = model(batch)
        loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    nll, divergence = torch.zeros(()), torch.zeros((), dtype=torch.float64)
    for row, is_taught in zip(rows, replayed, strict=True):
        spliced = model.spliced(collate([row], 0, 0))
        last = slice(-len(row.target) - 1, -1)
        logits = model.llm.model(inputs_embeds=spliced.embeds_BXH).logits[0, last]
        if not is_taught:
            nll = nll + F.cross_entropy(logits, torch.tensor(row.target), reduction="sum")
            continue
        assert row.lesson is not None and model.bos is not None
        ids = torch.tensor([[model.bos, *row.lesson, *row.target]])
        with torch.no_grad():
            p = (model.llm.model(input_ids=ids).logits[0, last].double() / TEMPERATURE).softmax(-1)
        divergence = divergence + (p * (p.log() - (logits.double() / TEMPERATURE).log_softmax(-1))).sum()
    expected = nll + WEIGHT * TEMPERATURE**2 * divergence
    assert kl.item() == pytest.approx(divergence.item(), rel=1e-5) and divergence > 0
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    expected.backward()
    for name, parameter in model.named_parameters():
        if name in found:
            assert parameter.grad is not None and torch.allclose(found[name], parameter.grad, atol=1e-5), name


@pytest.mark.parametrize("replayed", [False, True])
def test_none_or_all_of_a_micro_batch(models: dict[str, Path], replayed: bool) -> None:
    """The LLM runs for the lesson in every micro-batch: under ZeRO-3 a rank that left it out would hang the others."""
    model, _, rows, batch = made(models, [replayed] * 3)
    assert batch.lesson is not None and batch.taught is not None
    assert batch.taught_tokens == len(batch.taught) == replayed * sum(len(row.target) for row in rows)
    passes = []
    hook = model.llm.model.get_input_embeddings().register_forward_hook(lambda *_: passes.append(1))
    loss, right, kl = model(batch, counted=True)
    hook.remove()
    assert len(passes) == 2 and right >= 0
    if replayed:
        assert loss.item() == pytest.approx(WEIGHT * TEMPERATURE**2 * kl.item(), rel=1e-6)
    else:
        plain = dataclasses.replace(batch, lesson=None, taught=None)
        assert kl == 0 and torch.equal(loss, model(plain))
    loss.backward()  # also where nothing is selected


def test_what_does_not_go_with_it(models: dict[str, Path]) -> None:
    names = ModelConfig(encoder=str(models["encoder"]), llm=str(models["llm"]))
    with pytest.raises(ConfigError, match=r"data.replay is 0.5, in which the LLM as it is teaches.* set data.replay=0"):
        check(Config(model=names, data=DATA, lora=LoraConfig(rank=4)))
    with pytest.raises(ConfigError, match=r"data.replay is 0.5 and data.objective is self_teaching"):
        check(Config(model=names, data=dataclasses.replace(DATA, objective="self_teaching")))
    # Runs without a bridge, such as a first stage, take the recipe as it is.
    assert DATA.taught_share(bridge=False) == 0
    alone = ModelConfig(encoder="none", llm=str(models["llm"]))
    check(Config(model=alone, data=dataclasses.replace(DATA, objective="prefix_lm"), lora=LoraConfig(rank=4)))


def test_no_other_column_is_read(models: dict[str, Path]) -> None:
    """Shards may hold a `text` that the objective does not name: nothing has checked it."""
    tokenizers = load_tokenizers(ModelConfig(encoder=str(models["encoder"]), llm=str(models["llm"])))
    (number,) = drawn([True])
    samples = [{"source": "a dog", "target": "Neutral"} | more for more in ({}, {"text": 5}, {"text": " "})]
    found = [tokenize_samples([of], tokenizers, DATA, epochs=[0], numbers=[number])[0] for of in samples]
    assert isinstance(found[0], TokenizedSample) and found[0] == found[1] == found[2]
    assert found[0].lesson == found[0].prompt == tokenizers.prompts(["a dog"])[0]
