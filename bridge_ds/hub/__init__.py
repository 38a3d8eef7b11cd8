"""A trained bridge as a Hugging Face model: config, model, processor, and the folder in which it is shared.

Importing this package registers them with AutoConfig, AutoModelForCausalLM and AutoProcessor.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, AutoProcessor

from bridge_ds.hub.config import MODEL_TYPE, BridgeConfig
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.hub.processor import BridgeProcessor

__all__ = ["BridgeConfig", "BridgeForCausalLM", "BridgeProcessor"]

AutoConfig.register(MODEL_TYPE, BridgeConfig, exist_ok=True)
AutoModelForCausalLM.register(BridgeConfig, BridgeForCausalLM, exist_ok=True)
AutoProcessor.register(BridgeConfig, BridgeProcessor, exist_ok=True)
