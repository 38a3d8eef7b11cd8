"""A run folder with a checkpoint, made in a second: the bridge as its seed makes it, and noise on a trained base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint.load import trained_tensors
from bridge_ds.checkpoint.save import Snapshot, write
from bridge_ds.config.load import load_config, save_config, to_dict
from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.plan import order_of
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.convention import settled
from bridge_ds.engine.setup import base_identities, build_model
from bridge_ds.harness.answerer import Answerer
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.prompt import PromptBuilder


def harness_answerer(
    model: BridgeModel, tokenizers: Tokenizers, data: DataConfig, bridge: bool = True, end_token: bool = True
) -> Answerer:
    """The harness around a loaded model, as its constructor makes it of a run."""
    prompts = PromptBuilder.of(data, tokenizers, model.llm.positions, model.soft_prompt, bridge=bridge)
    return Answerer(Generator(model, tokenizers, bridge=bridge), prompts, end_token)


def on_bases(models: Mapping[str, Path], *settings: str) -> list[str]:
    """Settings of a run on the small models of that fixture, in float32, and more."""
    return [f"model.encoder={models['encoder']}", f"model.llm={models['llm']}", "model.dtype=float32", *settings]


def make_run(
    folder: Path, settings: list[str], scale: float = 0.1, change: Callable[[BridgeModel], None] = lambda _: None
) -> Path:
    """Write `folder` as a training run would, after no step.

    Args:
        settings: `key=value` over the testbed's recipe.
        scale: mapping.scale, so that soft tokens are about as large as the LLM's own.
        change: sets what the run is to have trained.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config("testbed", [*settings, f"run.output={folder}"])
    tokenizers = load_tokenizers(config.model, data=config.data)
    config = replace(config, data=settled(config.data, tokenizers))
    model = build_model(config, tokenizers.bos_id)
    with torch.no_grad():
        if model.makes_prompt:
            model.mapping.scale.fill_(scale)
        for name, tensor in trained_tensors(model).items():
            if name.startswith(("encoder.", "llm.")):
                # As training would leave them: a run that lost these would answer otherwise.
                tensor.add_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(name))), alpha=0.05)
        change(model)
    tensors = {name: tensor.detach().clone() for name, tensor in trained_tensors(model).items()}
    save_config(config, folder / "config.yaml")
    write(
        Snapshot(tensors, {"exp_avg/none": torch.zeros(1)}, 0),
        folder / "checkpoints",
        state={"step": 1, "consumed": 0} | order_of(config),
        manifest={"base": base_identities(config, model, tokenizers), "config": to_dict(config), "versions": {}},
    )
    return folder
