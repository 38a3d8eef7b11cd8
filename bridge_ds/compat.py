"""What is patched in other packages: each with the versions, the reason, and the test that tells when it can go."""

from __future__ import annotations

import inspect
from importlib.metadata import version
from typing import Any

from bridge_ds.errors import LaunchError

__all__ = ["hpz_group_is_reused", "reuse_hpz_group"]

_CREATE = "groups._create_zero_param_parallel_group("
_LOOK_UP = "groups._get_zero_param_intra_parallel_group()"
_REFUSAL = "'ZeRO parameter intra parallel group is already initialized'"


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
        "expected that of 0.19.8, whose fault is mended, or that of deepspeedai/DeepSpeed#8361; install deepspeed "
        "0.19.8, or use zero3.json."
    )
