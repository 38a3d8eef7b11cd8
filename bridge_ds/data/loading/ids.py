"""One sample as token ids."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdaptedIds", "TokenizedSample"]


@dataclass(frozen=True)
class TokenizedSample:
    """One sample as token ids."""

    source: list[int]
    """Encoder ids with the encoder tokenizer's own special tokens."""
    prompt: list[int]
    """LLM ids after the soft prompt: the text itself with `data.augment_prompt`, then the end of a chat template."""
    target: list[int]
    """LLM ids to predict, the end token included where the run has one."""
    truncated: tuple[str, ...]
    """Which of `source`, `prompt`, `target` were longer than allowed."""
    head: tuple[int, ...] = ()
    """LLM ids before the soft prompt, of a chat template, BOS included; empty = BOS alone, where the LLM has one."""
    lesson: list[int] | None = None
    """LLM ids that the LLM reads in place of soft prompt and prompt where it teaches; None = it does not."""


@dataclass(frozen=True)
class AdaptedIds(TokenizedSample):
    """One sample of the encoder alone (`bridge-ds adapt`), encoder ids throughout.

    `prompt` is what the original encoder reads of a pair, the English sentence; empty = a text, of which `target` is
    hidden. `head` holds the positions in `source` of the ids in `target`; empty where a decoder writes them.
    """
