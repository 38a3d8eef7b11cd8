"""Pull the states of a sentence to those that the original encoder gives its English translation: InfoNCE over the
English sentences of the micro-batch (arXiv 1807.03748), on the mean state of each layer, in both directions; and each
token's state to those of the English tokens that it is nearest to.

Dimensions: B batch, S encoder tokens, P tokens of English sentences, D encoder width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from bridge_ds.encoder.base import States
from bridge_ds.encoder.pool import mean_state

__all__ = ["apart", "infonce"]

_SHARP = 0.05
"""By which cosines are divided before a softmax says which tokens belong together (SimAlign, arXiv 2004.08728)."""
_NEVER = -1e4
"""In place of the logit of what is no pair: finite, so that a row without any pair has no NaN."""


def infonce(
    own: States,
    own_mask_BS: torch.Tensor,
    english: States,
    english_ids_BP: torch.Tensor,
    english_mask_BP: torch.Tensor,
    pair_B: torch.Tensor,
    temperature: float,
    layers: Sequence[int],
) -> torch.Tensor:
    """Mean over the layers, summed over the pairs.

    Args:
        own: the states that are trained, L of [B, S, D].
        own_mask_BS: 1 on their tokens.
        english: of the original encoder, L of [B, P, D].
        english_ids_BP: the English tokens, padded alike: sentences with the same ones are no negatives of each other.
        english_mask_BP: 1 on them.
        pair_B: bool; rows that are no pair count nowhere.
        temperature: divides the cosines.
        layers: numbers of the states, from 0.

    Returns:
        float32 [2]: the loss in nats, and how many sentences are nearest to their own translation.
    """
    names_B = torch.arange(len(pair_B), device=pair_B.device)
    same_BB = (english_ids_BP[:, None] == english_ids_BP).all(-1)
    pair_BB = pair_B[:, None] & pair_B & (~same_BB | (names_B[:, None] == names_B))
    total = torch.zeros(2, device=pair_B.device)
    for layer in layers:
        own_BD = F.normalize(mean_state(own[layer], own_mask_BS), dim=-1)
        english_BD = F.normalize(mean_state(english[layer], english_mask_BP), dim=-1)
        logits_BB = (own_BD @ english_BD.T / temperature).masked_fill(~pair_BB, _NEVER)
        nll_B = sum(F.cross_entropy(each, names_B, reduction="none") for each in (logits_BB, logits_BB.T)) / 2
        right_B = logits_BB.argmax(1) == names_B
        total = total + torch.stack([(nll_B * pair_B).sum(), (right_B & pair_B).sum().float()])
    return total / len(layers)


def apart(
    own: States,
    own_mask_BS: torch.Tensor,
    english: States,
    english_mask_BP: torch.Tensor,
    pair_B: torch.Tensor,
    layers: Sequence[int],
) -> torch.Tensor:
    """How far tokens are from those that they belong to: 1 - cosine, mean over the tokens of a sentence, both
    directions and the layers, summed over the pairs. Which belong together is a softmax of the cosines, without a
    gradient. Unlike a mean over the sentence this asks for the place and role of a word too, as far as states tell it.

    Args:
        as of :func:`infonce`.

    Returns:
        float32 scalar.
    """
    seen_BSP = own_mask_BS[:, :, None].bool() & english_mask_BP[:, None].bool()
    total = torch.zeros((), device=pair_B.device)
    for layer in layers:
        own_BSD = F.normalize(own[layer].float().masked_fill(own_mask_BS[..., None] == 0, 0), dim=-1)
        english_BPD = F.normalize(english[layer].float().masked_fill(english_mask_BP[..., None] == 0, 0), dim=-1)
        cosines_BSP = own_BSD @ english_BPD.mT
        sharp_BSP = (cosines_BSP.detach() / _SHARP).masked_fill(~seen_BSP, _NEVER)
        for dim, mask in ((2, own_mask_BS), (1, english_mask_BP)):
            nearest = (sharp_BSP.softmax(dim) * cosines_BSP).sum(dim)
            apart_B = ((1 - nearest) * mask).sum(1) / mask.sum(1).clamp(min=1)
            total = total + (apart_B * pair_B).sum() / 2
    return total / len(layers)
