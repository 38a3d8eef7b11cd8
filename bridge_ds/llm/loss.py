"""The training loss: a plain sum over target tokens, so that the division can be by the global count.

Dimensions: N target tokens of the micro-batch, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from bridge_ds.llm.splice import IGNORE

__all__ = ["nll_sum", "predicting"]


def predicting(labels_BX: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions whose output predicts a target, and those targets; synchronizes with the labels' device.

    Args:
        labels_BX: [B, X], see :class:`bridge_ds.llm.splice.Spliced`.

    Returns:
        flat indices [N] into B x X (each the position before a labelled one) and the labels [N], in row order.
    """
    wanted_BX = labels_BX != IGNORE
    wanted_BX[:, :1] = False  # there is none before it
    at_N = wanted_BX.flatten().nonzero().squeeze(1)
    return at_N - 1, labels_BX.flatten()[at_N]


def nll_sum(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    """Sum of -log p(label) in nats, float32, a scalar; labels that are IGNORE do not count.

    DeepSpeed averages micro-batches and ranks as equals, which over-weights short targets; the sum divided by the
    target tokens of the whole global batch does not (see :mod:`bridge_ds.engine.step`).
    """
    return F.cross_entropy(logits_NV.float(), labels_N, ignore_index=IGNORE, reduction="sum")
