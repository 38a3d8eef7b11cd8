"""The config of `bridge-ds finetune`, and of the same as the first stage of a bridge's run (`llm.finetune`): a recipe's
data, lengths and batches, with the LLM alone trained on them."""

from __future__ import annotations

from collections.abc import Sequence

from bridge_ds.config.load import load_config
from bridge_ds.config.schema import Config
from bridge_ds.objectives import OBJECTIVES

__all__ = ["asked_config", "finetune_config", "first_config"]

_FIRST = "finetune"
"""In the folder of a run with llm.finetune: the run that teaches the LLM."""
_ALONE = ("model.encoder=none", "llm.finetune=false", "injection.form=none")
_OURS = ("run.start_from=", "evaluation.languages=[en]")
_LORA = ("lora.rank=16", "lora.alpha=32")
_RATES = {True: ("train.lr=2e-5", "llm.lr_scale=1"), False: ("train.lr=2e-4", "lora.lr_scale=1")}
"""All of the LLM is trained -> a usual rate for that, or for LoRA: that of a bridge's recipe is the bridge's."""


def asked_config(recipe: str, overrides: Sequence[str], finetune: bool) -> Config:
    """What `train --recipe --set` asks for, with `--finetune` or without.

    Raises:
        ConfigError: as :func:`bridge_ds.config.load.load_config`.
    """
    return (finetune_config if finetune else load_config)(recipe, overrides)


def finetune_config(recipe: str = "testbed", overrides: Sequence[str] = ()) -> Config:
    """The recipe for the LLM alone.

    A recipe without an encoder (`model.encoder: none`) is taken as it is. Over that of a bridge come settings of our
    own, unless `overrides` name them: run.output with `_llm` at its end, LoRA of rank 16 unless the LLM is trained
    already, its learning rate, scores in English, the recipe's llm.finetune_settings, and the task as the objective in
    place of self-teaching. An encoder that `overrides` name is that of the bridge.

    Args:
        recipe: as of :func:`bridge_ds.config.load.load_config`; likewise `overrides`.
        overrides: see `recipe`.

    Raises:
        ConfigError: as :func:`bridge_ds.config.load.load_config`.
    """
    plain = load_config(recipe)
    if not plain.model.has_encoder:
        return load_config(recipe, [*overrides, *_ALONE])
    overrides = [*overrides, *_as_task(plain, overrides)]
    asked = load_config(recipe, overrides)
    output = f"run.output={plain.run.output.rstrip('/')}_llm"
    settings = asked.llm.finetune_settings
    return load_config(recipe, [output, *_ours([*settings, *overrides], recipe), *settings, *overrides, *_ALONE])


def first_config(recipe: str, overrides: Sequence[str], asked: Config) -> Config:
    """The first stage of a run with llm.finetune, in RUN/finetune: as :func:`finetune_config`, but `overrides` are
    meant for the bridge, so that llm.finetune_settings and settings of our own win over them. It is not scored unless
    the former say so.

    Args:
        recipe: of the run; likewise `overrides`.
        overrides: see `recipe`.
        asked: what they resolve to.

    Raises:
        ConfigError: as :func:`bridge_ds.config.load.load_config`.
    """
    settings, overrides = asked.llm.finetune_settings, [*overrides, *_as_task(asked)]
    output = f"run.output={asked.run.output.rstrip('/')}/{_FIRST}"
    ours = *_ours([*overrides, *settings], recipe), "evaluation.tasks=[]", "evaluation.choose=false"
    return load_config(recipe, [*overrides, *ours, *settings, output, *_ALONE])


def _as_task(config: Config, overrides: Sequence[str] = ()) -> tuple[str, ...]:
    """The objective of the LLM alone where it is to teach the bridge: the targets of the same samples."""
    given = {key.strip(): value.strip() for key, _, value in (text.partition("=") for text in overrides)}
    name = given.get("data.objective", config.data.objective)
    return ("data.objective=task",) if name in OBJECTIVES and OBJECTIVES[name].teaches else ()


def _ours(given: Sequence[str], recipe: str) -> tuple[str, ...]:
    """What a bridge's recipe says otherwise than the LLM alone needs it."""
    asked = load_config(recipe, given)
    return (*_OURS, *(() if asked.lora.rank or asked.llm.trainable else _LORA), *_RATES[asked.llm.trainable])
