"""train.py, where an operator inside a micro-batch for which the host would wait for a GPU ends the run.

Usage: watch_waits.py REPORT TRAIN_ARGUMENTS...; writes REPORT.<rank> as JSON: what was watched, and the settings.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from bridge_ds import run as run_module
from bridge_ds.engine import distributed
from bridge_ds.errors import BridgeError
from bridge_ds.train import main
from tests.host_waits import NoHostWait

UNWATCHED = 3
"""First micro-batches: in these ZeRO-3 writes down the order of the modules and compares it between the ranks."""
SEEN: dict[str, Any] = {"forward": 0, "backward": 0}


def watched(engine: Any, name: str) -> Callable[..., Any]:
    """That method, refusing waits."""
    action = getattr(engine, name)

    def call(*args: Any, **options: Any) -> Any:
        SEEN[name] += 1
        with NoHostWait() if SEEN[name] > UNWATCHED else nullcontext():
            return action(*args, **options)

    return call


class WatchedRun(run_module.Run):
    def prepare(self) -> None:
        super().prepare()
        # As where the default group is NCCL's: ranks agree over one of their own.
        distributed._control = torch.distributed.new_group(backend="gloo")
        try:
            distributed.on_all(self._fail_on_the_last, self.world)
        except BridgeError as error:
            SEEN["heard"] = str(error)
        for name in ("forward", "backward"):
            setattr(self.engine, name, watched(self.engine, name))

    def _fail_on_the_last(self) -> None:
        if self.world.rank == self.world.size - 1:
            raise BridgeError("the last rank has a fault")

    def close(self, status: str, together: bool = False) -> None:
        settings = {
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "deepspeed_clock": self.engine.tput_timer.config.enabled,
        }
        Path(f"{sys.argv[1]}.{self.world.rank}").write_text(json.dumps(SEEN | settings))
        super().close(status, together)


if __name__ == "__main__":
    run_module.Run = WatchedRun  # type: ignore[misc]
    sys.exit(main(sys.argv[2:]))
