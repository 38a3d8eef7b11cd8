"""Joined rows, rows of an encoder in groups and a trimmed last layer give the losses and gradients of padded rows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf

from bridge_ds.bridge import BridgeModel, build_bridge
from bridge_ds.config.schema import Config, EncoderConfig, FusionConfig, LlmConfig, LoraConfig, ModelConfig, TrainConfig
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.collate import collate, unwrap, wrap
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.inference.score import read_prefix
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import add_lora
from bridge_ds.llm.packed import packs_and_trims
from bridge_ds.llm.packing import packing_of
from tests import tiny
from tests.host_waits import NoHostWait

LLMS = {"llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": 6}, "gemma2": {"sliding_window": 6},
        "gemma3": {"sliding_window": 6}, "gpt2": {}}  # fmt: skip
"""Families that pack, and settings that let a window end within a row."""
ENCODERS = "mt5", "xlm-roberta", "m2m_100"
EMPTY = TokenizedSample([0], [], [], ())
RAGGED = [
    TokenizedSample([5, 9, 14, 7, 8, 21, 30, 11, 1], [], [40, 41, 1], ()),
    EMPTY,
    TokenizedSample([6, 1], [12, 13, 14], [9], ()),
    TokenizedSample([1], [17], [22, 1], (), head=(2, 4, 5)),
    TokenizedSample([7, 6, 5, 1], [], [8, 10, 12, 1], ()),
    TokenizedSample([31, 18, 12, 44, 45, 46, 1], [19, 20], [33, 1], ()),
]
SHAPES = {"ragged": RAGGED, "one": RAGGED[:1], "same": RAGGED[:1] * 3, "no targets": [EMPTY, EMPTY], "short": [
    TokenizedSample([1], [], [8], ()), TokenizedSample([6, 1], [], [9], ())]}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("packing")
    made = {kind: tiny.make_encoder(kind, root / kind) for kind in ENCODERS}
    return made | {kind: tiny.make_llm(kind, root / kind, **more) for kind, more in (LLMS | {"bloom": {}}).items()}


def make(
    folders: dict[str, Path], source: str = "mt5", family: str = "mistral", recompute: bool = False, **sections: Any
) -> tuple[BridgeModel, Config]:
    names = ModelConfig(
        encoder=str(folders[source]), llm=str(folders[family]), dtype="float32", activation_checkpointing=recompute
    )
    config = Config(model=names, **{"fusion": FusionConfig(backend="torch")} | sections)
    encoder_part, llm = load_encoder(config.model, config.encoder), load_llm(config.model, config.llm)
    model = build_bridge(config, encoder_part, llm, bos=2)
    add_lora(model.llm, config.lora, 0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    return model.train(), config


def batch_of(rows: list[TokenizedSample], packing: Packing | None) -> Batch:
    """As the loader hands it out."""
    return unwrap(wrap(StepBatches(1, [collate(rows, 0, 0, True, 0, packing)], "", 0))).micro[0]


def step(model: BridgeModel, batch: Batch) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)  # the fusion's dropout
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    return {"loss": loss.detach()} | {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def differs(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Relative difference of the loss or of all gradients (norm of the difference over norm), the larger one."""
    assert found.keys() == wanted.keys()
    both = [
        torch.cat([each[name].double().flatten() for name in sorted(wanted) if name != "loss"])
        for each in (found, wanted)
    ]
    of_loss = (found["loss"] - wanted["loss"]).abs() / wanted["loss"].abs().clamp(min=1)
    return max(float(of_loss), float((both[0] - both[1]).norm() / both[1].norm().clamp(min=1e-6)))


PACKED = Packing(llm_keys=1e6, encoder_keys=1e6, encoder_call=1e-3)
"""Everything in one sequence, each length a group."""


@pytest.mark.parametrize(
    ("encoder", "llm"), [*(("mt5", llm) for llm in LLMS), *((encoder, "llama") for encoder in ENCODERS[1:])]
)
def test_packed_rows_are_padded_ones(folders: dict[str, Path], encoder: str, llm: str) -> None:
    model, config = make(folders, encoder, llm)
    assert (model.llm.behavior.packs, model.llm.behavior.trims) == (True, True)
    chosen = packing_of(config, "cpu")
    assert chosen and chosen.llm_keys > 0 and chosen.llm_scores == (llm == "gemma2")
    for name, rows in SHAPES.items():
        wanted = step(model, batch_of(rows, None))
        for packing in (PACKED, replace(PACKED, llm_keys=20.0))[: 1 + (rows is RAGGED)]:
            batch = batch_of(rows, packing)
            with NoHostWait():
                found = step(model, batch)
            worst = differs(found, wanted)
            assert worst < 1e-6, (name, packing)


@pytest.mark.parametrize("parts", [
    {"recompute": True}, {"recompute": True, "family": "gpt2"}, {"lora": LoraConfig(rank=2)},
    {"llm": LlmConfig(trainable=True), "recompute": True}, {"encoder": EncoderConfig(trainable=True)},
    {"fusion": FusionConfig(name="last_layer")},
], ids=["recomputed", "recomputed-gpt2", "lora", "llm", "encoder", "last"])  # fmt: skip
def test_whatever_is_trained(folders: dict[str, Path], parts: dict[str, Any]) -> None:
    model, _ = make(folders, **parts)
    wanted = step(model, batch_of(RAGGED, None))
    worst = differs(step(model, batch_of(RAGGED, PACKED)), wanted)
    assert worst < 1e-6


def test_what_cannot_be_packed_is_padded(folders: dict[str, Path]) -> None:
    def packing(llm: str = "llama", device: str = "cpu", dtype: str = "float32", **sections: Any) -> Packing | None:
        names = ModelConfig(encoder=str(folders["mt5"]), llm=str(folders[llm]), dtype=dtype)  # type: ignore[arg-type]
        return packing_of(Config(model=names, **sections), device)

    whole, bloom = packing(), packing("bloom")
    assert whole and bloom and whole.llm_keys == (4 * tiny.H + 3 * 48) / (2 * 3.0)
    assert whole.encoder_keys == (4 * tiny.D + 3 * 32) / (2 * 3.0)
    assert whole.encoder_call == pytest.approx(1e8 / (2 * tiny.D * (4 * tiny.D + 3 * 32)))
    assert bloom == replace(whole, llm_keys=0.0, llm_scores=True)  # its positions are a bias by place
    for encoder in (EncoderConfig(trainable=True), EncoderConfig(dropout=True)):
        assert packing(encoder=encoder) == replace(whole, encoder_keys=0.0, encoder_call=0.0)
    assert packing(dtype="bfloat16") == replace(whole, llm_keys=pytest.approx(17.0))  # attention gains nothing by it
    assert packing(train=TrainConfig(packing=False)) is None
    assert packing(device="cuda") is None
    assert packing(device="cuda", train=TrainConfig(packing=True)) is not None
    batch = batch_of(RAGGED, bloom)
    assert batch.layout and batch.layout.packed is None


def test_a_sequence_may_be_longer_than_the_table_of_positions() -> None:
    """Or its rows are padded: GPT-Neo's causal mask is a table too. GPT-2's ids restart with each row."""
    common: dict[str, Any] = {"vocab_size": 128, "hidden_size": 32, "num_layers": 2, "num_heads": 2}
    neo = tf.GPTNeoConfig(**common, max_position_embeddings=40, attention_types=[[["global", "local"], 1]])
    row = torch.arange(25)[None]
    with torch.no_grad(), pytest.raises(RuntimeError):
        tf.GPTNeoForCausalLM(neo)(input_ids=torch.cat([row, row], 1), position_ids=torch.cat([row, row], 1))
    assert packs_and_trims(tf.GPTNeoForCausalLM, neo) == (False, False)
    gpt2 = tf.GPT2Config(vocab_size=128, n_embd=32, n_layer=2, n_head=2, n_positions=40)
    assert packs_and_trims(tf.GPT2LMHeadModel, gpt2) == (True, True)


def test_no_value_of_a_packed_batch_is_needed(folders: dict[str, Path]) -> None:
    """As on a GPU: torch's meta device has no values to wait for."""
    model, _ = make(folders)
    batch = batch_of(RAGGED, PACKED).to("meta")
    assert batch.layout and batch.layout.groups and batch.layout.packed
    model.to("meta")(batch).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters() if p.requires_grad)


def test_the_last_layer_runs_at_wanted_positions_in_training_and_scoring(folders: dict[str, Path]) -> None:
    model, _ = make(folders, family="llama")
    seen: list[list[int]] = []
    for layer in model.llm.model.model.layers:
        layer.mlp.register_forward_hook(lambda _module, _inputs, out: seen.append(list(out.shape[:2])))
    batch = batch_of(RAGGED, PACKED)
    step(model, batch)
    assert batch.layout and seen == [list(batch.layout.order.shape), [1, batch.target_tokens]]
    prefix = model.prefix(replace(batch, layout=None))
    rows, length = prefix.mask_BX.shape
    assert not prefix.mask_BX.all()
    del seen[:]
    logits, cache = read_prefix(model.llm, prefix)
    assert seen == [[rows, length], [rows, 1]] and cache.layers[1].keys.shape[2] == length  # type: ignore[attr-defined]
    model.llm.behavior = replace(model.llm.behavior, trims=False)
    whole, kept = read_prefix(model.llm, prefix)
    assert torch.allclose(logits, whole, atol=1e-6)
    assert torch.equal(cache.layers[1].values, kept.layers[1].values)  # type: ignore[attr-defined]
