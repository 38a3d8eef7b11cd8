"""Gather a frozen model's shards one layer at a time, without DeepSpeed's hooks.

DeepSpeed gathers a layer for each of its calls. A frozen encoder does not depend on what is trained, so here all
micro-batches of a step may use a layer while it is gathered. The order of gathers that DeepSpeed records and prefetches
by is then the same for the first micro-batch and the others.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from bridge_ds.frozen.lockstep import lockstep, pause

__all__ = ["LayerGather"]

T = TypeVar("T")
_CONTAINERS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)


@dataclass(eq=False)
class _Unit:
    """Parameters that are gathered and released together."""

    parameters: list[Any]
    inside: int = 0
    """Runs that have not left it."""


class LayerGather:
    """Gathers and releases the parameters of a model that `zero.Init` has sharded and that DeepSpeed has not hooked.

    A unit is a layer (an element of a list of modules), or a largest module without such a list (embeddings, the last
    norm). Each is gathered before its forward, and the next one by then, as the run before went: two are whole at most.
    Every rank must make the same runs. Nothing may be trained: gradients are not reduced here.
    """

    def __init__(self, model: nn.Module, ahead: bool = True) -> None:
        """Args:
        ahead: begin to gather the next unit while one is at work.
        """
        self._ahead = ahead
        self._order: list[_Unit] = []
        """Units in the order of the last run."""
        self._seen: list[_Unit] = []
        """Units in the order of this run, so far."""
        self._held: list[_Unit] = []
        """Those that are gathered, or being gathered."""
        self._coming: dict[int, Any] = {}
        """ds_id of a parameter that is being gathered -> handle."""
        self._runs = 0
        """Inputs of the current run; 0 = none."""
        for module, parameters in filter(lambda found: found[1], _units(model)):
            unit = _Unit(parameters)
            module.register_forward_pre_hook(lambda *_, unit=unit: None if pause(unit) else self._enter(unit))
            module.register_forward_hook(lambda *_, unit=unit: self._leave(unit))
        watching = _watching(self._touch)
        for module in model.modules():
            if module._parameters:
                module._parameters = watching(module)

    def run(self, works: Sequence[Callable[[], T]]) -> list[T]:
        """Call each of `works`, which run the model forward; all pass a unit before any comes to the next.

        Each executes the operators that it would alone, on its own tensors, so its result is the same in every bit.

        Returns:
            What they returned.
        """
        self._runs, self._seen = len(works), []
        self._held = [_Unit([])]  # of what is used outside of its own module's forward; until the end
        try:
            results = lockstep(works, self._enter) if len(works) > 1 else [work() for work in works]
            self._order = self._seen
        finally:
            self._runs = 0
            for unit in list(self._held):
                self._arrive(unit.parameters)
                self._release(unit)
        return results

    def _enter(self, unit: _Unit) -> None:
        if not self._runs:
            raise RuntimeError("a model that LayerGather gathers was called by itself; expected a call of its run().")
        position = len(self._seen)
        self._seen.append(unit)
        unit.inside = self._runs
        self._launch(unit)
        self._arrive(unit.parameters)
        # Before this unit's first kernel is enqueued: a gather waits for what is on the stream when it is launched, so
        # that this one overlaps with this unit's kernels; launched after them it would run after them.
        if self._ahead and self._order[position : position + 1] == [unit] and position + 1 < len(self._order):
            self._launch(self._order[position + 1])

    def _leave(self, unit: _Unit) -> None:
        unit.inside -= 1
        comes_again = self._order[len(self._seen) : len(self._seen) + 1] == [unit]  # layers that share their weights
        if not unit.inside and not comes_again:
            self._release(unit)

    def _touch(self, parameter: Any) -> None:
        """A parameter is read: some models read one outside of its own module's forward (DeBERTa's positions)."""
        if self._runs and not _is(parameter, "AVAILABLE"):
            self._held[0].parameters.append(parameter)
            self._gather([parameter])
            self._arrive([parameter])

    def _launch(self, unit: _Unit) -> None:
        if unit not in self._held:
            self._held.append(unit)
        self._gather(unit.parameters)

    def _gather(self, parameters: Sequence[Any]) -> None:
        """Begin to gather those that are neither gathered nor being gathered, in as few collectives as possible."""
        kinds: dict[tuple[bool, bool], list[Any]] = {}
        for parameter in parameters:
            if _is(parameter, "NOT_AVAILABLE"):
                # DeepSpeed takes one kind at a time: with hpZ's copy in the node or without, quantized or not.
                kind = parameter.ds_secondary_tensor is not None, hasattr(parameter.ds_tensor, "ds_quant_scale")
                kinds.setdefault(kind, []).append(parameter)
        for (_, quantized), group in kinds.items():
            handle = group[0].all_gather_coalesced(group, quantize=quantized)
            self._coming |= {parameter.ds_id: handle for parameter in group}

    def _arrive(self, parameters: Sequence[Any]) -> None:
        for parameter in parameters:
            if parameter.ds_id in self._coming:
                self._coming.pop(parameter.ds_id).wait()

    def _release(self, unit: _Unit) -> None:
        self._held.remove(unit)
        kept = {parameter.ds_id for other in self._held for parameter in other.parameters}
        free = [p for p in unit.parameters if p.ds_id not in kept and _is(p, "AVAILABLE")]
        if free:
            free[0].partition(free)


def _units(module: nn.Module) -> Iterator[tuple[nn.Module, list[Any]]]:
    """Modules at whose forward something is gathered, and what. A parameter may be in several (tied)."""
    if not any(isinstance(inner, _CONTAINERS) for inner in module.modules()):
        own, children = list(module.parameters()), []
    else:
        own, children = list(module.parameters(recurse=False)), list(module.children())
    yield module, own
    for child in children:
        if isinstance(child, _CONTAINERS):
            yield from ((layer, list(layer.parameters())) for layer in child.children())
        else:
            yield from _units(child)


def _is(parameter: Any, status: str) -> bool:
    return bool(parameter.ds_status.name == status)


def _watching(touch: Callable[[Any], None]) -> Callable[[nn.Module], Any]:
    """Makes a module's dictionary of parameters one that calls `touch` for each that is read."""
    # A subclass of DeepSpeed's own: its engine replaces any other in all modules, at each forward.
    from deepspeed.runtime.zero.parameter_offload import ZeROOrderedDict

    class Watching(ZeROOrderedDict):
        def __getitem__(self, name: str) -> Any:
            parameter: Any = OrderedDict.__getitem__(self, name)
            if parameter is not None and not torch.compiler.is_compiling():  # traced, it would be a guard of the graph
                touch(parameter)
            return parameter

    def watching(module: nn.Module) -> Watching:
        new = Watching(module)
        new.update(module._parameters)
        return new

    return watching
