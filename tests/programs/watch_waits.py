"""train.py, where an operator inside a micro-batch for which the host would wait for a GPU ends the run.

The encoder reads micro-batches together, before their forward and in threads of its own, so it is watched by itself.
On a GPU torch itself says where the host waits (torch.cuda.set_sync_debug_mode); the run goes on, and the report has
the places.

Usage: watch_waits.py REPORT TRAIN_ARGUMENTS...; writes REPORT.<rank> as JSON: what was watched, and the settings.
"""

from __future__ import annotations

import json
import sys
import threading
import traceback
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch

from bridge_ds import run as run_module
from bridge_ds.encoder.base import Encoder
from bridge_ds.engine import distributed
from bridge_ds.errors import BridgeError
from bridge_ds.train import main
from tests.host_waits import NoHostWait

UNWATCHED = 3
"""First micro-batches: in these ZeRO-3 writes down the order of the modules and compares it between the ranks."""
SEEN: dict[str, Any] = {"forward": 0, "backward": 0, "encoder": 0, "threads": 0, "encoder_operators": []}
if torch.cuda.is_available():
    SEEN["waits"] = Counter()


class CudaWaits:
    """While open, waits of the host for the GPU are counted by place, in SEEN["waits"]."""

    operators = 0

    def __enter__(self) -> CudaWaits:
        self._shown = warnings.showwarning
        self._filters = warnings.filters[:]
        warnings.simplefilter("always")
        warnings.showwarning = self._note  # type: ignore[assignment]
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = self._shown
        warnings.filters[:] = self._filters

    def _note(self, message: Warning | str, *_: Any, **__: Any) -> None:
        if "synchronizing CUDA operation" in str(message):
            outside = (f"{torch.__path__[0]}/", warnings.__file__)
            places = [line for line in traceback.extract_stack()[:-1] if not line.filename.startswith(outside)]
            SEEN["waits"][f"{places[-1].filename}:{places[-1].lineno}"] += 1


def mode() -> Any:
    """What refuses waits, or counts them on a GPU."""
    return CudaWaits() if torch.cuda.is_available() else NoHostWait()


def watched(engine: Any, name: str) -> Callable[..., Any]:
    """That method, refusing waits."""
    action = getattr(engine, name)

    def call(*args: Any, **options: Any) -> Any:
        SEEN[name] += 1
        with mode() if SEEN[name] > UNWATCHED else nullcontext():
            return action(*args, **options)

    return call


def watch_encoder() -> None:
    """What the encoder computes of one micro-batch refuses waits, in whatever thread it runs."""
    forward = Encoder.forward

    def call(*args: Any, **options: Any) -> Any:
        SEEN["encoder"] += 1
        SEEN["threads"] += threading.current_thread().name == "lockstep"
        with mode() as watch:
            states = forward(*args, **options)
        SEEN["encoder_operators"].append(watch.operators)
        return states

    Encoder.forward = call  # type: ignore[method-assign]


class WatchedRun(run_module.Run):
    def prepare(self) -> None:
        super().prepare()
        # As where the default group is NCCL's: ranks agree over one of their own.
        distributed._control = torch.distributed.new_group(backend="gloo")
        try:
            distributed.on_all(self._fail_on_the_last, self.world)
        except BridgeError as error:
            SEEN["heard"] = str(error)
        watch_encoder()
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
