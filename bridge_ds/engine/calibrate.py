"""Initialize soft tokens at the scale of the LLM's own token embeddings, measured on real rows.

A soft prompt many times larger or smaller than text is a common cause of gibberish (LangBridge#18 with Gemma 2). The
encoder's states have any scale (T5's middle layers reach 1e5, transformers#10956), so it cannot be assumed.
"""

from __future__ import annotations

from typing import Any

import torch

from bridge_ds.data.loading.batch import Batch
from bridge_ds.encoder.base import States

__all__ = ["CALIBRATION_ROWS", "calibrate", "embedding_rms"]

CALIBRATION_ROWS = 16
"""Samples on which the mapping's initial scale is measured."""


@torch.no_grad()
def calibrate(engine: Any, batch: Batch, states: States | None = None) -> tuple[float, float]:
    """Set `mapping.scale` so that the soft tokens of `batch` have the RMS of typical token embeddings.

    Every rank must pass the same rows (then every rank finds the same number, with no communication).

    Args:
        states: of the batch's sources, if they are known.

    Returns:
        RMS of the soft tokens before, and the RMS they have now.
    """
    model = engine.module
    engine.eval()
    soft = model.soft(batch, states)
    real_N = soft.embeds_BKH[soft.mask_BK.bool()].float()
    real_N = real_N[real_N.any(-1)]  # an end vector that starts from zeros has no scale
    target = embedding_rms(model).to(real_N.device)
    before = real_N.pow(2).mean().sqrt()
    model.mapping.scale.copy_(target / before)
    engine.train()
    return float(before), float(target)


def embedding_rms(model: Any) -> torch.Tensor:
    """RMS of a typical token embedding of the LLM, a scalar: the median over the vocabulary, since tokens that
    pretraining never saw have tiny ones."""
    rows = model.llm.vocab_size
    ids = torch.linspace(0, rows - 1, min(rows, 1024), device=model.mapping.scale.device).long()
    rms: torch.Tensor = model.llm.embed(ids[None])[0].float().pow(2).mean(-1).sqrt().median()
    return rms
