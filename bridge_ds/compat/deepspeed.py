"""DeepSpeed: what its import costs, hpZ with two models, and optimizer states that are set from a checkpoint."""

from __future__ import annotations

import inspect
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch

from bridge_ds.errors import LaunchError

__all__ = [
    "hpz_group_is_reused", "import_deepspeed", "link_moments", "reuse_hpz_group", "set_full_moment", "set_parameters",
    "whole",
]  # fmt: skip

_CREATE = "groups._create_zero_param_parallel_group("
_LOOK_UP = "groups._get_zero_param_intra_parallel_group()"
_REFUSAL = "'ZeRO parameter intra parallel group is already initialized'"


@contextmanager
def whole(parameters: Sequence[Any], *, written: bool = False) -> Iterator[None]:
    """While open, these parameters are there whole on every rank, if ZeRO-3 has sharded them; a collective then.
    `written`: what rank 0 has written into them stays, on every rank."""
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(parameters), modifier_rank=0 if written else None):
        yield


def set_parameters(engine: Any, values: Mapping[Any, torch.Tensor]) -> None:
    """Give parameters of an engine new values, those of rank 0, and its optimizer's copies too (a collective)."""
    with whole(list(values), written=True), torch.no_grad():
        for parameter, value in values.items():
            parameter.copy_(value)
            if not hasattr(parameter, "ds_id"):
                torch.distributed.broadcast(parameter, 0)
    if hasattr(engine.optimizer, "refresh_fp32_params"):
        engine.optimizer.refresh_fp32_params()


def import_deepspeed() -> ModuleType:
    """DeepSpeed without the side effects that cost start-up time.

    DeepSpeed (0.19.8 at least): its autotuner imports mlflow (1.2 s), which training does not need; on CPU its first
    collective would compile a shared-memory extension (a minute, with a compiler), where plain gloo serves; and it
    calls collectives under names that torch 2.13 is about to retire, each with a warning.

    The first can go when tests/test_compat.py fails; the second when CPU training on a machine without a compiler
    starts without it; the third with the warnings.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]
    try:
        import deepspeed
    finally:
        if hidden:
            sys.modules.pop("mlflow", None)
    if not torch.cuda.is_available():
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.utils.logger.setLevel("WARNING")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    return deepspeed


def reuse_hpz_group() -> None:
    """Let a second model load under ZeRO-3 with `zero_hpz_partition_size` above 1.

    DeepSpeed 0.19.8: every `zero.Init` (one a `from_pretrained`) makes the groups of ranks that share a second copy of
    the shards, and the second one ends in `AssertionError: ZeRO parameter intra parallel group is already initialized`
    (deepspeedai/DeepSpeed#4901, #7066). Here the second one finds the first one's groups, as in PR #8361, which is
    open. A DeepSpeed that has it is left as it is; tests/config/test_zero.py fails then, and this can go.

    Raises:
        LaunchError: DeepSpeed's code is neither that of 0.19.8 nor that of the pull request.
    """
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups

    make = groups._create_zero_param_parallel_group
    if hasattr(make, "reuses"):
        return
    if hpz_group_is_reused(inspect.getsource(Init.__init__), inspect.getsource(make)):
        return

    def make_once(group_size: int) -> None:
        if groups._get_zero_param_intra_parallel_group() is None:
            make(group_size)
        there: Any = groups._get_zero_param_intra_parallel_group_world_size()
        assert there == group_size, f"groups of {there} ranks are there; {group_size} were asked for"

    make_once.reuses = True  # type: ignore[attr-defined]
    groups._create_zero_param_parallel_group = make_once


def hpz_group_is_reused(init: str, create: str) -> bool:
    """Whether DeepSpeed itself lets `zero.Init` be entered twice under hpZ, by its source text.

    Args:
        init: of `zero.Init.__init__`.
        create: of `groups._create_zero_param_parallel_group`.

    Raises:
        LaunchError: neither the known fault nor the known remedy is there.
    """
    made = init.find(_CREATE)
    if 0 <= init.find(_LOOK_UP) < made:
        return True  # it looks for groups before it makes some
    if made >= 0 and _REFUSAL in create and create.startswith("def _create_zero_param_parallel_group(group_size):"):
        return False
    raise LaunchError(
        f"deepspeed {version('deepspeed')} makes the groups of zero_hpz_partition_size in a way not known here; "
        "expected that of 0.19.8, whose fault is fixed, or that of deepspeedai/DeepSpeed#8361; install deepspeed "
        "0.19.8, or use zero3.json."
    )


def link_moments(optimizer: Any) -> None:
    """Let `safe_get_full_optimizer_state` find the moments of every parameter group under stage 2.

    DeepSpeed 0.19.8 links them once, after the step of the FIRST group, when the others have none yet; with more than
    one group it then fails for the rest. Linking again is harmless.

    It can go when test_killed_and_resumed (tests/engine/test_runs.py) passes without it under stage 2.

    Args:
        optimizer: of the engine.
    """
    if hasattr(optimizer, "_hp_optimizer_states_linked"):
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()


def set_full_moment(parameter: torch.nn.Parameter, full: torch.Tensor, moment: str) -> None:
    """As `safe_set_full_optimizer_state`, also where the world size does not divide the tensor.

    DeepSpeed 0.19.8: under stage 3 it slices past the end there. The setter of the local piece takes it with its
    padding. It can go when test_killed_and_resumed (tests/engine/test_runs.py) passes under stage 3 without it.
    """
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_tensor"):
        safe_set_full_optimizer_state(parameter, full, moment)
        return
    world, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    piece = parameter.ds_tensor.numel()
    padded = torch.zeros(piece * world, dtype=torch.float32)
    padded[: full.numel()] = full.flatten()
    local = padded[rank * piece : (rank + 1) * piece]
    safe_set_local_optimizer_state(parameter, local.to(parameter.ds_tensor.device), moment)
