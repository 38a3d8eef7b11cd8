"""A tiny random model of a class and its config: what the class does is seen on it in a second, without weights.

Widths and numbers of heads shrink by one factor, so that what must divide still does; as many layers remain as it takes
to have one of each kind.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["LIMITS", "VOCABULARY", "in_table", "llm_class", "tiny_copy"]

VOCABULARY = 128
"""Token ids of the copy."""
_POSITIONS = 64
_PARAMETERS = 3e8
"""More than so many make a copy too slow to be of use."""
_LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "decoder_layers", "encoder_layers", "num_blocks")
_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads", "encoder_attention_heads")
_WIDTHS = ("hidden_size", "n_embd", "d_model", "dim", "embedding_dim")
LIMITS = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len")
"""Names of the number of positions in a config."""
_GROUPS = ("n_groups", "mamba_n_groups", "mamba_ngroups")
_INNER = ("n_inner", "lru_width", "mamba_d_ssm", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim")
_KINDS = ("layer_types", "layers_block_type", "block_types", "attention_layers")


def llm_class(config: Any, name: str, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """The class that AutoModelForCausalLM takes for a config, and the config that the class takes.

    Raises:
        ValueError: it has none.
    """
    from transformers import AutoModelForCausalLM as Auto
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    remote = (getattr(config, "auto_map", None) or {}).get(Auto.__name__)
    if remote and trust_remote_code:
        return get_class_from_dynamic_module(remote, name), config
    if type(config) not in Auto._model_mapping:
        raise ValueError(f"transformers has no causal language model of type {config.model_type!r}")
    kind: Any = Auto._model_mapping[type(config)]
    kind = kind[0] if isinstance(kind, list | tuple) else kind
    text = getattr(config, "sub_configs", {}).get("text_config")
    if text is not None and getattr(kind, "config_class", None) == text:
        config = config.get_text_config()
    return kind, config


def tiny_copy(kind: Any, config: Any) -> Any:
    """A random model of the class in float32 on the CPU, in eval mode; the same each time.

    Raises:
        Exception: of whatever type, where the class takes no config that was shrunk so.
    """
    try:
        small = _fitting(kind, config, 1)
    except Exception:  # a class may need two layers of a kind, which share weights (Zamba)
        small = _fitting(kind, config, 2)
    # The class itself and not from_config, which under ZeRO-3 would shard.
    with _seeded(), torch.device("cpu"):
        model = kind(small).float().eval()
    for parameter in model.requires_grad_(False).parameters():
        # Initialized at or near 0, a part that matters in a trained model would be lost in rounding.
        spread = float(parameter.std()) if parameter.dim() > 1 else 0.0
        if spread > 0:
            parameter.mul_(max(1.0, parameter.shape[-1] ** -0.5 / spread))
        elif not parameter.any():
            parameter.fill_(0.1)
    return model


def in_table(model: Any, run: Callable[[torch.Tensor], Any]) -> int | None:
    """How many more tokens (negative: fewer) than the `max_position_embeddings` of its config a copy reads before its
    table of positions ends; None = it reads on.

    Args:
        model: of :func:`tiny_copy`.
        run: the copy on ids [1, X]; raises where there is no position.
    """
    declared = int(model.config.get_text_config().max_position_embeddings)
    with torch.no_grad():
        run(torch.full((1, 8), 9))
        for spare in range(8, -9, -1):
            try:
                run(torch.full((1, declared + spare), 9))
            except (IndexError, RuntimeError, ValueError):
                continue
            return None if spare == 8 else spare
    return None


def _fitting(kind: Any, config: Any, of_each: int) -> Any:
    """A small config, with so many layers of each kind, for which the class makes a model that is small too."""
    config = copy.deepcopy(config)
    for part in (config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", {}))):
        if part is not None:
            _shrink(part, of_each)
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in kind(copy.deepcopy(config)).parameters())
    if count > _PARAMETERS:
        raise ValueError(f"{count} parameters are left")
    return config


@contextmanager
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def _shrink(config: Any, of_each: int) -> None:
    values = config.to_dict()
    layers, heads, width = (_first(values, names) for names in (_LAYERS, _HEADS, _WIDTHS))
    factor = (heads // 2 if heads % 2 == 0 else heads) if heads else max(1, width // 64)
    for name, value in values.items():
        if name.endswith("heads") and ("mamba" in name or "linear" in name) and isinstance(value, int):
            factor = math.gcd(factor, value)
    kept = _kept_layers(config, values, layers, of_each)
    for name, value in values.items():
        smaller = value
        if isinstance(value, list | tuple):
            if layers and len(value) == layers:
                smaller = type(value)(value[:kept])
        elif isinstance(value, int) and not isinstance(value, bool):
            smaller = _smaller(name, value, factor, kept)
        if smaller != value:
            setattr(config, name, smaller)


def _smaller(name: str, value: int, factor: int, kept: int) -> int:
    """A number of the config in the copy."""
    if name in _LAYERS:
        return kept or value
    if name.endswith("token_id"):
        return min(value, VOCABULARY - 1)
    if "vocab" in name:
        return min(value, VOCABULARY)
    if name in LIMITS:
        return min(value, _POSITIONS)
    if name == "num_kv_shared_layers":
        return 0
    if name.endswith(("heads", "n_head")) or name in _GROUPS:
        return max(1, value // factor)
    if name in (*_WIDTHS, *_INNER) or any(part in name for part in ("hidden_size", "intermediate_size", "ffn_hidden")):
        # What multiplies matrices must be of a multiple of 16 bytes.
        return value // factor if value % factor == 0 and value // factor % 8 == 0 else -(-value // factor // 16) * 16
    return value


def _kept_layers(config: Any, values: dict[str, Any], layers: int, of_each: int) -> int:
    """As few as have so many of each kind (or all there are), two at least."""
    if not layers:
        return 0
    kinds: list[Any] = []
    for name in _KINDS:
        found = values.get(name) or getattr(config, name, None)
        if isinstance(found, list | tuple) and len(found) >= layers:
            kinds = list(found)[:layers]
            break
    wanted = {kind: min(count, of_each) for kind, count in Counter(map(str, kinds)).items()}
    seen: Counter[str] = Counter()
    for number, each in enumerate(kinds, 1):
        seen[str(each)] += 1
        if number >= 2 and all(seen[kind] >= count for kind, count in wanted.items()):
            return number
    return min(layers, 2)


def _first(values: dict[str, Any], names: tuple[str, ...]) -> int:
    return next((values[name] for name in names if isinstance(values.get(name), int) and values[name]), 0)
