"""Counts what ZeRO-3 gathers in backward: asked for ahead of the module that needs it, or only by that module.

Used by zygote.py in a rank that has GATHERS in its environment. After each step a line of JSON goes to GATHERS.RANK:
`ahead` and `late`, elements gathered for backward's modules in the one way and the other; `held`, the most elements
gathered at any moment (of parameters that are not always there); `second`, how many ranks share a second copy of the
shards (empty: there is none); `sizes`, what the engine was given, in the order of gather_sizes.
"""

from __future__ import annotations

import json
from typing import Any

from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator
from deepspeed.runtime.zero.partitioned_param_coordinator import iter_params
from deepspeed.utils import z3_leaf_module

from bridge_ds.engine import loop

AWAY = ZeroParamStatus.NOT_AVAILABLE


class Watch:
    """Of one rank."""

    def __init__(self) -> None:
        self.ahead = self.late = self.held = self.most = 0
        self.needed: set[Any] = set()
        """Parameters of the module that is being fetched."""
        self.coming: set[Any] = set()
        """Gathered ahead, and not yet needed."""

    def line(self, engine: Any) -> str:
        """What was counted since the last one."""
        frozen = [p for p in engine.module.parameters() if not p.requires_grad]
        second = {p.ds_secondary_tensor_group_size for p in frozen if p.ds_secondary_tensor is not None}
        sizes = (engine.zero_prefetch_bucket_size, engine.zero_max_live_parameters, engine.zero_max_reuse_distance)
        found: dict[str, Any] = {"ahead": self.ahead, "late": self.late, "held": self.most, "second": sorted(second)}
        found["sizes"] = [size() for size in sizes]
        self.ahead = self.late = self.most = 0
        return json.dumps(found)


def count_gathers(path: str) -> None:
    """Wrap DeepSpeed's coordinator (its own code runs as it stands) and the step."""
    watch = Watch()
    fetch, gather = Coordinator.fetch_sub_module, Coordinator._PartitionedParameterCoordinator__all_gather_params
    release, step = Coordinator._PartitionedParameterCoordinator__release_param, loop.train_step

    def watched_fetch(self: Any, module: Any, forward: bool) -> None:
        watch.needed = set(iter_params(module, recurse=z3_leaf_module(module)))
        for parameter in watch.needed:
            if not forward:
                watch.late += parameter.ds_numel * (parameter.ds_status == AWAY)
                watch.ahead += parameter.ds_numel * (parameter in watch.coming)
            watch.coming.discard(parameter)
        fetch(self, module, forward)

    def watched_gather(self: Any, parameters: Any, forward: bool) -> None:
        away = {parameter for parameter in parameters if parameter.ds_status == AWAY}
        watch.coming |= away - watch.needed
        watch.held += sum(parameter.ds_numel for parameter in away if not parameter.ds_persist)
        watch.most = max(watch.most, watch.held)
        gather(self, parameters, forward)

    def watched_release(self: Any, parameter: Any, *given: Any) -> None:
        before = parameter.ds_status
        release(self, parameter, *given)
        if before != AWAY and parameter.ds_status == AWAY:
            watch.held -= parameter.ds_numel * (not parameter.ds_persist)
            watch.coming.discard(parameter)

    def watched_step(engine: Any, *given: Any, **more: Any) -> Any:
        record = step(engine, *given, **more)
        with open(path, "a") as file:
            file.write(watch.line(engine) + "\n")
        return record

    Coordinator.fetch_sub_module = watched_fetch
    Coordinator._PartitionedParameterCoordinator__all_gather_params = watched_gather
    Coordinator._PartitionedParameterCoordinator__release_param = watched_release
    loop.train_step = watched_step
