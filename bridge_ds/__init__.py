"""bridge_ds: train the small module between a frozen multilingual encoder and a frozen English LLM.

The system of arXiv 2508.09091 (all encoder layers fused, then mapped into the LLM's embedding space), with
LangBridge (arXiv 2401.10695) as the baseline, on DeepSpeed ZeRO-3.

A trained bridge as a Hugging Face model: `BridgeForCausalLM`, `BridgeConfig`, `BridgeProcessor`. `import
bridge_ds.hub` registers them with AutoModelForCausalLM, AutoConfig and AutoProcessor.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

__version__ = "0.1.0"

_HUB = ("BridgeConfig", "BridgeForCausalLM", "BridgeProcessor")

__all__ = ["BridgeConfig", "BridgeForCausalLM", "BridgeProcessor", "__version__"]


def __getattr__(name: str) -> Any:
    # Imported on first use: torch and transformers take seconds.
    if name not in _HUB:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("bridge_ds.hub"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HUB])


if "transformers.models.auto.configuration_auto" in sys.modules:  # the Auto classes were imported before
    importlib.import_module("bridge_ds.hub")
