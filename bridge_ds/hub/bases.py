"""Both base models and the bridge between them, in the number format and on the devices that are asked for."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from typing import Any

from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint.bases import other_bases
from bridge_ds.checkpoint.load import put_trained
from bridge_ds.checkpoint.placed import Placing, load_placed
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.data.loading.tokenize import Tokenizers, check_vocabulary, load_tokenizers
from bridge_ds.engine.setup import base_identities
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.frozen.identity import tokenizer_identity
from bridge_ds.hub.source import BridgeSource

__all__ = ["compare_tokenizers", "load_bases", "quantization"]

EXPECTED = (
    "expected the same; name it with encoder=, llm=, encoder_revision= or llm_revision= (commands: --encoder, --llm), or "
    "load it anyway with allow_base_mismatch=True (--allow-base-mismatch)"
)
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
    tensors = source.tensors()
    tokenizers = load_tokenizers(run.model, hub, run.data)
    model = load_placed(run, tokenizers.bos_id, placing, hub)
    check_vocabulary(tokenizers.encoder, model.encoder.vocab_size, "encoder")
    check_vocabulary(tokenizers.llm, model.llm.vocab_size, "llm")
    found = base_identities(run, model, tokenizers, source.config.base, hub)
    _compare(source, found, run.model, allow_base_mismatch)
    put_trained(tensors, model, "it must have been made for this {} and these widths")
    return model, tokenizers


def _compare(source: BridgeSource, found: Mapping[str, str], now: ModelConfig, allowed: bool) -> None:
    other = other_bases(source.config.base, found, now, source.name, source.trained)
    if other and not allowed:
        raise CheckpointError(f"{other}; {EXPECTED}.")
    if other:
        _log.warning("%s; loaded anyway, because allow_base_mismatch is true.", other)


def compare_tokenizers(source: BridgeSource, now: ModelConfig, tokenizers: Tokenizers, hub: Mapping[str, Any]) -> None:
    """Compare tokenizers with those of the training.

    Raises:
        CheckpointError: one is another.
    """
    recorded, found = source.config.base, {}
    for part in ("encoder", "llm"):
        key, name, revision = f"{part}_tokenizer", resolve(getattr(now, part)), getattr(now, f"{part}_revision")
        found[key] = tokenizer_identity(getattr(tokenizers, part), name, revision, hub, recorded.get(key, ""))
    _compare(source, found, now, False)
