"""Which part of a text that is too long is read: one rule for training and every other use. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridge_ds.config.schema import DataConfig

__all__ = ["LOST", "Limits", "fit", "side_of", "truncated"]

LOST = {"right": "end", "left": "beginning"}
"""What is lost by `data.truncation_side`, in words."""


@dataclass(frozen=True)
class Limits:
    """How many tokens a context may have, and on which side a longer one is truncated."""

    source: int
    """Encoder tokens of a source."""
    prompt: int
    """LLM tokens of a source that the LLM reads."""
    positions: int = 0
    """Positions of the LLM, for context and answer together; 0 = unknown."""
    side: str = "right"
    """right: the end is dropped | left: the beginning."""
    soft: int = 0
    """Soft tokens of a source whatever its length, the end vector aside; 0 = one for each of its encoder tokens."""

    @classmethod
    def of(cls, data: DataConfig) -> Limits:
        """Those of training."""
        return cls(data.max_source_tokens, data.max_prompt_tokens, side=side_of(data))


def side_of(data: DataConfig) -> Literal["right", "left"]:
    """The side on which a run truncates its texts: left for prefix_lm, whose target continues the end."""
    return "left" if data.objective == "prefix_lm" else data.truncation_side


def fit(
    source: list[int], prompt: list[int], limits: Limits, ends: tuple[int, int], room: int | None = None
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """Truncate a source and a prompt to what is allowed.

    Args:
        source: encoder ids, special tokens included.
        prompt: LLM ids.
        limits: lengths and side.
        ends: ids at the source's beginning (a language tag) and at its end (an end token) that are always kept.
        room: positions that the LLM has for both and the end vector (for the prompt alone if the number of soft tokens
            is fixed); None = any number.

    Returns:
        source, prompt, and which of `source` and `prompt` were truncated.
    """
    most_source, most_prompt = limits.source, limits.prompt
    shared = bool(source) and not limits.soft
    if room is not None:
        most_prompt = min(most_prompt, room // 2 if shared else room)
    kept_prompt = truncated(prompt, most_prompt, limits.side)
    if room is not None and shared:
        most_source = min(most_source, room - len(kept_prompt) - 1)
    kept_source = truncated(source, most_source, limits.side, *ends)
    lost = {"source": len(kept_source) < len(source), "prompt": len(kept_prompt) < len(prompt)}
    return kept_source, kept_prompt, tuple(name for name, was in lost.items() if was)


def truncated(ids: list[int], limit: int, side: str, opening: int = 0, closing: int = 0) -> list[int]:
    """At most `limit` ids.

    Args:
        ids: of a text.
        limit: most of them.
        side: right or left, where ids are dropped.
        opening: how many ids at the beginning are always kept (other special tokens there are dropped with the text).
        closing: how many ids at the end (0 or 1) are.
    """
    if len(ids) <= limit:
        return ids
    if limit <= opening:
        return []
    if side == "left":
        return ids[:opening] + ids[len(ids) - limit + opening :]
    return ids[: limit - closing] + ids[len(ids) - closing :]
