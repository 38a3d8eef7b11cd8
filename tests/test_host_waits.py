"""A micro-batch, forward and backward, never makes the host wait for the device: for every fusion and family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.schema import (
    Config,
    DataConfig,
    EncoderConfig,
    FusionConfig,
    LoraConfig,
    MappingConfig,
    ModelConfig,
)
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.collate import collate, unwrap, wrap
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.engine.setup import build_model
from bridge_ds.fusion.kernels.rows import real_rows
from bridge_ds.llm.loss import predicting
from bridge_ds.llm.splice import Segment, splice
from tests import tiny
from tests.host_waits import HostWait, NoHostWait
from tests.samples import tokenize_sample

SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "a dog", "target": "Neutral"},
    {"source": "one river of rain and a bridge that joins two banks", "target": "Contradiction"},
]
PAIRS = [(encoder, "llama") for encoder in tiny.ENCODERS] + [("mt5", llm) for llm in tiny.LLMS]
TOKEN = FusionConfig(backend="torch", heads=2, state_norm="rms")
LAYER = FusionConfig(name="global_softmax", backend="torch")
LAST = FusionConfig(name="last_layer")
QUERY = FusionConfig(name="layer_attention", backend="torch", state_norm="rms")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("families")
    made = {kind: tiny.make_encoder(kind, root / kind) for kind in tiny.ENCODERS}
    return made | {kind: tiny.make_llm(kind, root / kind) for kind in tiny.LLMS}


def make(
    folders: dict[str, Path],
    encoder: str = "mt5",
    llm: str = "llama",
    samples: list[dict[str, str]] = SAMPLES,
    *,
    prompt: bool = True,
    head: tuple[int, ...] = (),
    checkpointing: bool = False,
    trained: EncoderConfig | None = None,
    **parts: Any,
) -> tuple[BridgeModel, Batch]:
    """A model in training mode, and a batch as the loader hands it out."""
    names = ModelConfig(
        encoder=str(folders[encoder]), llm=str(folders[llm]), dtype="float32", activation_checkpointing=checkpointing
    )
    parts = {"fusion": FusionConfig(backend="torch"), "encoder": trained or EncoderConfig(), **parts}
    config = Config(model=names, **parts)
    tokenizers = load_tokenizers(config.model)
    model = build_model(config, tokenizers.bos_id).train()
    rows = [tokenize_sample(sample, tokenizers, DataConfig(augment_prompt=prompt)) for sample in samples]
    rows = [replace(row, head=head) for row in rows]
    made = {"opening": tokenizers.bos_id is not None, "fixed_length": config.mapping.fixed_length}
    batch = collate(rows, tokenizers.encoder_pad_id, tokenizers.pad_id, **made)
    return model, unwrap(wrap(StepBatches(1, [batch], "", 0))).micro[0]


def step(model: BridgeModel, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and the gradients, with the same dropout each time."""
    torch.manual_seed(3)
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[:1]], ids=["padded", "full"])
@pytest.mark.parametrize(("encoder", "llm"), PAIRS)
def test_no_family_waits(folders: dict[str, Path], encoder: str, llm: str, samples: list[dict[str, str]]) -> None:
    model, batch = make(folders, encoder, llm, samples)
    assert bool(batch.source_mask.all()) == (len(samples) == 1)
    with NoHostWait() as mode:
        loss, gradients = step(model, batch)
    assert mode.operators > 500
    # What is known beforehand changes no bit of the result.
    expected, wanted = step(model, replace(batch, layout=None))
    assert torch.equal(loss, expected)
    assert gradients.keys() == wanted.keys() and all(torch.equal(gradients[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(
    "parts",
    [
        {"fusion": TOKEN},
        {"fusion": LAYER},
        {"fusion": LAST},
        {"head": (2, 5, 9, 6)},
        {"checkpointing": True, "prompt": False},
        {"lora": LoraConfig(rank=2, dropout=0.1), "checkpointing": True, "fusion": LAYER},
        {"lora": LoraConfig(rank=2, bias="all"), "llm": "qwen2", "fusion": QUERY},
        {"mapping": MappingConfig(kind="latent", latents=3), "fusion": QUERY},
        {"trained": EncoderConfig(trainable=True, dropout=True, activation_checkpointing=True), "fusion": LAYER},
        {"trained": EncoderConfig(trainable=True), "fusion": TOKEN},
    ],
    ids=[
        "heads-rms",
        "by-layer",
        "last",
        "chat-template",
        "recomputed",
        "lora",
        "biases",
        "latent",
        "encoder-recomputed",
        "encoder",
    ],
)
def test_nothing_that_can_be_chosen_waits(folders: dict[str, Path], parts: dict[str, Any]) -> None:
    model, batch = make(folders, **parts)
    with NoHostWait():
        step(model, batch)


@pytest.mark.parametrize("fusion", [FusionConfig(backend="torch"), TOKEN, LAYER, LAST, QUERY], ids=lambda f: f.name)
def test_no_value_is_needed(folders: dict[str, Path], fusion: FusionConfig) -> None:
    """On torch's meta device tensors have no values; whatever asks for one fails, `.tolist()` and `.cpu()` too."""
    model, batch = make(folders, fusion=fusion)
    model.to("meta")
    model(batch.to("meta")).backward()
    assert all(p.grad is not None and p.grad.is_meta for p in model.parameters() if p.requires_grad)
    with pytest.raises(RuntimeError):
        model(replace(batch, layout=None).to("meta"))


MASK = torch.tensor([[True, False], [True, True]])


@pytest.mark.parametrize(
    "wait",
    [
        lambda: MASK.nonzero(),
        lambda: MASK.float()[MASK],
        lambda: MASK.float().masked_select(MASK),
        lambda: MASK.sum().item(),
        lambda: bool(MASK.all()),
        lambda: torch.zeros(2, 2).index_put_((MASK,), torch.ones(3)),
        lambda: torch.ones(2).repeat_interleave(torch.tensor([1, 2])),
        lambda: torch.equal(MASK, MASK),
        lambda: torch.zeros(2, 2, requires_grad=True)[MASK].sum().backward(),
        lambda: real_rows(MASK),
        lambda: splice([Segment(torch.zeros(2, 2, 3), MASK)]),
        lambda: predicting(torch.ones(2, 2, dtype=torch.long)),
    ],
)
def test_a_wait_is_refused(wait: Callable[[], object]) -> None:
    wait()
    with pytest.raises(HostWait), NoHostWait():
        wait()


def test_models_that_are_not_told_wait(folders: dict[str, Path]) -> None:
    """What bridge_ds.compat.masks_known is for: transformers looks. Where this fails, it can go."""
    model, batch = make(folders)
    for call in (
        lambda: model.encoder(batch.source_ids, batch.source_mask),
        lambda: model.llm.model(inputs_embeds=model.llm.embed(batch.target_ids), use_cache=False),
    ):
        with pytest.raises(HostWait, match="masking_utils"), NoHostWait():
            call()
    # And after a forward pass of ours they look again.
    model(batch)
    with pytest.raises(HostWait, match="masking_utils"), NoHostWait():
        model.encoder(batch.source_ids, batch.source_mask)
