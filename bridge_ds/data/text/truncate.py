"""Which part of a text that is too long is read: one rule for training and every other use. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from bridge_ds.config.schema import Config, DataConfig

__all__ = ["LOST", "PER_TOKEN", "Limits", "SoftPrompt", "fit", "side_of", "truncated"]

LOST = {"right": "end", "left": "beginning"}
"""What is lost by `data.truncation_side`, in words."""


class SoftPrompt(NamedTuple):
    """Which positions of the LLM the soft prompt of a source takes."""

    length: int = 0
    """Its tokens whatever the source's length (`mapping.fixed_length`), the end vector aside; 0 = one for each encoder
    token."""
    place: Literal["input", "apart", "none"] = "input"
    """In the LLM's input, before the text | read by the LLM by itself (gated_prompt) | there is none (every_layer
    alone)."""

    @classmethod
    def of(cls, config: Config) -> SoftPrompt:
        """That of a run."""
        return cls.at(config.mapping.fixed_length, config.injection.makes_prompt, config.injection.prompt_in_input)

    @classmethod
    def at(cls, length: int, is_made: bool, in_input: bool) -> SoftPrompt:
        """With its place."""
        return cls(length, "input" if is_made and in_input else "apart" if is_made else "none")

    def vectors(self, source: int) -> int:
        """Its vectors for a source of so many tokens, the end vector included."""
        return (self.length or source) + 1 if source and self.place != "none" else 0

    def positions(self, source: int) -> int:
        """Positions of the LLM's input that they take."""
        return self.vectors(source) if self.place == "input" else 0


PER_TOKEN = SoftPrompt()
"""A soft token for each encoder token, in the LLM's input."""


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
    soft: SoftPrompt = PER_TOKEN
    """What of the positions the soft prompt takes."""

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
            is fixed, or they are not in the LLM's input); None = any number.

    Returns:
        source, prompt, and which of `source` and `prompt` were truncated.
    """
    most_source, most_prompt = limits.source, limits.prompt
    of_each = not limits.soft.length
    shared = bool(source) and limits.soft.place == "input" and of_each
    if room is not None:
        # Half of it, or all that the source leaves, so that both are read whole where they fit, as in training.
        most_prompt = min(most_prompt, max(room // 2, room - min(len(source), most_source) - 1) if shared else room)
    kept_prompt = truncated(prompt, most_prompt, limits.side)
    if room is not None and shared:
        most_source = min(most_source, room - len(kept_prompt) - 1)
    if limits.positions and limits.soft.place == "apart" and of_each:
        most_source = min(most_source, limits.positions - 1)
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
