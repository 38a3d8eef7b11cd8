"""Load a pretrained model complete and freeze it, under ZeRO-3 shard by shard (transformers does so while a
HfDeepSpeedConfig lives)."""

from __future__ import annotations

from collections.abc import Callable
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from bridge_ds.compat.streamed import streamed
from bridge_ds.errors import ConfigError

__all__ = ["DTYPES", "freeze", "load_complete"]

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
"""Values of `model.dtype`."""


def load_complete(what: str, name: str, from_pretrained: Callable[..., Any], **options: Any) -> nn.Module:
    """`from_pretrained(name, **options)`, refused unless every weight of the model came from the file.

    transformers initializes what it does not find at random and only logs it; a frozen model with random parts
    trains without error and is worthless.

    Args:
        what: `encoder` or `LLM`, for messages.

    Raises:
        ConfigError: nothing is there under that name, or weights are missing.
    """
    try:
        with streamed():
            model, info = from_pretrained(name, output_loading_info=True, **options)
    except (SafetensorError, UnpicklingError, EOFError, RuntimeError) as error:
        if type(error) is RuntimeError and "PytorchStreamReader" not in str(error):
            raise
        reason = " ".join(str(error).split())[:80]
        raise ConfigError(
            f"a file of weights of the {what} {name!r} cannot be read ({reason}); expected safetensors, or "
            "pytorch_model.bin with tensors alone, for pickled objects are never run; it was cut or damaged: download "
            "it again."
        ) from error
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"the {what} {name!r} cannot be loaded ({reason}); "
            "expected a hub id or a folder with config.json and weights."
        ) from error
    missing = sorted(set(info["missing_keys"]) - _tied(model))
    if missing:
        raise ConfigError(
            f"the {what} {name!r} lacks {len(missing)} weights, such as {missing[0]}; "
            "expected a complete checkpoint of this architecture."
        )
    return freeze(model)


def freeze(model: nn.Module) -> nn.Module:
    """Eval mode and requires_grad=False."""
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model


def _tied(model: Any) -> set[str]:
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return set(tied) | set(tied.values())
