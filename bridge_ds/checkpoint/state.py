"""Read and write the full, unsharded training state through a DeepSpeed engine, stage 2 or 3.

All functions here are collectives: every rank calls them, and names are visited in the same order everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bridge_ds.compat.deepspeed import link_moments, set_full_moment
from bridge_ds.engine.distributed import whole_shape
from bridge_ds.errors import CheckpointError

__all__ = ["MOMENTS", "optimizer_step", "read_moments", "read_trained", "restore_moments", "trained"]

MOMENTS = ("exp_avg", "exp_avg_sq")
"""AdamW's state of each parameter."""


def trained(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    """Trained parameters by name, sorted."""
    return sorted((name, p) for name, p in model.named_parameters() if p.requires_grad)


def read_trained(engine: Any) -> dict[str, torch.Tensor]:
    """float32 masters, full tensors on CPU, by parameter name; and the bridge's buffers.

    Empty on all ranks but 0: where the encoder is trained they are gigabytes, which a node would hold once per rank.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trained(engine.module):
        _keep(tensors, name, parameter, name, safe_get_full_fp32_param(parameter))
    for name, buffer in engine.module.named_buffers():
        if name.startswith(("fusion.", "mapping.")) and _is_main():
            tensors[name] = buffer.detach().cpu().clone()
    return tensors


def read_moments(engine: Any) -> dict[str, torch.Tensor]:
    """`exp_avg/<name>` and `exp_avg_sq/<name>`, full tensors on CPU; empty on all ranks but 0."""
    from deepspeed.utils import safe_get_full_optimizer_state

    link_moments(engine.optimizer)
    tensors: dict[str, torch.Tensor] = {}
    for name, parameter in trained(engine.module):
        for moment in MOMENTS:
            _keep(tensors, f"{moment}/{name}", parameter, name, safe_get_full_optimizer_state(parameter, moment))
    return tensors


def optimizer_step(engine: Any) -> int:
    """AdamW's own step count (skipped steps do not advance it)."""
    return max(
        (int(state["step"]) for state in engine.optimizer.optimizer.state.values() if "step" in state), default=0
    )


def restore_moments(engine: Any, moment_of: Callable[[str], torch.Tensor], step: int) -> None:
    """Restore AdamW's state.

    Args:
        moment_of: gives the full tensor of `exp_avg/<name>` or `exp_avg_sq/<name>`, one at a time.
        step: AdamW's own count.

    torch creates the state at the first `step()`, DeepSpeed at the same moment: before it there is nothing to set, so
    it is created here for the flat partitions that the optimizer holds.
    """
    wrapper = engine.optimizer
    stage3 = hasattr(wrapper, "fp32_partitioned_groups_flat")
    flats = wrapper.fp32_partitioned_groups_flat if stage3 else wrapper.single_partition_of_fp32_groups
    for flat in flats:
        count = torch.tensor(float(step), device=flat.device)  # where fused AdamW needs it
        wrapper.optimizer.state[flat] = {"step": count} | {m: torch.zeros_like(flat) for m in MOMENTS}
    link_moments(wrapper)
    for name, parameter in trained(engine.module):
        for moment in MOMENTS:
            set_full_moment(parameter, moment_of(f"{moment}/{name}"), moment)


def _keep(
    kept: dict[str, torch.Tensor], key: str, parameter: torch.nn.Parameter, name: str, tensor: torch.Tensor | None
) -> None:
    """Put a gathered tensor into `kept`, on rank 0.

    Raises:
        CheckpointError: it was not gathered in full (on every rank).
    """
    shape = whole_shape(parameter)
    if tensor is None or tuple(tensor.shape) != shape or tensor.numel() == 0:
        got = None if tensor is None else tuple(tensor.shape)
        raise CheckpointError(f"{name} reads as shape {got}; expected {shape}; nothing was written.")
    if _is_main():
        kept[key] = tensor.detach().float().cpu().clone()


def _is_main() -> bool:
    return torch.distributed.get_rank() == 0
