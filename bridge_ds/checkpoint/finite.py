"""Checks that weights are finite, so that what a failed step leaves never becomes a checkpoint or an export."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

__all__ = ["fault_in", "fault_in_files"]


def fault_in(tensors: Iterable[tuple[str, torch.Tensor]], *, squares: bool = True) -> str:
    """What is wrong with the first tensor that cannot be the result of training, for a message; empty if none is.

    Args:
        tensors: (name, tensor).
        squares: also refuse finite numbers whose squares sum to more than a float32 holds: one step with an absurd
            learning rate leads to these, and every later forward pass turns them into NaN.
    """
    for name, tensor in tensors:
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        values = tensor.detach().float()
        # One pass, and no second tensor: anything that is not finite shows in the norm.
        if torch.isfinite(torch.linalg.vector_norm(values)):
            continue
        if not torch.isfinite(values).all():
            return f"{name} holds NaN or infinite values"
        if squares:
            return f"{name} holds values of {float(values.abs().max()):.1e}, whose squares are no finite numbers"
    return ""


def fault_in_files(paths: Sequence[Path], *, squares: bool = True) -> str:
    """:func:`fault_in` of safetensors files, one tensor in memory at a time; in AdamW's also negative squares.

    Raises:
        OSError: a file cannot be read.
        safetensors.SafetensorError: it is no safetensors file.
    """
    from safetensors import safe_open

    for path in paths:
        with safe_open(path, framework="pt") as file:
            for name in list(file.keys()):
                tensor = file.get_tensor(name)
                fault = fault_in([(name, tensor)], squares=squares)
                if (
                    not fault
                    and name.startswith("exp_avg_sq/")
                    and tensor.is_floating_point()
                    and tensor.float().lt(0).any()
                ):
                    fault = f"{name} holds negative values, which are no means of squares"
                if fault:
                    return f"{fault} ({path.name})"
    return ""
