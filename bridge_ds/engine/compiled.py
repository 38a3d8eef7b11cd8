"""The frozen layers of encoder and LLM in a training step, each compiled by itself (`train.compile: frozen`).

Layers of one class share their compiled code, so that compiling takes seconds however many there are, and what hangs on
a layer stays outside of it: ZeRO-3's gathers, transformers' record of the hidden states.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import nn

from bridge_ds.bridge import BridgeModel
from bridge_ds.compat.transformers import CACHE_NAMES, record_layers_only
from bridge_ds.config.text import one_line
from bridge_ds.encoder.frozen import FrozenEncoder
from bridge_ds.engine.layers import layers_of
from bridge_ds.errors import ConfigError
from bridge_ds.fusion.kernels import why_no_triton
from bridge_ds.llm.frozen import FrozenLLM

__all__ = ["CompiledLayers", "check_compiler", "compiled_parts"]

_log = logging.getLogger(__name__)
GRAPHS = 32
"""Most of both models: by class and kind of layer (T5's first, sliding windows), mask or none, one row or more."""
_CACHES = (*CACHE_NAMES, "layer_past")


def check_compiler(choice: str) -> str:
    """Whether torch.compile finds the compiler that it needs on this machine.

    Args:
        choice: `train.compile`.

    Returns:
        what it is; for people.

    Raises:
        ConfigError: there is none.
    """
    if choice == "off":
        return "none needed"
    named = os.environ.get("CXX", "g++")  # as torch._inductor.config.cpp.cxx
    if torch.cuda.is_available():
        named, why = "triton", why_no_triton() and f"triton {why_no_triton()}"
    else:
        why = "" if shutil.which(named) else f"torch.compile needs a C++ compiler and finds no {named}"
    if why:
        raise ConfigError(f"train.compile is {choice}: {why}; install it, or set train.compile=off.")
    return named


class CompiledLayers:
    """The layers of a frozen encoder and LLM (:func:`compiled_parts`), compiled.

    A layer that torch.compile cannot take whole runs as it is: the log says so once for its class. So does one that
    gets a cache.
    """

    def __init__(self, model: BridgeModel, training_only: bool = True, backend: str = "inductor") -> None:
        """Args:
        model: on its device, with all its hooks.
        training_only: run them as they are while the model is in eval mode: in validation and scoring.
        backend: of torch.compile.
        """
        self.on = True
        """False: all run as they are."""
        self.refused: dict[type[nn.Module], str] = {}
        """Classes of layers that could not be compiled, and why."""
        self._model, self._training_only, self._backend = model, training_only, backend
        import torch._inductor.config  # seconds, which other runs need not wait

        self._faults = torch._dynamo.exc.TorchDynamoException, torch._dynamo.exc.FailOnRecompileLimitHit
        self._before = 0
        self._before = self.graphs
        # Else a dimension that happens to be as long as another in the first batch is taken to be always so.
        torch.fx.experimental._config.use_duck_shape = False
        torch._dynamo.config.recompile_limit = GRAPHS
        if torch.are_deterministic_algorithms_enabled():
            # Else the fastest of several kernels is taken, by a measurement; they may sum in another order.
            torch._inductor.config.deterministic = True
        for part in compiled_parts(model).values():
            record_layers_only(part.model)
            for layer in layers_of(part.model):
                layer.forward = self._compiled(layer)

    @property
    def graphs(self) -> int:
        """Made since."""
        return int(torch._dynamo.utils.counters["stats"]["unique_graphs"]) - self._before

    def _compiled(self, layer: nn.Module) -> Callable[..., Any]:
        plain, kind = layer.forward, type(layer)
        compiled = torch.compile(plain, dynamic=True, fullgraph=True, backend=self._backend)

        @wraps(plain)
        def forward(*given: Any, **options: Any) -> Any:
            wanted = self.on and (self._model.training or not self._training_only) and kind not in self.refused
            if wanted and not any(options.get(name) is not None for name in _CACHES):
                try:
                    return compiled(*given, **options)
                except self._faults as error:
                    # What dynamo advises is for the author of the layer.
                    why = one_line(RuntimeError(str(error).partition("\n  Hint:")[0])).rstrip(".")
                    self.refused[kind] = why or type(error).__name__
                    _log.info(f"note: layers of class {kind.__name__} run uncompiled; torch.compile says: {why}.")
            return plain(*given, **options)

        return forward


def compiled_parts(model: BridgeModel) -> dict[str, Any]:
    """The base models that `train.compile: frozen` compiles, by name. Not one in which anything is trained: ZeRO-3
    gathers the inside of its layers. Not an encoder with dropout: compiled code would draw other masks. Not an LLM with
    `injection`, whose layers attend to something else in each call."""
    parts: dict[str, Any] = {}
    if isinstance(model.encoder, FrozenEncoder) and not model.encoder.dropout:
        parts["encoder"] = model.encoder
    if isinstance(model.llm, FrozenLLM) and not model.llm.trained and model.injection is None:
        parts["LLM"] = model.llm
    return parts
