"""What a source layout says about a checkpoint: which key becomes what. Names and shapes only, no numbers.

Dimensions: D encoder width, H LLM width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge_ds.convert.stored import Stored
from bridge_ds.errors import CheckpointError

__all__ = ["INPUT_EMBEDDINGS", "ConvertSource", "SourceLayout", "mapped", "under"]

INPUT_EMBEDDINGS = "<input embeddings>"
"""Replaces the name of a model's input embedding, which the peers also hold as a module of its own."""


@dataclass(frozen=True)
class SourceLayout:
    """The keys of a bridge's parts in one checkpoint."""

    bridge: Mapping[str, str]
    """Our parameter (`mapping.end`) -> the checkpoint's key."""
    settings: Mapping[str, Any]
    """What config.yaml must hold for these parameters to compute the same: `part.key` -> value."""
    encoder: Mapping[str, str] = field(default_factory=dict)
    """The checkpoint's key -> the weight's name in the encoder; empty if it holds none."""
    llm: Mapping[str, str] = field(default_factory=dict)
    """The same for the LLM."""
    made: Mapping[str, Stored] = field(default_factory=dict)
    """Tensors that are made of several of the checkpoint's, or of one in another shape, by names of their own."""
    used: frozenset[str] = frozenset()
    """The checkpoint's keys that they are made of."""


@dataclass(frozen=True)
class ConvertSource:
    """One project whose checkpoints can be read."""

    title: str
    """Name of the project, a line of the help."""
    help: str
    """Help text: what is read, what becomes of it, and the sources of the facts."""
    read: Callable[[Mapping[str, Stored]], SourceLayout]
    """The layout of a checkpoint.

    Raises CheckpointError: it is not of this project, or is of a kind that cannot be represented."""
    settings: Mapping[str, Any]
    """`part.key` -> value, where the project differs from our defaults and the checkpoint does not record it."""
    added_tokens: tuple[str, ...] = ()
    """Tokens that the project adds to the encoder's tokenizer before it trains."""
    bases: Callable[[Path], tuple[str | None, str | None]] = lambda _: (None, None)
    """Encoder and LLM that the checkpoint itself names."""


def under(stored: Mapping[str, Stored], prefix: str) -> dict[str, str]:
    """{key: the rest of it} for every key that begins with `prefix`."""
    return {key: key.removeprefix(prefix) for key in stored if key.startswith(prefix)}


def mapped(stored: Mapping[str, Stored], title: str, choices: Mapping[str, Mapping[str, str]]) -> str:
    """Which kind of mapping a checkpoint holds.

    Args:
        title: the project, for the message.
        choices: kind -> its keys (our parameter -> the checkpoint's key).

    Returns:
        The kind of which most keys are there, so that one that lacks a key is named by what it lacks.

    Raises:
        CheckpointError: no key of any of them is there.
    """
    found = {kind: sum(key in stored for key in keys.values()) for kind, keys in choices.items()}
    best = max(found, key=lambda kind: found[kind])
    if not found[best]:
        wanted = " or ".join(next(iter(keys.values())) for keys in choices.values())
        raise CheckpointError(
            f"the checkpoint has {len(stored)} keys, such as {min(stored)}, and none of a mapping of {title}; expected "
            f"{wanted}; give the checkpoint of its trained model, or choose another source."
        )
    return best
