"""Which part of a text that is too long is read: decided here, for training and for every other use. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bridge_ds.config.schema import DataConfig

__all__ = ["LOST", "Limits", "fit", "side_of", "truncated"]

LOST = {"right": "end", "left": "beginning"}
"""What is lost by `data.truncation_side`, in words."""


@dataclass(frozen=True)
class Limits:
    """How many tokens a context may have, and which end of it goes where it has more."""

    source: int
    """Encoder tokens of a source."""
    prompt: int
    """LLM tokens of a source that the LLM reads."""
    positions: int = 0
    """Places of the LLM, for context and answer together; 0 = unknown."""
    side: str = "right"
    """right: the end is cut off | left: the beginning."""
    soft: int = 0
    """Soft tokens of a source whatever its length, the end vector aside; 0 = one for each of its encoder tokens."""

    @classmethod
    def of(cls, data: DataConfig) -> Limits:
        """Those of training."""
        return cls(data.max_source_tokens, data.max_prompt_tokens, side=side_of(data))


def side_of(data: DataConfig) -> Literal["right", "left"]:
    """The side at which a run cuts its texts: of prefix_lm the beginning, for the target goes on from the end."""
    return "left" if data.objective == "prefix_lm" else data.truncation_side


def fit(
    source: list[int], prompt: list[int], limits: Limits, ends: tuple[int, int], room: int | None = None
) -> tuple[list[int], list[int], tuple[str, ...]]:
    """A source and a prompt cut to what is allowed.

    Args:
        source: encoder ids, special tokens included.
        prompt: LLM ids.
        limits: lengths and side.
        ends: ids at the source's beginning (a language tag) and at its end (an end token) that stay in any case.
        room: places that the LLM has for both and the end vector (for the prompt alone where the soft tokens are of a
            fixed number); none = as many as they need.

    Returns:
        source, prompt, and which of `source` and `prompt` were cut.
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
        side: where they go.
        opening: how many ids at the beginning stay in any case (other special tokens there go with the text).
        closing: how many ids at the end (0 or 1) do.
    """
    if len(ids) <= limit:
        return ids
    if limit <= opening:
        return []
    if side == "left":
        return ids[:opening] + ids[len(ids) - limit + opening :]
    return ids[: limit - closing] + ids[len(ids) - closing :]
