"""The frozen English LLM, and loading of an LLM of either kind."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.compat.transformers import enable_recomputing, set_recomputing
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import LlmConfig, ModelConfig
from bridge_ds.frozen.check import HUB, BaseModel
from bridge_ds.frozen.configs import base_config
from bridge_ds.frozen.load import DTYPES, load_complete
from bridge_ds.llm.base import LLM
from bridge_ds.llm.support import behavior_of
from bridge_ds.llm.trained import TrainedLLM
from bridge_ds.llm.updated import Updated

__all__ = ["FrozenLLM", "llm_base", "load_llm"]


class FrozenLLM(Updated, LLM):
    """Always in eval mode, its own weights with requires_grad=False; gradients flow through it to the soft prompt."""

    def __init__(self, model: Any, activation_checkpointing: bool = False) -> None:
        super().__init__(model)
        self.activation_checkpointing = activation_checkpointing
        self.nothing_updated()
        if activation_checkpointing:
            enable_recomputing(model)
        self.train(False)

    def train(self, mode: bool = True) -> FrozenLLM:
        """Stays in eval mode, but for activation checkpointing and LoRA's dropout."""
        super().train(False)
        if self.activation_checkpointing:
            set_recomputing(self.model, mode)
        self.drop(mode)
        return self


def load_llm(config: ModelConfig, training: LlmConfig | None = None, **options: Any) -> LLM:
    """Load `model.llm`: frozen in `model.dtype`, or to be trained in float32.

    Args:
        config: which, and how.
        training: whether it is trained, and what of it.
        options: more of `from_pretrained` (device_map, quantization_config, token); they win.

    Raises:
        ConfigError: not found, incomplete, or not a language model that can stand behind a bridge.
    """
    base = llm_base(config, options)
    behavior = behavior_of(resolve(config.llm), base.config, config.trust_remote_code)
    dtype = options.pop("dtype", DTYPES[config.dtype])
    trained = training is not None and training.trainable
    model = load_complete(base, dtype=torch.float32 if trained else dtype)
    if training is not None and trained:
        llm: LLM = TrainedLLM(model, dtype, training, config.activation_checkpointing)
    else:
        llm = FrozenLLM(model, config.activation_checkpointing)
    llm.behavior = behavior
    return llm


def llm_base(config: ModelConfig, options: Mapping[str, Any] = MappingProxyType({})) -> BaseModel:
    """`model.llm` as it is found, checked and loaded; arguments as of :func:`load_llm`.

    Raises:
        ConfigError: not found.
    """
    from transformers import AutoModelForCausalLM

    key, name, trust = "model.llm", config.llm, config.trust_remote_code
    hub = {each: options[each] for each in HUB if each in options}
    found = base_config(key, name, config.llm_revision, trust, hub)
    options = {"revision": config.llm_revision, "trust_remote_code": trust, **options}
    return BaseModel(key, name, found, AutoModelForCausalLM, _logits, options)


def _logits(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    """What is used of an LLM."""
    return [model(inputs_embeds=model.get_input_embeddings()(ids), use_cache=False).logits]
