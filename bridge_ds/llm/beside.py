"""Several continuations of each row of a prefix, read in one pass after one copy of its cache: they stand side by side,
and a mask lets each see the prefix and itself alone.

Dimensions: B batch, X prefix length, C tokens of all continuations of a row, N tokens of all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["Beside", "sees_all", "side_by_side"]


class Beside(NamedTuple):
    """What the model is given."""

    ids_BC: torch.Tensor
    """[B, C] tokens, right-padded."""
    position_ids: torch.Tensor
    """[B, C], each continuation's count from the end of the prefix."""
    attention_mask: torch.Tensor
    """[B, 1, C, X + C], what is added to the scores of attention: 0, or the least number of the dtype."""
    places_N: torch.Tensor
    """[N] flat indices into B x C of the tokens, by row, continuation and place."""

    def options(self) -> dict[str, Any]:
        """As arguments of the model."""
        return {"attention_mask": self.attention_mask, "position_ids": self.position_ids, "use_cache": True}


def side_by_side(mask_BX: torch.Tensor, continuations: Sequence[Sequence[Sequence[int]]], dtype: torch.dtype) -> Beside:
    """Lay out the continuations of each row, lists of token ids.

    Args:
        mask_BX: of the prefix, 1 on real tokens.
        continuations: of each row; at least one token in all.
        dtype: of the model's embeddings.
    """
    device, rows = mask_BX.device, len(continuations)
    width = max(sum(map(len, row)) for row in continuations)
    ids, steps = torch.zeros(2, rows, width, dtype=torch.long)
    of = torch.full((rows, width), -1)
    """Number of the continuation; -1 = padding."""
    for row, own in enumerate(continuations):
        count = sum(map(len, own))
        ids[row, :count] = torch.tensor([token for each in own for token in each], dtype=torch.long)
        steps[row, :count] = torch.tensor([step for each in own for step in range(len(each))], dtype=torch.long)
        of[row, :count] = torch.tensor([n for n, each in enumerate(own) for _ in each], dtype=torch.long)
    seen_BCC = (of[:, :, None] == of[:, None, :]).tril().to(device)
    seen = torch.cat([mask_BX.bool()[:, None].expand(-1, width, -1), seen_BCC], dim=2)
    bias = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)
    places_N = (of >= 0).flatten().nonzero().squeeze(1)
    return Beside(ids.to(device), mask_BX.sum(1)[:, None] + steps.to(device), bias[:, None], places_N.to(device))


def sees_all(config: Any) -> bool:
    """Whether a token attends to all before it in every layer, by the model's config: a ready mask takes the place of
    the window of a layer that does not."""
    values = config.get_text_config().to_dict()
    kinds = set(values.get("layer_types") or ())
    return kinds <= {"full_attention"} and not any(
        value for name, value in values.items() if name.endswith(("window", "window_size", "chunk_size"))
    )
