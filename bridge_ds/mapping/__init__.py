"""From encoder width to LLM width."""

from __future__ import annotations

from bridge_ds.mapping.projector import END_INITS, LATENT, MAPPINGS, Projector

__all__ = ["END_INITS", "LATENT", "MAPPINGS", "Projector"]
