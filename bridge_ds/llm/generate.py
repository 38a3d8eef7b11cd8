"""Greedy decoding after a prefix, a token a step from the cache.

Letters: B batch, X prefix length and what has been written, H LLM width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch

from bridge_ds.llm.base import LLM
from bridge_ds.llm.score import read_prefix
from bridge_ds.llm.splice import Spliced

__all__ = ["cut_at", "end_ids", "generate", "positions_of"]


@torch.no_grad()
def generate(
    llm: LLM,
    prefix: Spliced,
    ends: Collection[int],
    most: int,
    any_of: Callable[[bool], bool] = bool,
    going: Callable[[int, list[int]], bool] | None = None,
) -> list[list[int]]:
    """What the model writes, the likeliest token each time.

    Args:
        prefix: left-padded, see :func:`bridge_ds.llm.splice.splice`.
        ends: token ids after each of which a row is done (see :func:`end_ids`).
        most: most tokens of a row, the end included; fewer where the LLM has no place for them.
        any_of: whether a flag is set on some rank (a collective). Under ZeRO-3 every rank must run the model as often
            as the others, so all go on while one has a row to finish.
        going: whether a row is still wanted, asked with its place and what it has written before its first token and
            after each one; none = all are.

    Returns:
        For each row the ids up to the end token, which is left out.
    """
    logits_BV, cache = read_prefix(llm, prefix)
    mask_BX, position_B = prefix.mask_BX, prefix.mask_BX.sum(1)
    rows, places = mask_BX.shape[0], positions_of(llm.model) or 1 << 30
    written: list[list[int]] = [[] for _ in range(rows)]
    used = position_B.tolist()
    open_ = [going is None or going(row, []) for row in range(rows)]
    for step in range(most):
        next_B = logits_BV.argmax(-1)
        for row, token in enumerate(next_B.tolist()):
            open_[row] = open_[row] and token not in ends
            if open_[row]:
                written[row].append(token)
                fits = used[row] + step < places
                open_[row] = fits and (going is None or going(row, written[row]))
        if step == most - 1 or not any_of(any(open_)):
            break
        mask_BX = torch.cat([mask_BX, mask_BX.new_ones(rows, 1)], dim=1)
        logits_BV, output = llm.logits_at(
            llm.embed(next_B[:, None]),
            torch.arange(rows, device=mask_BX.device),
            attention_mask=mask_BX,
            position_ids=(position_B + step).clamp(max=places - 1)[:, None],
            past_key_values=cache,
            use_cache=True,
        )
        cache = output.past_key_values
    return written


def cut_at(text: str, stops: Sequence[str]) -> str:
    """What of a written text stands before the first stop; an empty one stops nothing."""
    for stop in filter(None, stops):
        text = text.split(stop)[0]
    return text


def end_ids(model: Any, eos: int) -> set[int]:
    """Ids that end an answer: the one that closed every target in training, and those of the LLM's own (Llama 3 and
    Qwen end a turn and a text by two).

    Args:
        model: the causal language model.
        eos: the tokenizer's end token.
    """
    own = model.generation_config.eos_token_id
    return {eos, *(own if isinstance(own, list) else [] if own is None else [own])}


def positions_of(model: Any) -> int:
    """Places that a causal language model was built for; 0 = unknown."""
    return int(getattr(model.config.get_text_config(), "max_position_embeddings", 0) or 0)
