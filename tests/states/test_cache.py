"""A step that reads the encoder's states from disk has the loss and gradients of one that computes them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.config.load import load_config
from bridge_ds.data.loading.batch import StepBatches
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.encoder.absent import AbsentEncoder
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.setup import build_model, make_optimizer
from bridge_ds.engine.step import encoded
from bridge_ds.errors import DataError, TrainingError
from bridge_ds.states.cache import StatesCache, encoder_key, is_complete, mark_complete, open_cache, texts_key
from bridge_ds.world import World
from tests import tiny
from tests.conftest import WORDS
from tests.made import on_bases

STEPS = 20
EPOCH = 12
"""Steps that the 48 samples last."""


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    rows = [
        {"source": " ".join(draw.choices(WORDS, k=draw.randint(1, 20))), "target": draw.choice(["good", "day"])}
        for _ in range(4 * EPOCH)
    ]
    folder = tmp_path_factory.mktemp("few") / "shards"
    pack_rows(rows, folder, samples_per_shard=20)
    return folder


class Trained:
    """A run's steps in this process, once without and then with states that are kept."""

    def __init__(self, models: dict[str, Path], few: Path, root: Path, packed: bool, *settings: str) -> None:
        base = on_bases(
            models, f"data.shards={few}", "data.workers=0", "train.global_batch=4", "train.micro_batch=4",
            f"train.steps={STEPS}", "data.max_source_tokens=60", "fusion.dropout=0", "train.lr=1e-3",
            f"data.states_cache={root / 'states'}",
        )  # fmt: skip
        self.config = load_config("testbed", [*base, *settings])
        self.tokenizers = load_tokenizers(self.config.model, data=self.config.data)
        # Costs by which a micro-batch has several groups of rows, however small the models are.
        packing = Packing(llm_keys=100, encoder_keys=100, encoder_call=1) if packed else None
        corpus = open_corpus(self.config.data, 0, World())
        self.steps = list(make_loader(self.config, World(), self.tokenizers, 0, corpus=corpus, packing=packing))
        groups = [len(batch.layout.groups) for step in self.steps for batch in step.micro if batch.layout]
        assert max(groups) > 1 if packed else not any(groups)

    def cache(self, encoder: Any) -> StatesCache:
        return StatesCache(open_cache(self.config, encoder_key(self.config)), encoder, self.config)

    def train(self, kept: bool, steps: list[StepBatches]) -> tuple[list[float], list[torch.Tensor], list[int]]:
        """Losses, gradients and samples that were computed, of each step."""
        model = build_model(self.config, self.tokenizers.bos_id).train()
        model.mapping.scale.fill_(0.1)
        optimizer = make_optimizer(model, self.config)
        cache = self.cache(model.encoder) if kept else None
        losses, gradients, unread = [], [], []
        for step in steps:
            found = cache.read(step.micro) if cache else []
            unread.append(sum(each.missing for each in found))
            states = encoded(model, step.micro, found, unread[-1]) if cache else [None] * len(step.micro)
            optimizer.zero_grad()
            loss = sum((model(*each) for each in zip(step.micro, states, strict=True)), torch.zeros(()))
            (loss / sum(batch.target_tokens for batch in step.micro)).backward()
            parts = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
            losses.append(float(loss.detach()))
            gradients.append(torch.cat(parts))
            optimizer.step()
        return losses, gradients, unread


@pytest.mark.parametrize(
    ("kind", "fusion", "packed"),
    [("mt5", "transformer_softmax", True), ("xlm-roberta", "last_layer", False), ("m2m_100", "global_softmax", True)],
)
def test_twenty_steps_agree_over_two_epochs(
    models: dict[str, Path], few: Path, tmp_path: Path, kind: str, fusion: str, packed: bool
) -> None:
    models = models | {"encoder": tiny.make_encoder(kind, tmp_path / "encoder")}
    more = ["fusion.include_embeddings=true"] if fusion == "global_softmax" else []
    run = Trained(models, few, tmp_path, packed, f"fusion.name={fusion}", *more)
    absent, loaded = AbsentEncoder(run.config.model), load_encoder(run.config.model)
    assert (absent.blocks, absent.width, absent.vocab_size) == (tiny.LAYERS, tiny.D, loaded.vocab_size)
    assert not list(absent.parameters())
    plain, kept = (run.train(kept, run.steps) for kept in (False, True))
    # In the first epoch they are computed, a text that comes twice once; then none is.
    assert kept[2][0] == 4 and 40 < sum(kept[2]) <= 48 and not any(kept[2][EPOCH:])
    assert plain[0][0] == kept[0][0] and torch.equal(plain[1][0], kept[1][0])
    for one, other in zip(plain[0], kept[0], strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    for step, (one, other) in enumerate(zip(plain[1], kept[1], strict=True)):
        # Twenty updates carry the rounding of the first ones along.
        assert float((one - other).norm() / one.norm()) < (1e-6 if step == EPOCH else 1e-5)
    # What is read is what was used, in every bit.
    if packed:
        return
    again = run.train(True, run.steps)
    assert again[0] == kept[0] and not any(again[2])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_states_are_kept_in_every_bit(models: dict[str, Path], few: Path, tmp_path: Path, dtype: str) -> None:
    run = Trained(models, few, tmp_path, True, f"model.dtype={dtype}")
    model = build_model(run.config, run.tokenizers.bos_id)
    cache = run.cache(model.encoder)
    absent = AbsentEncoder(run.config.model)
    without = run.cache(absent)
    micro = [*run.steps[0].micro, *run.steps[1].micro]
    with pytest.raises(DataError, match=r"lacks the encoder's states of 8 samples of a step.*remove .*complete-"):
        without.read(micro)
    plain = [model.encode(batch) for batch in micro]
    for each in (encoded(model, micro, cache.read(micro), 8), encoded(model, micro, without.read(micro))):
        for batch, wanted, states in zip(micro, plain, each, strict=True):
            real = batch.source_mask.bool()
            assert states is not None and len(states) == len(wanted) == tiny.LAYERS
            assert all(torch.equal(one[real], other[real]) for one, other in zip(wanted, states, strict=True))
    # The last layer alone takes a third of it, in a folder of its own.
    last = Trained(models, few, tmp_path, True, f"model.dtype={dtype}", "fusion.name=last_layer")
    assert encoder_key(last.config) != encoder_key(run.config)
    assert last.cache(absent).bytes_per_token * tiny.LAYERS == cache.bytes_per_token
    assert cache.bytes_per_token == tiny.LAYERS * tiny.D * (2 if dtype == "bfloat16" else 4)
    assert f"{cache.kept} states of {cache.bytes_per_token} bytes a token" in cache.describe(9.4, 150)


def test_states_of_another_dtype_are_not_kept(models: dict[str, Path], few: Path, tmp_path: Path) -> None:
    run = Trained(models, few, tmp_path, False)
    model = build_model(run.config, run.tokenizers.bos_id)
    model.encoder.double()
    cache, micro = run.cache(model.encoder), run.steps[0].micro
    with pytest.raises(TrainingError, match=r"states of torch.float64 in a run of torch.float32"):
        encoded(model, micro, cache.read(micro), 1)


def test_what_does_not_fit_is_computed(models: dict[str, Path], few: Path, tmp_path: Path) -> None:
    limit = 200_000
    run = Trained(models, few, tmp_path, True, f"data.states_cache_gib={limit / 2**30}", "train.lr=0")
    kept = run.train(True, run.steps[: EPOCH + 3])
    written = sum(path.stat().st_size for path in tmp_path.glob("states/*/*.states"))
    assert limit / 2 < written <= limit
    assert 0 < sum(kept[2][EPOCH:]) < 12
    plain = run.train(False, run.steps[EPOCH : EPOCH + 3])
    assert kept[0][EPOCH:] == pytest.approx(plain[0], rel=1e-6)
    again = run.train(True, run.steps[EPOCH : EPOCH + 3])
    assert (again[0], again[2]) == (kept[0][EPOCH:], kept[2][EPOCH:])


def test_keys_say_what_a_run_may_read(models: dict[str, Path], few: Path, tmp_path: Path) -> None:
    other = tiny.make_encoder("bert", tmp_path / "bert")

    def keys(*settings: str) -> tuple[str, str]:
        base = [
            f"model.encoder={models['encoder']}",
            f"model.llm={models['llm']}",
            f"data.shards={few}",
            "data.validation_percent=0",
        ]
        config = load_config("testbed", [*base, *settings])
        tokenizers = load_tokenizers(config.model, data=config.data)
        return encoder_key(config), texts_key(config, tokenizers.encoder, open_corpus(config.data, 0, World()).identity)

    encoder, texts = keys()
    for same in ("run.seed=3", "fusion.name=global_softmax", "data.bos=never", "train.micro_batch=1", "lora.rank=2"):
        assert keys(same) == (encoder, texts)
    for setting, changes in {
        f"model.encoder={other}": (True, False), "model.dtype=bfloat16": (True, False),
        "fusion.name=last_layer": (True, False), "fusion.include_embeddings=true": (True, False),
        "data.max_source_tokens=9": (False, True), "data.truncation_side=left": (False, True),
        "data.validation_percent=9": (False, True),
    }.items():  # fmt: skip
        found = keys(setting)
        assert (found[0] != encoder, found[1] != texts) == changes, setting
    # It decides the order, and so which of the held-out samples are the first ones.
    assert keys("data.shuffle_shards=3") == (encoder, texts)
    assert keys("data.shuffle_shards=3", "data.validation_percent=9")[1] != keys("data.validation_percent=9")[1]


def test_complete_is_what_all_parts_have_finished(tmp_path: Path) -> None:
    for part, parts in ((1, 2), (0, 3), (1, 3), (0, 2)):
        assert not is_complete(tmp_path, "a")
        mark_complete(tmp_path, "a", part, parts, {})
    assert is_complete(tmp_path, "a") and not is_complete(tmp_path, "b")
    (tmp_path / "complete-a-1-of-2.json").unlink()
    assert not is_complete(tmp_path, "a")
