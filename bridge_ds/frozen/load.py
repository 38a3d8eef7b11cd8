"""Load a pretrained model complete and freeze it, under ZeRO-3 shard by shard (transformers does so while a
HfDeepSpeedConfig lives)."""

from __future__ import annotations

import logging
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from bridge_ds.compat.streamed import streamed
from bridge_ds.config.names import resolve
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.check import BaseModel, check_base, tied_names
from bridge_ds.frozen.configs import reason_of
from bridge_ds.frozen.verify import reach

__all__ = ["DTYPES", "freeze", "load_complete"]

_log = logging.getLogger(__name__)

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Values of `model.dtype`."""


def load_complete(base: BaseModel, **placing: Any) -> nn.Module:
    """Load a model and freeze it, refused unless every weight that is used came from its files.

    transformers initializes what it does not find at random and only logs it; a frozen model with random parts
    trains without error and is worthless.

    Args:
        base: which.
        placing: more arguments of from_pretrained (dtype, device_map).

    Raises:
        ConfigError: as :func:`bridge_ds.frozen.check.check_base`, or a file cannot be read.
    """
    checked = check_base(base)
    if checked.left_out:
        _log.info(f"note: {base.key} {base.name!r}: {checked.left_out}.")
    name = resolve(base.name)
    options = {**base.options, **placing}
    if not hasattr(base.kind, "from_config"):
        options.pop("trust_remote_code", None)  # only Auto classes take it
    try:
        with streamed():
            model, info = base.kind.from_pretrained(name, output_loading_info=True, **reach(name, options))
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if type(error) is RuntimeError and "PytorchStreamReader" not in str(error):
            raise
        raise ConfigError(
            f"a file of weights of {base.key} {base.name!r} cannot be read ({reason_of(error)}); expected safetensors, "
            "or pytorch_model.bin with tensors alone, for pickled objects are never run; it was cut or damaged: "
            "download it again."
        ) from error
    except (OSError, ValueError, KeyError, ImportError) as error:
        if "offload_folder" in str(error):
            raise ConfigError(
                f"the device map leaves a part of {base.key} {base.name!r} on the disk, where its files do not hold it "
                "as it is used (they are no safetensors, or experts are stored apart); expected room for all of it in "
                "memory; put cpu in place of disk, or raise max_memory."
            ) from error
        raise ConfigError(
            f"{base.key} {base.name!r} cannot be loaded ({reason_of(error)}); "
            "expected a hub id or a folder with config.json and weights."
        ) from error
    missing = sorted(set(info["missing_keys"]) - tied_names(model) - checked.unused)
    if missing:
        raise ConfigError(
            f"{base.key} {base.name!r} lacks {len(missing)} weights, such as {missing[0]}; "
            "expected a complete checkpoint of this architecture."
        )
    return freeze(model)


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode and requires_grad=False."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model
