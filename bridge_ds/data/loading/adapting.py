"""Samples and batches of the encoder alone (`bridge-ds adapt`): corrupted texts, and sentences beside their English
translations.

Dimensions: B batch, S encoder tokens, P tokens of English sentences, T predicted tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any

import torch

from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.collate import pad
from bridge_ds.data.loading.ids import AdaptedIds, TokenizedSample
from bridge_ds.data.loading.layout import Layout
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.data.text.corrupt import Corruption, hide
from bridge_ds.data.text.truncate import truncated
from bridge_ds.errors import DataError
from bridge_ds.objectives import OBJECTIVES

if TYPE_CHECKING:
    from bridge_ds.config.schema import AdaptConfig, DataConfig
    from bridge_ds.data.loading.tokenize import Tokenizers

__all__ = ["Adapting", "adapted_ids", "adapting_batch", "cut"]


@dataclass(frozen=True)
class Adapting:
    """What the loader is told of such a run."""

    corruption: Corruption | None
    """How a text is corrupted; None = all samples are pairs."""
    of: AdaptConfig
    """Of the run."""
    aligns: bool
    """Whether samples may be pairs, so that each batch has columns for English sentences."""


def adapted_ids(
    samples: Sequence[dict[str, Any]],
    tokenizers: Tokenizers,
    data: DataConfig,
    languages: Sequence[object],
    seed: int,
    epochs: Sequence[int],
    numbers: Sequence[int],
) -> list[AdaptedIds | BadSample]:
    """As :func:`bridge_ds.data.loading.tokenize.tokenize_samples`; arguments likewise.

    Args:
        languages: of each source, for an encoder with language tags.
    """
    how = tokenizers.adapting
    assert how is not None
    objective = OBJECTIVES[data.objective]
    texts = [sample[objective.read(sample)] for sample in samples]
    english = [sample["target"] if "target" in objective.of(sample).required else "" for sample in samples]
    try:
        sources = tokenizers.sources(texts, languages)
    except DataError as error:
        if len(samples) == 1:
            return [BadSample("malformed", f"cannot be tokenized: {error}")]
        each = zip(samples, languages, epochs, numbers, strict=True)
        return [
            adapted_ids([sample], tokenizers, data, [language], seed, [epoch], [number])[0]
            for sample, language, epoch, number in each
        ]
    taught = tokenizers.sources(english, ["en"] * len(english)) if any(english) else [[] for _ in english]
    found: list[AdaptedIds | BadSample] = []
    for source, target, text, epoch, number in zip(sources, taught, english, epochs, numbers, strict=True):
        own, teacher = cut(source, tokenizers, data), cut(target, tokenizers, data)
        lost = ("source",) * (len(own) < len(source))
        if text:
            lost += ("prompt",) * (len(teacher) < len(target))
            reads = teacher if Random(f"{seed}/{epoch}/{number}").random() < how.of.english_share else own
            found.append(AdaptedIds(reads, teacher, [], lost))
        elif how.corruption and (hidden := hide(own, how.corruption, seed, epoch, number)):
            found.append(AdaptedIds(hidden.ids, [], hidden.labels, lost, hidden.places))
        else:
            found.append(BadSample("empty", "has a text of which nothing can be masked; expected two known tokens"))
    return found


def adapting_batch(rows: Sequence[TokenizedSample], pad_id: int, how: Adapting) -> Batch:
    """One micro-batch. Target tokens are those to predict; of a pair there are `adapt.pair_weight`, for it counts as
    many. The layout holds places and ids of masked tokens, nothing else.

    Returns:
        sources [B, S]; English sentences as prompts [B, P], with an empty mask where a row is no pair (P is 0 where no
        run's sample is one, else 1 or more, for ranks call the encoder equally often); targets [B, T].
    """
    source_ids, source_mask = pad([row.source for row in rows], pad_id)
    prompt_ids, prompt_mask = _some([row.prompt for row in rows], pad_id, int(how.aligns))
    pair = [pad_id] * how.of.pair_weight
    target_ids, target_mask = _some([pair if row.prompt else row.target for row in rows], pad_id, 1)
    places = [(number * source_ids.shape[1] + place) for number, row in enumerate(rows) for place in row.head]
    none = torch.zeros(0, dtype=torch.int64)
    return Batch(
        source_ids=source_ids,
        source_mask=source_mask,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        target_ids=target_ids,
        target_mask=target_mask,
        layout=Layout(
            source_rows=none,
            order=none.view(len(rows), 0),
            lengths=torch.zeros(len(rows), dtype=torch.int64),
            positions=torch.tensor(places, dtype=torch.int64),
            labels=torch.tensor([each for row in rows if row.head for each in row.target], dtype=torch.int64),
        ),
    )


def _some(rows: Sequence[Sequence[int]], pad_id: int, least: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As :func:`pad`, with `least` columns of padding where there would be none: a model cannot run on none, and ranks
    must call theirs equally often."""
    ids, mask = pad(rows, pad_id)
    if ids.shape[1]:
        return ids, mask
    return torch.full((len(rows), least), pad_id), torch.zeros(len(rows), least, dtype=torch.int64)


def cut(ids: list[int], tokenizers: Tokenizers, data: DataConfig) -> list[int]:
    """At most `data.max_source_tokens` ids; what the tokenizer puts around a text stays."""
    return truncated(ids, data.max_source_tokens, data.truncation_side, *tokenizers.kept_ends(ids))
