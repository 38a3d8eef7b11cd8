"""Low-rank updates of the LLM's matrices (LoRA, arXiv 2106.09685), made by `peft` inside the loaded model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge_ds.config.build import NO_PEFT
from bridge_ds.config.schema import LoraConfig
from bridge_ds.errors import ConfigError, brief
from bridge_ds.llm.base import LLM
from bridge_ds.llm.bias import has_bias, keep_biases, train_biases
from bridge_ds.llm.frozen import FrozenLLM

__all__ = ["add_lora", "merge_lora"]


def add_lora(llm: LLM, config: LoraConfig, seed: int) -> None:
    """Put updates that are zero so far beside the LLM's matrices, in float32 (they are their own masters).

    Args:
        llm: whole or sharded.
        config: nothing happens where `rank` is 0.
        seed: of the first factors, the same on every rank; the second ones are zero.

    Raises:
        ConfigError: peft is not installed, or the LLM has no layer of these names, or none of the biases that are to be
            trained.
    """
    if not config.rank:
        return
    assert isinstance(llm, FrozenLLM), "lora.rank and llm.trainable exclude each other"
    try:
        import peft
    except ImportError:
        raise ConfigError(NO_PEFT.format(config.rank)) from None
    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        task_type="CAUSAL_LM",  # by which peft knows the output head
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(wanted, llm.model)
        except ValueError as error:
            reason = brief(error, 300)
            raise ConfigError(
                f"lora.targets {list(config.targets)} do not fit the LLM ({reason}); "
                "expected endings of names of its linear layers; leave it empty for all of them."
            ) from error
    llm.updated = [module for module in llm.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    llm.biased = _biased(llm, config)
    train_biases(llm.biased)
    for parameter in llm.parameters():
        if parameter.requires_grad:
            # peft gives them the dtype of the matrices they stand beside.
            parameter.data = parameter.data.float()
    llm.trained = frozenset(name for name, parameter in llm.named_parameters() if parameter.requires_grad)
    llm.train(False)


def merge_lora(llm: LLM) -> Any:
    """Add the updates to the LLM's own matrices, put trained biases in place of its own, and take out what peft put in.

    Args:
        llm: whole; it is a plain one afterwards.

    Returns:
        the transformers model, as it was loaded but for the values.
    """
    assert isinstance(llm, FrozenLLM)
    names = {id(module): name for name, module in llm.model.named_modules()}
    for layer in llm.updated:
        layer.merge()
        name = names[id(layer)]
        parent, _, child = name.rpartition(".")
        setattr(llm.model.get_submodule(parent), child, layer.get_base_layer())
    keep_biases(llm.biased)
    llm.updated, llm.biased, llm.trained = [], [], frozenset()
    if hasattr(llm.model, "peft_config"):
        del llm.model.peft_config
    return llm.model


def _biased(llm: FrozenLLM, config: LoraConfig) -> list[nn.Module]:
    """Modules whose bias is trained, as peft's `bias` chooses them."""
    if config.bias == "none":
        return []
    of = llm.model.modules() if config.bias == "all" else (layer.get_base_layer() for layer in llm.updated)
    found = [module for module in of if has_bias(module)]
    if not found:
        where = "has no bias at all" if config.bias == "all" else "has none in the layers that get an update"
        raise ConfigError(
            f"lora.bias is {config.bias}, and the LLM {where}; expected one to train; set lora.bias=none."
        )
    return found
