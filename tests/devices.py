"""Several devices on a machine that has one: real arithmetic on the CPU, under labels that no operator may mix.

While :class:`Devices` is open, a tensor made on or moved to `cpu:1` or `cpu:2` says that it is there (torch knows such
devices, and ignores the number), and every operator refuses tensors of different devices as CUDA does: code that
forgets to move a tensor between two GPUs fails here in the same line. Where the data decide (`item`, `nonzero`), they
are real. Modules are moved by replacing parameters, and code in C that takes pointers does not work.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_CPU = torch.device("cpu")
_COPIES = {"aten::_to_copy", "aten::copy_"}
"""Operators whose work is to bring a tensor elsewhere."""
_INDEXED = {"aten::index", "aten::index_put", "aten::index_put_"}
"""CUDA takes indices on the CPU here too."""


class Labelled(torch.Tensor):
    """A CPU tensor that says it is on another device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor, device: torch.device | None = None, requires_grad: bool = False) -> Labelled:
        if device is None:  # accelerate makes a parameter's successor by its class
            return torch.nn.Parameter(held, requires_grad)  # type: ignore[return-value]
        made: Labelled = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=device, requires_grad=False,
        )  # fmt: skip
        made.held = held
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.tolist:  # torch refuses it for every subclass
            return args[0].held.tolist()
        if func is torch.Tensor.data_ptr:  # accelerate knows tied weights by it
            return args[0].held.data_ptr()
        return torch._C._disabled_torch_function_impl(func, types, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Labelled({self.held!r}, {self.device})"


class Devices(TorchDispatchMode):
    """While open, `cpu:1`, `cpu:2`, ... are devices of their own.

    `operators` counts them by device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operators: dict[str, int] = {}

    def __enter__(self) -> Devices:
        # Module.to() would write a label into a parameter that has room for none.
        self._before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        super().__enter__()
        self._made = _Made()
        self._made.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._made.__exit__(*error)
        super().__exit__(*error)
        torch.__future__.set_overwrite_module_params_on_conversion(self._before)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = run(func, args, kwargs or {})
        device = next((t.device for t in pytree.tree_leaves(result) if isinstance(t, torch.Tensor)), _CPU)
        self.operators[str(device)] = self.operators.get(str(device), 0) + 1
        return result


class _Made(TorchFunctionMode):
    """torch.tensor(data, device=...) ignores the number of a CPU before any operator is seen."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = (kwargs or {}).get("device")
        if func is not torch.tensor or device is None:
            return func(*args, **kwargs or {})
        return func(*args, **kwargs | {"device": _CPU}).to(device)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """One operator on what the labels stand for, and the label on its results."""
    name = func._schema.name
    asked = kwargs.get("device")
    tensors = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    devices = {t.device for t in tensors if not (t.device == _CPU and t.dim() == 0)} or {t.device for t in tensors}
    if name in _INDEXED and len(devices) > 1:
        devices = {t.device for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)} - {_CPU}
        devices |= {args[0].device}
    if len(devices) > 1 and name not in _COPIES:
        raise RuntimeError(f"{name} got tensors on {sorted(map(str, devices))}; expected one device")
    device = torch.device(asked) if asked is not None else (args[0] if name == "aten::copy_" else None)
    if isinstance(device, torch.Tensor):
        device = device.device
    elif device is None:
        device = next(iter(devices), _CPU)
    inner_args, inner = pytree.tree_map_only(Labelled, lambda t: t.held, (args, kwargs))
    if asked is not None:
        inner = inner | {"device": _CPU}
    result = func(*inner_args, **inner)
    # What was written into is what was given.
    given = {id(t.held): t for t in tensors if isinstance(t, Labelled)}

    def labelled(tensor: torch.Tensor) -> torch.Tensor:
        return given.get(id(tensor), tensor if device == _CPU else Labelled(tensor, device))

    return pytree.tree_map_only(torch.Tensor, labelled, result)
