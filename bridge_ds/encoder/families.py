"""How to load the encoder half of a model, by its `model_type`, and what it has besides its layers.

A new family is one entry in FAMILIES. Imports neither torch nor transformers: the planner reads the table too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bridge_ds.errors import ConfigError

__all__ = ["FAMILIES", "Family", "family_of"]

_Config = Mapping[str, Any]
"""The model's config.json."""


def _tables(config: _Config) -> int:
    """BERT's learned positions and token types (it has no last norm; the norm of its embeddings counts as that)."""
    rows = int(config["max_position_embeddings"]) + int(config.get("type_vocab_size", 2))
    return rows * int(config["hidden_size"])


def _deberta(config: _Config) -> int:
    """DeBERTa's relative positions and their norm, beside BERT's tables where it has them."""
    width, rows = int(config["hidden_size"]), int(config.get("type_vocab_size", 0))
    if config.get("relative_attention"):
        rows += 2 * int(config.get("position_buckets", 256)) + 2 * ("layer_norm" in config.get("norm_rel_ebd", "none"))
    return (rows + config.get("position_biased_input", True) * int(config["max_position_embeddings"])) * width


def _buckets(config: _Config) -> int:
    """T5's relative positions: a number for each bucket and head."""
    return int(config.get("relative_attention_num_buckets", 32)) * int(config["num_heads"])


@dataclass(frozen=True)
class Family:
    """How to load the encoder half of one architecture."""

    class_name: str
    """Name in `transformers`."""
    module: str = "transformers"
    """Where that name is imported from."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of from_pretrained."""
    biases: bool = True
    """Linear layers and norms have biases."""
    score_bias: bool = False
    """Attention adds a number for each head and pair of tokens to its scores (T5's relative positions)."""
    extra: Callable[[_Config], int] = _tables
    """Parameters besides the layers, the token embeddings and the last norm."""

    def loader(self) -> Callable[..., Any]:
        """The class's from_pretrained."""
        return self.load_class().from_pretrained

    def skeleton(self, config: Any, **options: Any) -> Any:
        """The model on the meta device, without weights; `options` may have trust_remote_code."""
        import torch

        kind = self.load_class()
        with torch.device("meta"):
            # AutoModel has from_config, a model's own class _from_config.
            return kind.from_config(config, **options) if hasattr(kind, "from_config") else kind._from_config(config)

    def load_class(self) -> Any:
        """The class of `transformers`."""
        import importlib

        return getattr(importlib.import_module(self.module), self.class_name)


_NO_POOLER = {"add_pooling_layer": False}  # a pooler is never read and random in most checkpoints
# M2M100Encoder is `model.encoder` of the checkpoint and shares its embedding with the decoder.
_NLLB_KEYS = {"key_mapping": {r"^model\.shared\.": "embed_tokens.", r"^model\.encoder\.": ""}}


def _t5(class_name: str, extra: Callable[[_Config], int] = _buckets) -> Family:
    return Family(class_name, biases=False, score_bias=True, extra=extra)


FAMILIES: dict[str, Family] = {
    "mt5": _t5("MT5EncoderModel"),
    "umt5": _t5("UMT5EncoderModel", lambda config: int(config["num_layers"]) * _buckets(config)),  # each layer its own
    "t5": _t5("T5EncoderModel"),
    "xlm-roberta": Family("XLMRobertaModel", options=_NO_POOLER),
    "xlm-roberta-xl": Family("XLMRobertaXLModel", options=_NO_POOLER),
    "roberta": Family("RobertaModel", options=_NO_POOLER),
    "bert": Family("BertModel", options=_NO_POOLER),
    "deberta-v2": Family("DebertaV2Model", extra=_deberta),
    "m2m_100": Family(
        "M2M100Encoder", "transformers.models.m2m_100.modeling_m2m_100", _NLLB_KEYS, extra=lambda config: 0
    ),
}
"""`model_type` -> family. An encoder-only model of another type is loaded by AutoModel and cannot be planned."""


def family_of(name: str, config: Any) -> Family:
    """The family of a model's config; an encoder-only model of another type is loaded by AutoModel.

    Raises:
        ConfigError: a decoder, or an encoder-decoder that is not in FAMILIES.
    """
    known = FAMILIES.get(config.model_type)
    if known:
        return known
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "is_decoder", False) or _is_causal(config):
        raise ConfigError(
            f"the encoder {name!r} is of type {config.model_type!r}; expected an encoder-only model "
            f"or one of {', '.join(FAMILIES)}; choose another model.encoder."
        )
    return Family("AutoModel")


def _is_causal(config: Any) -> bool:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as causal
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    return config.model_type in causal and config.model_type not in masked
