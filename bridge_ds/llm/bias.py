"""Trained biases of a frozen model: a float32 copy beside each, used instead of it (`lora.bias`).

The frozen bias stays where it is, in the model's dtype: it says what the model was without training, and the
copy is cast to its format where it is read. The copy is a parameter of the same module, so that ZeRO-3 gathers both
with the module's other parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from bridge_ds.compat.deepspeed import whole

__all__ = ["TRAINED_BIAS", "has_bias", "keep_biases", "train_biases", "use_trained"]

TRAINED_BIAS = "trained_bias"
"""Name of the copy, beside `bias`."""


def has_bias(module: nn.Module) -> bool:
    """Whether the module has a bias of its own."""
    return module._parameters.get("bias") is not None


def train_biases(modules: Sequence[nn.Module]) -> None:
    """Give each module a trained copy of its bias, which it uses from now on; with sharded parameters a collective."""
    with whole([module._parameters["bias"] for module in modules]):
        for module in modules:
            frozen: Any = module._parameters["bias"]
            # Under ZeRO-3 whole on every rank, until DeepSpeed takes the model.
            module.register_parameter(TRAINED_BIAS, nn.Parameter(frozen.detach().float().clone()))
    for module in modules:
        kind = type(module)
        # As torch.nn.utils.parametrize does: whoever reads `bias`, the module or one around it, gets the one in use.
        module.__class__ = type(kind.__name__, (kind,), {"bias": property(_in_use), "__module__": kind.__module__})
        use_trained(module, True)


def use_trained(module: nn.Module, wanted: bool) -> None:
    """Let a module of :func:`train_biases` use its trained bias, or the frozen one."""
    module.trained_bias_in_use = wanted  # type: ignore[assignment]


def keep_biases(modules: Sequence[nn.Module]) -> None:
    """Write the trained biases over the frozen ones and make the modules what they were before (not sharded ones)."""
    for module in modules:
        frozen: Any = module._parameters["bias"]
        with torch.no_grad():
            frozen.copy_(getattr(module, TRAINED_BIAS))
        delattr(module, TRAINED_BIAS)
        del module.trained_bias_in_use
        module.__class__ = type(module).__mro__[1]


def _in_use(module: nn.Module) -> torch.Tensor:
    frozen: Any = module._parameters["bias"]
    return getattr(module, TRAINED_BIAS).to(frozen.dtype) if module.trained_bias_in_use else frozen
