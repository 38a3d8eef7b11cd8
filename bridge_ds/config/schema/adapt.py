"""Training of the encoder alone, for a language that it does not know (`bridge-ds adapt`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Le

from bridge_ds.config.schema.fields import (
    FUNCTION,
    NEITHER,
    TRAINING,
    Flag,
    Listed,
    NonNegativeFloat,
    Path,
    PositiveInt,
    Real,
    Whole,
)

__all__ = ["AdaptConfig"]


@dataclass(frozen=True, kw_only=True)
class AdaptConfig:
    """How the encoder alone is trained (`model.llm: none`): what is masked, and how translations pull. What of it is
    trained is in `lora` or `encoder`."""

    mask_share: Annotated[Real, Gt(0), Le(0.9), TRAINING] = 0.15
    """Share of a text's tokens that is to be predicted (BERT, T5). Of BERT's, 80 % become the mask token, 10 % a random
    one, 10 % stay."""
    span_tokens: Annotated[Real, Ge(1), Le(100), TRAINING] = 3.0
    """Mean length of a masked span, for encoders of the T5 kind (arXiv 1910.10683)."""
    temperature: Annotated[Real, Ge(1e-4), Le(100), TRAINING] = 0.05
    """The cosine of a sentence and an English one is divided by it; the other English sentences of a micro-batch are
    the negatives, so train.micro_batch should not be small."""
    layers: Annotated[tuple[Annotated[Whole, Ge(1), Le(10_000)], ...], Listed, TRAINING] = ()
    """Encoder layers, counted from 1, whose states translations pull, such as [6, 12]; empty = all, for the fusion
    reads all."""
    english_share: Annotated[Real, Ge(0), Le(1), TRAINING] = 0.25
    """Share of the pairs of which the trained encoder reads the English sentence in place of its translation, so that
    English stays what it was (arXiv 2004.09813 does both)."""
    pair_weight: Annotated[PositiveInt, Le(100_000), TRAINING] = 10
    """A pair counts in the loss as much as so many predicted tokens, where data.objective is denoise_and_align."""
    token_weight: Annotated[NonNegativeFloat, TRAINING] = 0.0
    """Weight of a second pull of pairs, beside that of the sentences' mean states: each token's states, to those of the
    English tokens that they are nearest to (1 - cosine, both directions). 0 = none."""
    new_rows_only: Annotated[Flag, FUNCTION] = False
    """Train nothing but the embeddings of the pieces that --extend-vocabulary added: all else, and so every language
    that has no such pieces, stays as it is bit for bit. For pairs (data.objective=align)."""
    english: Annotated[Path, NEITHER] = ""
    """Text file with an English sentence on each line, by which RUN/encoder/english.json says what English has lost;
    empty = the English sentences of the pairs, if there are any."""
