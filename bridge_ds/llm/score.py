"""Score every label of a task after a prefix that is computed once.

Letters: B batch, C labels, X prefix length, T label tokens (end included), H LLM width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.llm.splice import Spliced

__all__ = ["score_labels"]


@torch.no_grad()
def score_labels(llm: FrozenLLM, prefix: Spliced, labels: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Likelihood and greedy match of each label.

    Args:
        prefix: left-padded, see :func:`bridge_ds.llm.splice.splice`.
        labels: C lists of token ids, each with its end token.

    Returns:
        scores [B, C]: sum of log p over the label's tokens, in nats; greedy [B, C]: true where each token of the label
        is the likeliest after the ones before it, which is to say that greedy decoding gives exactly this label.
    """
    rows, count, length = prefix.mask_BX.shape[0], len(labels), max(len(label) for label in labels)
    device = prefix.mask_BX.device
    ids_CT = torch.zeros(count, length, dtype=torch.long, device=device)
    real_CT = torch.zeros(count, length, dtype=torch.bool, device=device)
    for place, label in enumerate(labels):
        ids_CT[place, : len(label)] = torch.tensor(label, device=device)
        real_CT[place, : len(label)] = True

    first_BV, cache = _read_prefix(llm, prefix)
    logits_BCTV = first_BV[:, None, None].expand(rows, count, 1, -1)
    if length > 1:
        rest_BCTV = _read_labels(llm, prefix, ids_CT[:, :-1], cache)
        logits_BCTV = torch.cat([logits_BCTV, rest_BCTV], dim=2)
    ids_BCT1 = ids_CT.expand(rows, -1, -1)[..., None]
    log_p_BCT = torch.log_softmax(logits_BCTV.float(), dim=-1).gather(-1, ids_BCT1)[..., 0]
    hit_BCT = logits_BCTV.argmax(-1) == ids_BCT1[..., 0]
    return (log_p_BCT * real_CT).sum(-1), (hit_BCT | ~real_CT).all(-1)


def _read_prefix(llm: FrozenLLM, prefix: Spliced) -> tuple[torch.Tensor, object]:
    """Logits [B, V] of the first label token, and the cache."""
    last_BX = torch.zeros_like(prefix.mask_BX, dtype=torch.bool)
    last_BX[:, -1] = True
    positions_BX = (prefix.mask_BX.cumsum(1) - 1).clamp(min=0)
    logits_BV, output = llm.logits_at(
        prefix.embeds_BXH, last_BX, attention_mask=prefix.mask_BX, position_ids=positions_BX, use_cache=True
    )
    return logits_BV, output.past_key_values


def _read_labels(llm: FrozenLLM, prefix: Spliced, ids_CT: torch.Tensor, cache: object) -> torch.Tensor:
    """Logits [B, C, T, V] after each label token; the prefix is repeated C times in the cache, not recomputed."""
    rows, (count, length) = prefix.mask_BX.shape[0], ids_CT.shape
    cache.batch_repeat_interleave(count)  # type: ignore[attr-defined]
    ids_RT = ids_CT.repeat(rows, 1)
    mask_RX = torch.cat([prefix.mask_BX.repeat_interleave(count, 0), torch.ones_like(ids_RT)], dim=1)
    positions_RT = prefix.mask_BX.sum(1).repeat_interleave(count)[:, None] + torch.arange(length, device=ids_RT.device)
    everywhere_RT = torch.ones_like(ids_RT, dtype=torch.bool)
    logits, _ = llm.logits_at(
        llm.embed(ids_RT),
        everywhere_RT,
        attention_mask=mask_RX,
        position_ids=positions_RT,
        past_key_values=cache,
        use_cache=True,
    )
    return logits.view(rows, count, length, -1)
