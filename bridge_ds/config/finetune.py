"""The config of `bridge-ds finetune`: a recipe's data, lengths and batches, with the LLM alone trained on them."""

from __future__ import annotations

from collections.abc import Sequence

from bridge_ds.config.load import load_config
from bridge_ds.config.schema import Config

__all__ = ["finetune_config"]

_ALONE = "model.encoder=none"
_OURS = ("run.start_from=", "evaluation.languages=[en]")
_LORA = ("lora.rank=16", "lora.alpha=32")
_RATES = {True: ("train.lr=2e-5", "llm.lr_scale=1"), False: ("train.lr=2e-4", "lora.lr_scale=1")}
"""All of the LLM is trained -> a usual rate for that, or for LoRA: that of a bridge's recipe is the bridge's."""


def finetune_config(recipe: str = "testbed", overrides: Sequence[str] = ()) -> Config:
    """The recipe for the LLM alone.

    A recipe without an encoder (`model.encoder: none`) is taken as it is. Over that of a bridge come settings of our
    own, unless `overrides` name them: run.output with `_llm` at its end, LoRA of rank 16 unless the LLM is trained
    already, its learning rate, and scores in English. An encoder that they name is that of the bridge.

    Args:
        recipe: as of :func:`bridge_ds.config.load.load_config`; likewise `overrides`.
        overrides: see `recipe`.

    Raises:
        ConfigError: as :func:`bridge_ds.config.load.load_config`.
    """
    plain = load_config(recipe)
    if not plain.model.has_encoder:
        return load_config(recipe, [*overrides, _ALONE])
    asked = load_config(recipe, overrides)
    lora = () if asked.lora.rank or asked.llm.trainable else _LORA
    output = f"run.output={plain.run.output.rstrip('/')}_llm"
    ours = (*_OURS, output, *lora, *_RATES[asked.llm.trainable])
    return load_config(recipe, [*ours, *overrides, _ALONE])
