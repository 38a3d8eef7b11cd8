"""train.py with a watcher on every module of the frozen models: how many frozen elements does this rank hold?

Usage: watch_shards.py REPORT TRAIN_ARGUMENTS...; writes REPORT.<rank> as JSON (counts of elements).
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from deepspeed.utils import z3_leaf_module

from bridge_ds import run as run_module
from bridge_ds.train import main

SEEN: dict[str, Any] = {"moments": 0, "most": 0}


def held(model: Any) -> int:
    """Frozen elements in this process: its shards, and what is gathered at this moment."""
    count = 0
    for parameter in model.parameters():
        if not parameter.requires_grad:
            count += parameter.ds_tensor.numel() + parameter.numel()  # numel() is 0 unless gathered
    return count


def watch(model: Any) -> None:
    frozen = [p for p in model.parameters() if not p.requires_grad]
    SEEN["share"] = sum(p.ds_tensor.numel() for p in frozen)
    SEEN["total"] = sum(p.ds_numel for p in frozen)
    SEEN["parameters"] = len(frozen)
    SEEN["largest_layer"] = max(
        sum(p.ds_numel for p in module.parameters(recurse=z3_leaf_module(module)) if not p.requires_grad)
        for module in model.modules()
    )

    def look(*_: Any) -> None:
        SEEN["moments"] += 1
        SEEN["most"] = max(SEEN["most"], held(model))

    for part in (model.encoder, model.llm):
        for module in part.modules():
            module.register_forward_pre_hook(look)
            module.register_forward_hook(look)
            module.register_full_backward_hook(look)


class WatchedRun(run_module.Run):
    def prepare(self) -> None:
        super().prepare()
        watch(self.engine.module)

    def close(self, status: str) -> None:
        Path(f"{sys.argv[1]}.{self.world.rank}").write_text(json.dumps(SEEN))
        super().close(status)


if __name__ == "__main__":
    run_module.Run = WatchedRun
    sys.exit(main(sys.argv[2:]))
