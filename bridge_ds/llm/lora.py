"""Low-rank updates of the LLM's matrices (LoRA, arXiv 2106.09685), made by `peft` inside the loaded model."""

from __future__ import annotations

import torch

from bridge_ds.config.check import NO_PEFT
from bridge_ds.config.schema import LoraConfig
from bridge_ds.errors import ConfigError
from bridge_ds.llm.base import LLM
from bridge_ds.llm.frozen import FrozenLLM

__all__ = ["add_lora"]


def add_lora(llm: LLM, config: LoraConfig, seed: int) -> None:
    """Put updates that are zero so far beside the LLM's matrices, in float32 (they are their own masters).

    Args:
        llm: whole or sharded.
        config: nothing happens where `rank` is 0.
        seed: of the first factors, the same on every rank; the second ones are zero.

    Raises:
        ConfigError: peft is not installed, or the LLM has no layer of these names.
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
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(
                f"lora.targets {list(config.targets)} do not fit the LLM ({reason}); "
                "expected endings of names of its linear layers; leave it empty for all of them."
            ) from error
    llm.updated = [module for module in llm.modules() if isinstance(module, peft.tuners.lora.LoraLayer)]
    for parameter in llm.parameters():
        if parameter.requires_grad:
            # peft gives them the dtype of the matrices they stand beside.
            parameter.data = parameter.data.float()
    llm.trained = frozenset(name for name, parameter in llm.named_parameters() if parameter.requires_grad)
    llm.train(False)
