"""bridge_ds: train the small module between a frozen multilingual encoder and a frozen English LLM.

The system of arXiv 2508.09091 (all encoder layers fused, then mapped into the LLM's embedding space), with
LangBridge (arXiv 2401.10695) as the baseline, on DeepSpeed ZeRO-3.

A trained bridge as a Hugging Face model: `BridgeForCausalLM`, `BridgeConfig`, `BridgeProcessor`, also through
AutoModelForCausalLM, AutoConfig and AutoProcessor once this package is imported.
"""

from __future__ import annotations

import importlib
from typing import Any

from bridge_ds.auto_classes import register_when_imported

__version__ = "0.1.0"

_LAZY = {
    "BridgeConfig": "bridge_ds.hub.config",
    "BridgeForCausalLM": "bridge_ds.hub.model",
    "BridgeProcessor": "bridge_ds.hub.processor",
}

__all__ = ["BridgeConfig", "BridgeForCausalLM", "BridgeProcessor", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported when they are asked for: torch and transformers take seconds.
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])


register_when_imported()
