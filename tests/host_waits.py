"""A dispatch mode under which no operator may make the host wait for a device, as if every tensor were on one."""

from __future__ import annotations

import traceback
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "allclose", "nonzero", "nonzero_numpy", "argwhere",
    "masked_select", "unique_dim", "_unique", "_unique2", "unique_consecutive", "bincount", "_assert_async",
}  # fmt: skip
"""Operators of ATen whose value, or the shape of whose result, the host must know."""
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""With a mask among the indices these are `nonzero` first."""


class HostWait(AssertionError):
    """An operator would have waited."""


class NoHostWait(TorchDispatchMode):
    """While open, an operator for which the host waits raises HostWait. Those of backward count as well.

    `.tolist()`, `.numpy()` and copies to the CPU are no operators where all is on the CPU; on meta tensors they fail.
    Numbers drawn on the CPU from torch's own generator, such as a seed, may be read: they are on the host.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators = 0
        self._drawn: dict[int, torch.Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators += 1
        name = func._schema.name.removeprefix("aten::")
        if _waits(name, args) and args[0].data_ptr() not in self._drawn:
            ours = [line for line in traceback.extract_stack() if f"{torch.__path__[0]}/" not in line.filename]
            place = ours[-2] if len(ours) > 1 else ours[-1]
            raise HostWait(f"aten::{name} at {place.filename}:{place.lineno}")
        out = func(*args, **(kwargs or {}))
        if name == "randint":
            self._drawn[out.data_ptr()] = out  # kept, so that its address is nobody else's
        return out


def _waits(name: str, args: Any) -> bool:
    if name in INDEXED:
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    if name == "repeat_interleave":  # of a tensor of counts; one whose sum is given is no sum to ask for
        return len(args) < 2
    return name in WAITS
