"""Greedy decoding after a prefix, one token a step from the cache, or from all before it where the LLM's cache cannot
be continued; works under ZeRO-3, where transformers' does not.

Dimensions: B batch, X prefix length and what has been written, H LLM width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch

from bridge_ds.inference.score import Read, read_prefix, read_whole
from bridge_ds.llm.base import LLM
from bridge_ds.llm.splice import Spliced

__all__ = ["decode_greedily"]


@torch.no_grad()
def decode_greedily(
    llm: LLM,
    prefix: Spliced,
    ends: Collection[int],
    max_new_tokens: int,
    any_of: Callable[[bool], bool] = bool,
    going: Callable[[int, list[int]], bool] | None = None,
    keep_end: bool = False,
    read: Read | None = None,
) -> list[list[int]]:
    """The argmax token each step.

    Args:
        prefix: left-padded, see :func:`bridge_ds.llm.splice.splice`.
        ends: token ids each of which ends a row.
        max_new_tokens: most tokens of a row, the end included; fewer where the LLM has no positions for them.
        any_of: whether a flag is set on some rank (a collective). Under ZeRO-3 every rank must run the model as often
            as the others, so all go on while one has a row to finish.
        going: whether a row is still wanted, called with its number and what it has written, before its first token
            and after each one; None = all are.
        keep_end: return the end token too.
        read: the prefixes, if they have been read, on all ranks; it can be used once.

    Returns:
        For each row the ids up to the end token.
    """
    logits_BV, cache, mask_BX = read or Read(*read_prefix(llm, prefix), prefix.mask_BX)
    position_B = prefix.mask_BX.sum(1)
    rows, positions = mask_BX.shape[0], llm.positions or 1 << 30
    written: list[list[int]] = [[] for _ in range(rows)]
    used = position_B.tolist()
    row_B = torch.arange(rows, device=mask_BX.device)
    ids_BT = position_B.new_empty(rows, 0)
    unfinished = [going is None or going(row, []) for row in range(rows)]
    for step in range(max_new_tokens):
        next_B = logits_BV.argmax(-1)
        for row, token in enumerate(next_B.tolist()):
            if unfinished[row] and (keep_end or token not in ends):
                written[row].append(token)
            unfinished[row] = unfinished[row] and token not in ends
            if unfinished[row]:
                fits = used[row] + step < positions
                unfinished[row] = fits and (going is None or going(row, written[row]))
        if step == max_new_tokens - 1 or not any_of(any(unfinished)):
            break
        mask_BX = torch.cat([mask_BX, mask_BX.new_ones(rows, 1)], dim=1)
        ids_BT = torch.cat([ids_BT, next_B[:, None]], dim=1)
        if llm.behavior.steps:
            mask: dict[str, Any] = {"attention_mask": mask_BX} if llm.behavior.step_mask else {}
            logits_BV, cache = llm.logits_at(
                llm.embed(next_B[:, None]),
                row_B,
                cache,
                injected=prefix.injected,
                position_ids=(position_B + step).clamp(max=positions - 1)[:, None],
                use_cache=True,
                **mask,
            )
        else:
            fits_BT = position_B[:, None] + torch.arange(step + 1, device=row_B.device) < positions
            last_B = (fits_BT.sum(1) - 1).clamp(min=0)
            last_BT = torch.arange(step + 1, device=row_B.device) == last_B[:, None]
            logits_BV = read_whole(llm, prefix, row_B, ids_BT, fits_BT, last_BT)
    return written
