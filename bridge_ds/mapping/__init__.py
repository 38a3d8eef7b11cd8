"""From encoder width to LLM width."""

from __future__ import annotations

from bridge_ds.mapping.projector import MAPPINGS, Projector

__all__ = ["MAPPINGS", "Projector"]
