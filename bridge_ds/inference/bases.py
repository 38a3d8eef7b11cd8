"""Both base models and the bridge between them, whole or split over devices, for inference.

Training loads by :func:`bridge_ds.engine.setup.build_model`, which shards.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel, build_bridge
from bridge_ds.config.schema import Config
from bridge_ds.encoder.families import family_of
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.frozen import device_map as devices
from bridge_ds.frozen.configs import base_config
from bridge_ds.frozen.load import DTYPES
from bridge_ds.llm.frozen import load_llm
from bridge_ds.llm.lora import add_lora
from bridge_ds.world import World

__all__ = ["Placing", "load_bases", "one_process", "quantization"]


@dataclass(frozen=True)
class Placing:
    """How the models are put into memory."""

    dtype: str | torch.dtype | None = None
    """dtype of both base models; none or `auto` = that of the training. With float16 the encoder stays in
    float32, for T5's overflow in it (transformers#9295). What was trained is float32 always."""
    device_map: Any = None
    """Of both base models, see :mod:`bridge_ds.frozen.device_map`. The bridge goes to the encoder's input device.
    None = all on the CPU."""
    max_memory: Any = None
    """Bytes by device, where the device map is a strategy."""
    quantization: Any = None
    """Of the LLM: a transformers quantization config, see :func:`quantization`."""
    llm_options: dict[str, Any] = field(default_factory=dict)
    """More options of the LLM's from_pretrained (attn_implementation)."""


def load_bases(
    config: Config, bos: int | None, placing: Placing, hub: Mapping[str, Any] = MappingProxyType({})
) -> BridgeModel:
    """Load the base models and make the bridge between them; trained weights are not loaded yet.

    Args:
        config: the run.
        bos: id of the LLM's opening token, or none.
        placing: dtype and devices.
        hub: where base models come from (cache_dir, token, local_files_only).

    Raises:
        ConfigError: a model is missing, incomplete or of the wrong kind, or the device map cannot be used.
        LaunchError: the devices' memory does not suffice.
    """
    device_map = devices.read_device_map(placing.device_map)
    max_memory = devices.read_max_memory(placing.max_memory, device_map)
    encoder_dtype, llm_dtype = _dtypes(placing.dtype, config.model.dtype)
    of_encoder, of_llm = _for_each(config, device_map, hub)
    llm_options: dict[str, Any] = {**hub, **placing.llm_options, "dtype": llm_dtype}
    if placing.quantization is not None:
        if config.llm.trainable:
            raise ConfigError(
                "the LLM is to be quantized, but this run trained it (llm.trainable), and what was trained is float32; "
                "expected no quantization; split it over devices with a device map instead."
            )
        llm_options["quantization_config"] = placing.quantization
    try:
        encoder = load_encoder(config.model, config.encoder, hub, dtype=encoder_dtype, **_where(of_encoder, max_memory))
        max_memory = devices.room_beside(max_memory, encoder)
        llm = load_llm(config.model, config.llm, **llm_options, **_where(of_llm, max_memory))
        if device_map is None:
            encoder.to(devices.input_device(llm.model))  # quantizers choose a device for the LLM themselves
        model = build_bridge(config, encoder, llm, bos)
        add_lora(llm, config.lora, config.run.seed)
        _refuse_offloaded(model)
        home = devices.input_device(encoder.model)
        for part in (model.fusion, model.mapping, model.injection):
            if part is not None:
                part.to(home)
    except torch.OutOfMemoryError as error:
        raise LaunchError(
            f"the models do not fit into the device's memory ({str(error).split('.')[0]}); expected room for both; "
            "split them over several devices with a device map (auto), or lower max_memory of that device."
        ) from None
    model.apart = home != devices.input_device(llm.model)
    return model.eval()


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


def one_process(device_map: Any, world: World) -> None:
    """Refuse a device map where several ranks would each split the models over the same devices.

    Raises:
        LaunchError: it is given, and this process is not alone.
    """
    if device_map is not None and world.size > 1:
        raise LaunchError(
            f"a device map is given to {world.size} ranks; expected one process, which then uses all devices; start it "
            "without the launcher (srun --ntasks=1), or leave the device map out: each rank then holds whole models."
        )


def _dtypes(asked: str | torch.dtype | None, trained: str) -> tuple[torch.dtype, torch.dtype]:
    """dtypes of encoder and LLM."""
    name = trained if asked in (None, "auto") else str(asked).removeprefix("torch.")
    if name == "float16":
        return torch.float32, torch.float16
    if name not in DTYPES:
        raise ConfigError(f"dtype is {asked}; expected auto, {', '.join(DTYPES)} or float16.")
    return DTYPES[name], DTYPES[name]


def _where(device_map: Any, max_memory: Mapping[int | str, int] | None) -> dict[str, Any]:
    if device_map is None:
        return {}
    return {"device_map": device_map} | ({} if max_memory is None else {"max_memory": dict(max_memory)})


def _for_each(config: Config, device_map: Any, hub: Mapping[str, Any]) -> tuple[Any, Any]:
    """The device map of the encoder and of the LLM; a mapping is compared with both before the first weight is read."""
    maps = {"LLM": devices.of_llm(device_map), "encoder": devices.of_encoder(device_map)}
    if not isinstance(device_map, Mapping):
        return maps["encoder"], maps["LLM"]
    from transformers import AutoModelForCausalLM

    of = config.model
    trust = {"trust_remote_code": of.trust_remote_code}
    for what, name, revision in (("LLM", of.llm, of.llm_revision), ("encoder", of.encoder, of.encoder_revision)):
        found = base_config(f"model.{what.lower()}", name, revision, of.trust_remote_code, hub)
        if what == "encoder":
            skeleton = family_of(name, found).skeleton(found, **trust)
        else:
            with torch.device("meta"):
                skeleton = AutoModelForCausalLM.from_config(found, **trust)
        maps[what] = devices.fitted(what, skeleton, maps[what])
    return maps["encoder"], maps["LLM"]


def _refuse_offloaded(model: BridgeModel) -> None:
    """What was trained must lie on a device: accelerate fetches the rest from the base model's own files."""
    for name, tensor in model.named_parameters():
        if model.is_trained(name) and tensor.device.type == "meta":
            part = "encoder" if name.startswith("encoder.") else "LLM"
            raise ConfigError(
                f"the device map leaves {name}, which was trained, on the CPU or the disk while the {part} runs; "
                "expected it on the device where it runs; give that device more memory, or another device map."
            )
