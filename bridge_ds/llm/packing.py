"""What of a run's micro-batches is packed, from the configs of both models (`train.packing`)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.bins import Packing
from bridge_ds.frozen.configs import base_config
from bridge_ds.llm.support import behavior_of

__all__ = ["is_wanted", "packing_for", "packing_of"]

_ATTENTION, _IN_BFLOAT16 = 3.0, 8.0
"""Seconds of an operation in attention over those of one in a large matrix product: 1.9 to 3.6 on CPUs in float32. In
bfloat16 products are 2.5 times as fast there, attention with its backward is not: 6.6 at 80 keys, 4 at 300."""
_CALL = {"cpu": 1e8, "cuda": 3e10}
"""Operations that take as long as one more call of an encoder layer does beside its products (CPU: measured on the
testbed's encoder; CUDA: 0.15 ms of launches)."""


def is_wanted(config: Config, device: str) -> bool:
    """Whether `train.packing` asks for it on that type of device."""
    return device == "cpu" if config.train.packing is None else config.train.packing


def packing_of(config: Config, device: str) -> Packing | None:
    """How this run's micro-batches are packed, the same on every rank; None = they are not.

    Args:
        device: type of the device that computes.

    Raises:
        ConfigError: a model's config is unusable.
    """
    if not is_wanted(config, device) or not config.model.has_llm:
        return None
    of = config.model
    llm = base_config("model.llm", of.llm, of.llm_revision, of.trust_remote_code)
    encoder = None
    # Ranks must call a trained encoder equally often, and dropout would depend on what is read together.
    if of.has_encoder and not (config.encoder.trainable or config.encoder.dropout):
        encoder = base_config("model.encoder", of.encoder, of.encoder_revision, of.trust_remote_code)
    behavior = behavior_of(of.llm, llm, of.trust_remote_code)
    packing = replace(packing_for(encoder, llm, device, of.dtype), llm_scores=behavior.eager)
    # What is beside the text of one row would be beside that of all rows of a sequence.
    joins = behavior.packs and config.injection.spec is None
    return packing if joins else replace(packing, llm_keys=0.0)


def packing_for(encoder: Any | None, llm: Any, device: str, dtype: str) -> Packing:
    """What two models cost, where both may be packed.

    Args:
        encoder: transformers config of the encoder; None = all of its rows run together.
        llm: of the LLM.
        device: type of the device that computes.
        dtype: of its products.
    """
    slow = _IN_BFLOAT16 / _ATTENTION if (device, dtype) == ("cpu", "bfloat16") else 1.0
    llm_keys = _cost(llm.get_text_config())[0] / slow
    if encoder is None:
        return Packing(llm_keys=llm_keys)
    keys, weights = _cost(encoder)
    call = _CALL.get(device, _CALL["cuda"]) / (2 * weights)
    return Packing(llm_keys=llm_keys, encoder_keys=keys, encoder_call=call)


def _cost(config: Any) -> tuple[float, float]:
    """Keys whose attention costs as much as the matrices of a layer for a position, and the elements of those: about,
    for it decides nothing but speed."""
    width = _first(config, "hidden_size", "d_model", "n_embd", "dim") or 1024
    inner = _first(config, "intermediate_size", "d_ff", "n_inner", "ffn_dim", "encoder_ffn_dim") or 4 * width
    weights = width * (4 * width + 3 * inner)
    return weights / (2 * width * _ATTENTION), weights


def _first(config: Any, *names: str) -> int:
    found = (getattr(config, name, None) for name in names)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)
