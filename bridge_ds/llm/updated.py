"""A frozen base model with LoRA's updates beside its matrices: what the LLM and the encoder alone share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from bridge_ds.llm.bias import use_trained

__all__ = ["Updated"]


class Updated(nn.Module):
    """Mixin, before the class that holds `model` in the bases; :mod:`bridge_ds.llm.lora` fills it."""

    model: Any
    called = "LLM"
    """What it is called in messages."""
    task_type = "CAUSAL_LM"
    """By which peft knows the output head."""

    def nothing_updated(self) -> None:
        """To be called by `__init__`: there are no updates yet."""
        self.trained: frozenset[str] = frozenset()
        """Names of the parameters that LoRA has added (:func:`bridge_ds.llm.lora.add_lora`)."""
        self.updated: list[Any] = []
        """The layers that it has added them to."""
        self.biased: list[nn.Module] = []
        """Modules with a trained bias beside their own (:mod:`bridge_ds.llm.bias`)."""

    def drop(self, mode: bool) -> None:
        """Turn LoRA's own dropout on or off."""
        for layer in self.updated:
            layer.lora_dropout.train(mode)

    @contextmanager
    def without_adapters(self, wanted: bool = True) -> Iterator[None]:
        """Disable LoRA's updates and biases while open, if `wanted`."""
        updated, biased = (self.updated, self.biased) if wanted else ([], [])
        for layer in updated:
            layer.enable_adapters(False)
        for module in biased:
            use_trained(module, False)
        try:
            yield
        finally:
            for layer in updated:
                layer.enable_adapters(True)
            for module in biased:
                use_trained(module, True)
