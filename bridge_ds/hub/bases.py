"""Both base models and the bridge between them, in the number format and on the devices that are asked for."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel, build_bridge
from bridge_ds.checkpoint.load import put_trained
from bridge_ds.config.schema import Config
from bridge_ds.data.tokenize import Tokenizers, check_vocabulary, load_tokenizers
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.engine.setup import base_identities
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.frozen.load import DTYPES
from bridge_ds.hub.source import Source
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import add_lora

__all__ = ["Placing", "load_bases", "quantization"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placing:
    """How the models are put into memory."""

    dtype: str | torch.dtype | None = None
    """Number format of both base models; none or `auto` = that of the training. With float16 the encoder stays in
    float32, for T5's overflow in it (transformers#9295). What was trained is float32 always."""
    device_map: Any = None
    """Of the LLM, as transformers takes it (`auto`, a device, a dict); encoder and bridge go whole to the device of the
    LLM's first part. None = all on the CPU."""
    max_memory: Mapping[Any, Any] | None = None
    """By device, with device_map="auto"."""
    quantization: Any = None
    """Of the LLM: a transformers quantization config, see :func:`quantization`."""
    llm_options: dict[str, Any] = field(default_factory=dict)
    """More options of the LLM's from_pretrained (attn_implementation)."""


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


def dtypes(asked: str | torch.dtype | None, trained: str) -> tuple[torch.dtype, torch.dtype]:
    """Number formats of encoder and LLM.

    Raises:
        ConfigError: neither bfloat16, float32 nor float16.
    """
    name = trained if asked in (None, "auto") else str(asked).removeprefix("torch.")
    if name == "float16":
        return torch.float32, torch.float16
    if name not in DTYPES:
        raise ConfigError(f"dtype is {asked}; expected auto, {', '.join(DTYPES)} or float16.")
    return DTYPES[name], DTYPES[name]


def load_bases(
    source: Source, run: Config, placing: Placing, hub: Mapping[str, Any], allow_base_mismatch: bool
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
    encoder_dtype, llm_dtype = dtypes(placing.dtype, run.model.dtype)
    tensors = source.tensors()
    tokenizers = load_tokenizers(run.model, hub)
    first = _first_device(placing.device_map)
    options: dict[str, Any] = {**hub, **placing.llm_options, "dtype": llm_dtype}
    if placing.device_map is not None:
        options |= {"device_map": placing.device_map, "max_memory": placing.max_memory}
    if placing.quantization is not None:
        options["quantization_config"] = placing.quantization
    # The encoder first: a device map made for the LLM then knows what room is left beside it.
    encoder = load_encoder(run.model, run.encoder, hub, dtype=encoder_dtype)
    encoder.to(first)
    llm = load_llm(run.model, **options)
    check_vocabulary(tokenizers.encoder, encoder.vocab_size, "encoder")
    check_vocabulary(tokenizers.llm, llm.vocab_size, "llm")
    model = build_bridge(run, encoder, llm, tokenizers.bos_id)
    _compare(source, base_identities(run, model, tokenizers, source.config.base, hub), allow_base_mismatch)
    add_lora(llm, run.lora, run.run.seed)
    put_trained(tensors, model, "it must have been made for this {} and these widths")
    if placing.device_map is not None or placing.quantization is not None:
        home = _home(llm.model)
        for part in (model.encoder, model.fusion, model.mapping):
            part.to(home)
    return model.eval(), tokenizers


def _compare(source: Source, found: Mapping[str, str], allowed: bool) -> None:
    names = {
        "encoder": f"the encoder {source.config.encoder!r}",
        "llm": f"the LLM {source.config.llm!r}",
        "encoder_tokenizer": f"the tokenizer of {source.config.encoder!r}",
        "llm_tokenizer": f"the tokenizer of {source.config.llm!r}",
    }
    other = [names[key] for key, value in found.items() if source.config.base.get(key) != value]
    if not other:
        return
    what = f"{' and '.join(other)} {'is' if len(other) == 1 else 'are'} not what {source.name} was trained with"
    if not allowed:
        raise CheckpointError(
            f"{what} (another hash); expected the same; name its place with encoder=, llm=, encoder_revision= or "
            "llm_revision=, or pass allow_base_mismatch=True to take it all the same."
        )
    _log.warning("%s; taken all the same, as allow_base_mismatch says.", what)


def _first_device(device_map: Any) -> torch.device:
    """Where encoder and bridge are loaded before the LLM has its place."""
    if device_map is None:
        return torch.device("cpu")
    if isinstance(device_map, dict):
        device_map = next((place for place in device_map.values() if place not in ("cpu", "disk")), "cpu")
    if isinstance(device_map, str) and device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    return torch.device(device_map)


def _home(llm: Any) -> torch.device:
    """The device on which the LLM takes its input: where its table of embeddings is, or is run if that is offloaded."""
    table = llm.get_input_embeddings()
    hook = getattr(table, "_hf_hook", None)
    place = getattr(hook, "execution_device", None)
    device = table.weight.device
    return torch.device(place) if place is not None and device.type == "meta" else device
