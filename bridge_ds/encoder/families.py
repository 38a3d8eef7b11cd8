"""Which class gives the encoder half alone, by model type. A new family is one line here and one test row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from bridge_ds.errors import ConfigError

__all__ = ["FAMILIES", "Family", "family_of"]


@dataclass(frozen=True)
class Family:
    """How to load the encoder half of one architecture."""

    class_name: str
    """Name in `transformers`."""
    module: str = "transformers"
    """Where that name is imported from."""
    options: dict[str, Any] = field(default_factory=dict)
    """More arguments of from_pretrained."""

    def loader(self) -> Callable[..., Any]:
        """The class's from_pretrained."""
        return self._class().from_pretrained

    def skeleton(self, config: Any, **options: Any) -> Any:
        """The model without weights.

        Args:
            config: of the model.
            options: trust_remote_code.
        """
        import torch

        kind = self._class()
        with torch.device("meta"):
            # AutoModel knows from_config, a model's own class the same with a mark before it.
            return kind.from_config(config, **options) if hasattr(kind, "from_config") else kind._from_config(config)

    def _class(self) -> Any:
        import importlib

        return getattr(importlib.import_module(self.module), self.class_name)


_NO_POOLER = {"add_pooling_layer": False}  # a pooler is never read and random in most checkpoints
# M2M100Encoder stands inside `model.encoder` of the checkpoint and shares its embedding with the decoder.
_NLLB_KEYS = {"key_mapping": {r"^model\.shared\.": "embed_tokens.", r"^model\.encoder\.": ""}}

FAMILIES: dict[str, Family] = {
    "mt5": Family("MT5EncoderModel"),
    "umt5": Family("UMT5EncoderModel"),
    "t5": Family("T5EncoderModel"),
    "xlm-roberta": Family("XLMRobertaModel", options=_NO_POOLER),
    "xlm-roberta-xl": Family("XLMRobertaXLModel", options=_NO_POOLER),
    "bert": Family("BertModel", options=_NO_POOLER),
    "m2m_100": Family("M2M100Encoder", "transformers.models.m2m_100.modeling_m2m_100", options=_NLLB_KEYS),
}


def family_of(name: str, config: Any) -> Family:
    """The family of a model config; any other encoder-only model goes through AutoModel.

    Raises:
        ConfigError: a decoder, or an encoder-decoder whose encoder half we do not know how to load.
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
