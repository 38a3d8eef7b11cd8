"""Converted checkpoints give the peers' logits, from the encoder's ids to the LLM's head, in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.load import load_run_config
from bridge_ds.config.schema import Config
from bridge_ds.convert import SOURCES
from bridge_ds.convert.job import prepare
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.inference.load import load_trained
from tests import tiny
from tests.convert import peers, saved
from tests.samples import tokenize_sample

SAMPLES = [
    {"source": "the cat sat on the mat", "target": "Entailment"},
    {"source": "a dog", "target": "Neutral", "prompt": "Premise: it was wet Label:"},
    {"source": "one river\nof rain  and a bridge\tthat joins two banks", "target": "Contradiction"},
]
TOLERANCE = 1e-5


def converted(source: str, checkpoint: Path, output: Path, *settings: str, **options: object) -> Path:
    """Convert in float32; the run folder."""
    overrides = ["model.dtype=float32", *settings]
    prepare(SOURCES[source], checkpoint, overrides=overrides, **options).write(output)  # type: ignore[arg-type]
    return output


def loaded(run: Path) -> tuple[BridgeModel, Tokenizers, Config]:
    config = load_run_config(run)
    model, tokenizers, _ = load_trained(run, config, torch.device("cpu"), note=pytest.fail)
    return model, tokenizers, config


def batches(tokenizers: Tokenizers, config: Config) -> tuple[list[Batch], Batch]:
    """Each sample alone, and all together."""
    rows = [tokenize_sample(sample, tokenizers, config.data) for sample in SAMPLES]
    pads = tokenizers.encoder_pad_id, tokenizers.pad_id
    return [collate([row], *pads) for row in rows], collate(rows, *pads)


@torch.no_grad()
def our_logits(model: BridgeModel, batch: Batch) -> list[torch.Tensor]:
    """[X, V] of each row, without padding."""
    spliced = model.spliced(batch)
    with model.llm.attending(spliced.injected):
        logits = model.llm.model(inputs_embeds=spliced.embeds_BXH).logits
    return [row[mask.bool()] for row, mask in zip(logits, spliced.mask_BX, strict=True)]


def agree(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < TOLERANCE


@torch.no_grad()
def agrees_with_langbridge(run: Path, peer: peers.LangBridgeModel) -> Tokenizers:
    model, tokenizers, config = loaded(run)
    singles, together = batches(tokenizers, config)
    rows = our_logits(model, together)
    for alone, row in zip(singles, rows, strict=True):
        text = torch.cat([torch.tensor([[tokenizers.bos_id]]), alone.target_ids], dim=1)
        expected = peer(alone.source_ids, text)[0]
        agree(our_logits(model, alone)[0], expected)
        agree(row, expected)
    return tokenizers


def stir(module: torch.nn.Module) -> None:
    """As if trained a little."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))


@pytest.mark.parametrize(
    ("kind", "ours", "save"),
    [
        ("linear", "linear", saved.safetensors),
        ("ffn", "mlp_gelu", saved.parts),
        ("latent5x1", "latent", saved.safetensors),
        ("latent3x2", "latent", saved.parts),
    ],
)
def test_langbridge_with_its_encoder_frozen(
    models: dict[str, Path], tmp_path: Path, kind: str, ours: str, save
) -> None:
    torch.manual_seed(0)
    peer = peers.LangBridgeModel(models["encoder"], models["llm"], kind)
    names = {name: str(path) for name, path in models.items()}
    run = converted(
        "langbridge", save(peer.state_dict(), tmp_path / "peer"), tmp_path / "run", add_tokens=False, **names
    )
    config = load_run_config(run)
    assert (config.model.encoder, config.model.llm) == (names["encoder"], names["llm"])
    assert (config.mapping.kind, config.fusion.name) == (ours, "last_layer")
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints", "config.yaml"]
    agrees_with_langbridge(run, peer)


def test_langbridge_with_a_trained_encoder_and_its_white_space(
    roomy: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(1)
    peer = peers.LangBridgeModel(roomy["encoder"], roomy["llm"], "linear")
    stir(peer.lb.enc)
    checkpoint = saved.whole(peer.state_dict(), tmp_path / "peer")
    named = f'{{"enc": "{roomy["encoder"]}", "lm": "{roomy["llm"]}", "alignments": "linear"}}'
    (tmp_path / "peer" / "config.json").write_text(named)
    with caplog.at_level("INFO", "bridge_ds.convert"):
        run = converted("langbridge", checkpoint, tmp_path / "run")
    assert len(caplog.messages) == 2 and str(roomy["encoder"]) in caplog.messages[0]
    config = load_run_config(run)
    assert config.model.encoder == str(run / "encoder")
    assert config.model.llm == str(roomy["llm"])
    tokenizers = agrees_with_langbridge(run, peer)
    # The tokens are those that LangBridge adds, behind all others and in its order; newline is one of them.
    known = tokenizers.encoder.get_vocab()
    added = sorted((known[token], token) for token in SOURCES["langbridge"].added_tokens)
    assert [number for number, _ in added] == list(range(len(known) - 8, len(known)))
    assert [token for _, token in added] == ["\t", "\n", "\r", "\x0b", "\x0c", "  ", "   ", "    "]
    assert known["\n"] in tokenizers.source_ids("one\ntwo")


def test_langbridge_with_a_trained_llm(models: dict[str, Path], tmp_path: Path) -> None:
    torch.manual_seed(2)
    peer = peers.LangBridgeModel(models["encoder"], models["llm"], "linear")
    stir(peer.lb.lm)
    names = {name: str(path) for name, path in models.items()}
    checkpoint = saved.safetensors(peer.state_dict(), tmp_path / "peer")
    run = converted("langbridge", checkpoint, tmp_path / "run", add_tokens=False, **names)
    assert load_run_config(run).model.llm == str(run / "llm")
    agrees_with_langbridge(run, peer)


@torch.no_grad()
def agrees_with_merger(run: Path, peer: peers.MindMerger) -> None:
    model, tokenizers, config = loaded(run)
    _, batch = batches(tokenizers, config)
    texts = [batch.prompt_ids, batch.prompt_mask] if config.data.augment_prompt else []
    assert tokenizers.bos_id is not None
    expected = peer(
        batch.source_ids, batch.source_mask, tokenizers.bos_id, *texts, batch.target_ids, batch.target_mask
    )  # fmt: skip
    for ours, theirs in zip(our_logits(model, batch), expected, strict=True):
        agree(ours, theirs[len(theirs) - len(ours) :])


@pytest.mark.parametrize(("name", "augmented"), [("mlp", True), ("linear", False)])
def test_mindmerger(models: dict[str, Path], tmp_path: Path, name: str, augmented: bool) -> None:
    torch.manual_seed(3)
    peer = peers.MindMerger(models["encoder"], models["llm"], name)
    checkpoint = saved.wrapped(peer.mapping.state_dict(), tmp_path / "peer")
    names = {part: str(path) for part, path in models.items()}
    settings = [] if augmented else ["data.augment_prompt=false"]
    run = converted("mindmerger", checkpoint, tmp_path / "run", *settings, **names)
    assert load_run_config(run).data.augment_prompt == augmented
    agrees_with_merger(run, peer)


@torch.no_grad()
@pytest.mark.parametrize(
    ("structure", "layers", "states"), [("Linear", (0, 1), tiny.LAYERS), ("MLP", (1,), tiny.LAYERS + 1)]
)
def test_layalign(
    models: dict[str, Path], tmp_path: Path, structure: str, layers: tuple[int, ...], states: int
) -> None:
    torch.manual_seed(5)
    peer = peers.LayAlign(models["encoder"], models["llm"], structure, layers, states).eval()
    names = {part: str(path) for part, path in models.items()}
    run = converted("layalign", saved.whole(peer.state_dict(), tmp_path / "peer"), tmp_path / "run", **names)
    model, tokenizers, config = loaded(run)
    assert config.injection.form == "every_layer" and config.injection.llm_layers == layers
    assert tokenizers.bos_id is not None
    for batch in batches(tokenizers, config)[0]:  # row by row: it attends to the padding of a batch
        expected = peer(
            batch.source_ids, batch.source_mask, tokenizers.bos_id, batch.prompt_ids, batch.prompt_mask,
            batch.target_ids, batch.target_mask,
        )  # fmt: skip
        (ours,) = our_logits(model, batch)
        agree(ours, expected[0])
        with model.llm.attending(None):
            assert (model.llm.model(inputs_embeds=model.spliced(batch).embeds_BXH).logits[0] - ours).abs().max() > 0.01


@pytest.mark.parametrize("fusion", ["global_softmax", "transformer_softmax", "layer_attention", "last_layer"])
@pytest.mark.parametrize("prompt", [True, False])
def test_the_paper(models: dict[str, Path], tmp_path: Path, fusion: str, prompt: bool) -> None:
    torch.manual_seed(4)
    peer = peers.MPTModel(models["encoder"], models["llm"], fusion).eval()
    checkpoint = (saved.parts if prompt else saved.whole)(peer.state_dict(), tmp_path / "peer")
    names = {part: str(path) for part, path in models.items()}
    run = converted("paper", checkpoint, tmp_path / "run", f"data.augment_prompt={prompt}", **names)
    assert load_run_config(run).fusion.name == fusion
    agrees_with_merger(run, peer)
