"""Facts about a form of injection (options, parameters, memory), for config, planner and docs. Imports no torch.

Dimensions: L encoder layers, D encoder width, H LLM width, K layers of the LLM that attend.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bridge_ds.injection.base import Form

__all__ = ["FormSpec"]


@dataclass(frozen=True)
class FormSpec:
    """One form. `config` below is the recipe's `injection:` part."""

    module: str
    """Class of the module, a :class:`bridge_ds.injection.base.Form`, as `package.module:Class`."""
    summary: str
    """One line, for the table of the docs."""
    options: tuple[str, ...] = ()
    """Keys of the recipe's `injection:` part that the constructor takes; others have no effect."""
    parameters: Callable[[int, int, int, int, Any], int] = lambda layers, width, llm_width, places, config: places
    """(L, D, H, K, config) -> number of trained parameters."""
    activations: Callable[[int, int, int, int, int, Any], int] = lambda *_: 0
    """(encoder tokens, D, H, K, bytes of an element, config) -> bytes kept for backward."""
    projects: bool = False
    """Keys and values come from the own projections of each attention layer, which it must have."""
    reads_prompt: bool = False
    """What it attends to is the soft prompt, which then does not stand in the LLM's input."""

    def __call__(self, layers: int, width: int, llm_width: int, places: int, **options: Any) -> Form:
        """Build the module for L encoder layers of width D and K layers of an LLM of width H."""
        module, _, name = self.module.partition(":")
        made: Form = getattr(importlib.import_module(module), name)(layers, width, llm_width, places, **options)
        return made
