"""Both base models and the bridge between them, in the number format and on the devices that are asked for."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.engine.setup import END_IDS
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.frozen.identity import tokenizer_identity
from bridge_ds.hub.config import BridgeConfig
from bridge_ds.hub.source import BridgeSource
from bridge_ds.inference.bases import Placing
from bridge_ds.inference.load import load_model

__all__ = ["compare_tokenizers", "load_bases", "quantization"]

_log = logging.getLogger(__name__)


def quantization(config: Any, load_in_4bit: bool, load_in_8bit: bool, dtype: Any) -> Any:
    """The LLM's quantization config from what from_pretrained was given.

    Raises:
        ConfigError: several are asked for, or bitsandbytes is needed and not installed.
    """
    if sum((config is not None, load_in_4bit, load_in_8bit)) > 1:
        raise ConfigError(
            "more than one of load_in_4bit, load_in_8bit and quantization_config is given; expected one; leave the "
            "others out."
        )
    if config is None and not (load_in_4bit or load_in_8bit):
        return None
    method = str(getattr(config, "quant_method", "bitsandbytes"))
    if "bitsandbytes" in method.lower() and importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            "4- and 8-bit loading needs bitsandbytes, which is not installed; pip install 'bridge_ds[quantized]', or "
            "leave load_in_4bit, load_in_8bit and quantization_config out."
        )
    if config is not None:
        return config
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=load_in_4bit, load_in_8bit=load_in_8bit, bnb_4bit_compute_dtype=dtype, bnb_4bit_quant_type="nf4"
    )


def load_bases(
    source: BridgeSource, run: Config, placing: Placing, hub: Mapping[str, Any], allow_base_mismatch: bool
) -> tuple[BridgeModel, Tokenizers]:
    """Load the base models that a bridge belongs to, prove that they are those, and put the bridge between them.

    Args:
        source: the bridge.
        run: its config, see :func:`bridge_ds.hub.config.to_run`.
        placing: number format and devices.
        hub: where base models come from (cache_dir, token, local_files_only).
        allow_base_mismatch: take other base models than the bridge was trained with, and warn.

    Raises:
        CheckpointError: other base models; or the bridge's tensors do not fit.
        ConfigError: a base model cannot be loaded.
    """
    loaded = load_model(
        run,
        source.tensors(),
        source.config.base,
        lambda found: _compare(source, found, allow_base_mismatch),
        placing,
        hub,
        remedy="it must have been made for this {} and these widths",
    )
    return loaded.model, loaded.tokenizers


def _compare(source: BridgeSource, found: Mapping[str, str], allowed: bool) -> None:
    names = {
        "encoder": f"the encoder {source.config.encoder!r}",
        "llm": f"the LLM {source.config.llm!r}",
        "encoder_tokenizer": f"the tokenizer of {source.config.encoder!r}",
        "llm_tokenizer": f"the tokenizer of {source.config.llm!r}",
        END_IDS: f"the set of end ids of {source.config.llm!r} (eos_token_id in its generation_config.json)",
    }
    other = [names[key] for key, value in found.items() if source.config.base.get(key) != value]
    if not other:
        return
    what = f"{' and '.join(other)} {'is' if len(other) == 1 else 'are'} not what {source.name} was trained with"
    if not allowed:
        raise CheckpointError(
            f"{what} (the bridge has recorded others); expected the same; name its place with encoder=, llm=, "
            "encoder_revision= or llm_revision=, or pass allow_base_mismatch=True to take it all the same."
        )
    _log.warning("%s; taken all the same, as allow_base_mismatch says.", what)


def compare_tokenizers(config: BridgeConfig, tokenizers: Tokenizers, hub: Mapping[str, Any]) -> None:
    """Prove that tokenizers are those of the training.

    Raises:
        ConfigError: one is another.
    """
    for key, name, revision, tokenizer in (
        ("encoder_tokenizer", config.encoder, config.encoder_revision, tokenizers.encoder),
        ("llm_tokenizer", config.llm, config.llm_revision, tokenizers.llm),
    ):
        recorded = config.base.get(key, "")
        if recorded != tokenizer_identity(tokenizer, resolve(name), revision, hub, recorded):
            raise ConfigError(
                f"the tokenizer of {name!r} is not the one that the bridge was trained with (another vocabulary, "
                "normaliser, special token or chat template); expected the same; give its place or revision, or pass "
                "allow_base_mismatch=True."
            )
