"""Score every choice of a sample after a prefix that is computed once.

Dimensions: B batch, R choices of all rows, X prefix length, T tokens of a choice (end included), N positions predicted,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from bridge_ds.data.loading.layout import PackedRows
from bridge_ds.llm.base import LLM
from bridge_ds.llm.beside import side_by_side
from bridge_ds.llm.splice import Segment, Spliced, splice

__all__ = ["ChoiceScores", "Read", "read_prefix", "read_whole", "score_choices"]

_ROWS = 1024
"""Rows of logits that are cast to float32 at a time."""


class Read(NamedTuple):
    """Prefixes that have been read."""

    logits_BV: torch.Tensor
    """Of the first token after each."""
    cache: Any
    """Of the LLM, for :attr:`mask_BX`."""
    mask_BX: torch.Tensor
    """1 on the positions of the cache that are the prefix."""

    def rows(self, numbers: Sequence[int]) -> Read:
        """Some rows; the cache is no more that of the others."""
        chosen = torch.tensor(numbers, device=self.mask_BX.device)
        if numbers != list(range(len(self.mask_BX))):
            self.cache.reorder_cache(chosen)
        return Read(self.logits_BV[chosen], self.cache, self.mask_BX[chosen])


class ChoiceScores(NamedTuple):
    """What :func:`score_choices` finds."""

    log_p: torch.Tensor
    """[R] sum of log p over the choice's tokens, in nats; 0 of a choice without tokens."""
    greedy: torch.Tensor
    """[R] whether each token of the choice is the argmax after the ones before it, so that greedy decoding gives
    exactly this choice."""
    first: list[int]
    """For each row the id of the likeliest first token; empty if there is nothing to score."""
    read: Read | None = None
    """The prefixes as they were read, to be continued otherwise; None = they are to be read again."""


@torch.no_grad()
def score_choices(
    llm: LLM,
    prefix: Spliced,
    choices: Sequence[Sequence[Sequence[int]]],
    any_of: Callable[[bool], bool] = bool,
) -> ChoiceScores:
    """Log-probability and greedy match of each row's own choices. The model runs twice, however many there are (once if
    none has two tokens); the second time from the prefix's cache, or over all of it where the LLM's cannot be shared.
    Memory: the cache of the prefixes; where choices cannot be read side by side it is copied for each.

    Args:
        prefix: left-padded, see :func:`bridge_ds.llm.splice.splice`.
        choices: for each row its choices, lists of token ids.
        any_of: whether a flag is set on some rank (a collective). Under ZeRO-3 every rank must run the model as often
            as the others.
    """
    device = prefix.mask_BX.device
    flat = [ids for row in choices for ids in row]
    row_R = torch.tensor([number for number, row in enumerate(choices) for _ in row], device=device)
    length_R = torch.tensor([len(ids) for ids in flat])
    longest = int(length_R.max()) if flat else 0
    if not any_of(longest > 0):
        return ChoiceScores(
            torch.zeros(len(flat), device=device), torch.ones(len(flat), dtype=torch.bool, device=device), []
        )
    longest = max(longest, 1 + any_of(longest > 1))
    ids_RT = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in flat]).reshape(len(flat), longest)
    real_RT = torch.arange(longest) < length_R[:, None]
    ids_RT, real_RT = ids_RT.to(device), real_RT.to(device)

    first_BV, cache = read_prefix(llm, prefix)
    first = first_BV.argmax(-1).tolist()
    log_p_R, greedy_R = _look_up(first_BV[row_R], ids_RT[:, 0])
    if not real_RT[:, 0].all():
        log_p_R, greedy_R = log_p_R.where(real_RT[:, 0], 0.0), greedy_R | ~real_RT[:, 0]
    read = Read(first_BV, cache, prefix.mask_BX) if llm.behavior.beside else None
    if longest == 1:
        return ChoiceScores(log_p_R, greedy_R, first, read)
    if read:
        rest_NV, read = _read_beside(llm, prefix, choices, read)
    elif llm.behavior.reuse:
        rest_NV = _read_choices(llm, prefix, row_R, ids_RT, real_RT, cache)
    else:
        del cache
        rest_NV = read_whole(llm, prefix, row_R, ids_RT[:, :-1], real_RT[:, :-1], real_RT[:, 1:])
    log_p_N, greedy_N = _look_up(rest_NV, ids_RT[:, 1:][real_RT[:, 1:]])
    log_p_RT = log_p_R.new_zeros(real_RT[:, 1:].shape).masked_scatter(real_RT[:, 1:], log_p_N)
    greedy_RT = torch.ones_like(real_RT[:, 1:]).masked_scatter(real_RT[:, 1:], greedy_N)
    return ChoiceScores(log_p_R + log_p_RT.sum(-1), greedy_R & greedy_RT.all(-1), first, read)


def read_prefix(llm: LLM, prefix: Spliced) -> tuple[torch.Tensor, object]:
    """Logits [B, V] of the first token after the prefix, and the cache; None where the LLM's cannot be used."""
    if not (llm.behavior.steps or llm.behavior.reuse):
        # As in training: nor is it known what the class makes of padding before a text.
        injected, prefix = prefix.injected, splice([Segment(prefix.embeds_BXH, prefix.mask_BX)])
        rows, length = prefix.mask_BX.shape
        last_B = torch.arange(rows, device=prefix.mask_BX.device) * length + prefix.mask_BX.sum(1) - 1
        return llm.logits_at(prefix.embeds_BXH, last_B, injected=injected, use_cache=False)[0], None
    rows, length = prefix.mask_BX.shape
    last_B = torch.arange(1, rows + 1, device=prefix.mask_BX.device) * length - 1
    positions_BX = (prefix.mask_BX.cumsum(1) - 1).clamp(min=0)
    numbers = torch.arange(rows, device=last_B.device)
    packed = PackedRows(positions_BX, torch.full_like(numbers, length - 1)[:, None], numbers)
    return llm.logits_at(
        prefix.embeds_BXH,
        last_B,
        packed=packed,
        injected=prefix.injected,
        attention_mask=prefix.mask_BX,
        use_cache=True,
    )


def read_whole(
    llm: LLM,
    prefix: Spliced,
    row_R: torch.Tensor,
    ids_RT: torch.Tensor,
    real_RT: torch.Tensor,
    wanted_RT: torch.Tensor,
) -> torch.Tensor:
    """Logits [N, V] after the wanted ones of some tokens, each row's prefix and tokens read as in training: padded on
    the right, without mask and cache. Exact for every causal model.

    Args:
        llm: the LLM.
        prefix: padded on either side.
        row_R: of the prefix, for each row of tokens.
        ids_RT: [R, T] tokens after it.
        real_RT: [R, T] which of them are no padding; those after the last wanted one may be left out.
        wanted_RT: [R, T] after which of them logits are wanted, in row order.
    """
    tokens = Segment(llm.embed(ids_RT), real_RT.long())
    whole = splice([Segment(prefix.embeds_BXH[row_R], prefix.mask_BX[row_R]), tokens])
    at_RT = prefix.mask_BX.sum(1)[row_R][:, None] + torch.arange(ids_RT.shape[1], device=ids_RT.device)
    longest = whole.mask_BX.shape[1]
    at_RT = at_RT.clamp(max=longest - 1) + longest * torch.arange(len(row_R), device=ids_RT.device)[:, None]
    injected = prefix.injected and prefix.injected.rows(row_R)
    logits_NV, _ = llm.logits_at(whole.embeds_BXH, at_RT[wanted_RT], injected=injected, use_cache=False)
    return logits_NV


def _look_up(logits_NV: torch.Tensor, ids_N: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability [N] of each id in float32, and whether it is the likeliest."""
    parts = []
    for logits, ids in zip(logits_NV.split(_ROWS), ids_N.split(_ROWS), strict=True):
        logits = logits.float()
        parts.append((logits.gather(1, ids[:, None])[:, 0] - logits.logsumexp(1), logits.argmax(1) == ids))
    return torch.cat([log_p for log_p, _ in parts]), torch.cat([hit for _, hit in parts])


def _read_beside(
    llm: LLM, prefix: Spliced, choices: Sequence[Sequence[Sequence[int]]], read: Read
) -> tuple[torch.Tensor, Read]:
    """As :func:`_read_choices`, all choices of a row side by side after the one cache: it is not copied. And the
    prefixes with the cache that it now is, in which the choices are masked out."""
    rest = [[ids[:-1] for ids in row] for row in choices]
    idle = not any(ids for row in rest for ids in row)  # another rank has some to read
    given = side_by_side(prefix.mask_BX, [[[0]]] * len(rest) if idle else rest, prefix.embeds_BXH.dtype)
    places_N = given.places_N[: 0 if idle else None]
    logits_NV, cache = llm.logits_at(
        llm.embed(given.ids_BC), places_N, read.cache, injected=prefix.injected, **given.options()
    )
    mask_BX = torch.cat([prefix.mask_BX, torch.zeros_like(given.ids_BC)], dim=1)
    return logits_NV, Read(read.logits_BV, cache, mask_BX)


def _read_choices(
    llm: LLM, prefix: Spliced, row_R: torch.Tensor, ids_RT: torch.Tensor, real_RT: torch.Tensor, cache: object
) -> torch.Tensor:
    """Logits [N, V] after each choice token that has another behind it; the prefix is copied in the cache, not run."""
    cache.reorder_cache(row_R)  # type: ignore[attr-defined]
    ids_RT, next_RT = ids_RT[:, :-1], real_RT[:, 1:]
    mask_RX = torch.cat([prefix.mask_BX[row_R], torch.ones_like(ids_RT)], dim=1)
    steps_T = torch.arange(ids_RT.shape[1], device=ids_RT.device)
    logits_NV, _ = llm.logits_at(
        llm.embed(ids_RT),
        next_RT.flatten().nonzero().squeeze(1),
        attention_mask=mask_RX,
        position_ids=prefix.mask_BX.sum(1)[row_R][:, None] + steps_T,
        cache=cache,
        injected=prefix.injected and prefix.injected.rows(row_R),
        use_cache=True,
    )
    return logits_NV
