"""Low-rank updates of a base model's matrices (LoRA, arXiv 2106.09685), made by `peft` inside the loaded model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from bridge_ds.config.schema import LoraConfig
from bridge_ds.errors import ConfigError, brief
from bridge_ds.llm.bias import has_bias, keep_biases, train_biases
from bridge_ds.llm.updated import Updated

__all__ = ["add_lora", "merge_lora"]


def add_lora(of: nn.Module, config: LoraConfig, seed: int) -> None:
    """Put updates that are zero so far beside the matrices of an LLM or encoder, in float32 (their own masters).

    Args:
        of: whole or sharded.
        config: nothing happens where `rank` is 0.
        seed: of the first factors, the same on every rank; the second ones are zero.

    Raises:
        ConfigError: the model has no layer of these names, none of the biases that are to be trained, or an adapter of
            PEFT already.
    """
    if not config.rank:
        return
    assert isinstance(of, Updated), "lora.rank excludes that all of the model is trained"
    if getattr(of.model, "peft_config", None):  # under the same name, it would be replaced in silence
        raise ConfigError(
            f"lora.rank is {config.rank}, and the folder of the {of.called} holds an adapter of PEFT; expected a "
            f"{of.called} without one; merge the adapter into it first (peft's merge_and_unload), or set lora.rank=0."
        )
    import peft

    wanted = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=list(config.targets) or "all-linear",
        task_type=of.task_type,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            peft.inject_adapter_in_model(wanted, of.model)
        except ValueError as error:
            reason = brief(error, 300)
            raise ConfigError(
                f"lora.targets {list(config.targets)} do not fit the {of.called} ({reason}); "
                "expected endings of names of its linear layers; leave it empty for all of them."
            ) from error
    of.updated = [module for module in of.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    of.biased = _biased(of, config)
    train_biases(of.biased)
    for parameter in of.parameters():
        if parameter.requires_grad:
            # peft gives them the dtype of the matrices they stand beside.
            parameter.data = parameter.data.float()
    of.trained = frozenset(name for name, parameter in of.named_parameters() if parameter.requires_grad)
    of.train(False)


def merge_lora(of: nn.Module) -> Any:
    """Add the updates to the model's own matrices, put trained biases in place of its own, and take out peft's modules.

    Args:
        of: whole; it is a plain one afterwards.

    Returns:
        the transformers model, as it was loaded but for the values.
    """
    assert isinstance(of, Updated)
    names = {id(module): name for name, module in of.model.named_modules()}
    for layer in of.updated:
        layer.merge()
        name = names[id(layer)]
        parent, _, child = name.rpartition(".")
        setattr(of.model.get_submodule(parent), child, layer.get_base_layer())
    keep_biases(of.biased)
    of.nothing_updated()
    if hasattr(of.model, "peft_config"):
        del of.model.peft_config
    return of.model


def _biased(model: Updated, config: LoraConfig) -> list[nn.Module]:
    """Modules whose bias is trained, as peft's `bias` chooses them."""
    if config.bias == "none":
        return []
    of = model.model.modules() if config.bias == "all" else (layer.get_base_layer() for layer in model.updated)
    found = [module for module in of if has_bias(module)]
    if not found:
        where = "has no bias at all" if config.bias == "all" else "has none in the layers that get an update"
        raise ConfigError(
            f"lora.bias is {config.bias}, and the {model.called} {where}; expected one to train; set lora.bias=none."
        )
    return found
