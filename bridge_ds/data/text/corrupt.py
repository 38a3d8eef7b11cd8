"""What is hidden of a text that an encoder is to predict: masked tokens (BERT, arXiv 1810.04805) or spans (T5,
arXiv 1910.10683). Pure functions of ids and (seed, epoch, number), so that a resumed run hides the same."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

__all__ = ["Corruption", "Hidden", "hide"]


class Hidden(NamedTuple):
    """A text of which something is hidden."""

    ids: list[int]
    """What the encoder reads."""
    labels: list[int]
    """The tokens to predict: those at `places`, or what the decoder is to write."""
    places: tuple[int, ...]
    """Positions in `ids` whose token is to be predicted; none where a decoder writes the labels."""


@dataclass(frozen=True)
class Corruption:
    """How texts are corrupted for one encoder."""

    share: float
    """Of a text's tokens, without special ones, that is hidden."""
    special: frozenset[int]
    """Ids that are never hidden and never put in place of one."""
    vocabulary: tuple[int, ...]
    """Ids of which one may be put in place of a hidden token."""
    mask_id: int
    """Put in place of most masked tokens."""
    sentinels: tuple[int, ...] = ()
    """T5's `<extra_id_0>` and on, one for each span; none = single tokens are masked."""
    span: float = 3.0
    """Mean length of a span."""
    end_id: int = 1
    """Closes what the decoder writes."""


def hide(ids: Sequence[int], how: Corruption, seed: int, epoch: int, number: int) -> Hidden | None:
    """Hide a part of a text.

    Args:
        ids: encoder ids, special tokens included.
        how: for this encoder.
        seed: of the run.
        epoch: how often the text has been read before.
        number: of the sample in the corpus.

    Returns:
        None if the text has nothing to hide (spans: fewer than two tokens; one must stay).
    """
    draw = random.Random(f"{seed}/{epoch}/{number}")
    return _spans(ids, how, draw) if how.sentinels else _masked(ids, how, draw)


def _masked(ids: Sequence[int], how: Corruption, draw: random.Random) -> Hidden | None:
    candidates = [place for place, each in enumerate(ids) if each not in how.special]
    if not candidates:
        return None
    count = max(1, round(how.share * len(candidates)))
    places = sorted(draw.sample(candidates, count))
    made = list(ids)
    for place in places:
        chance = draw.random()
        if chance < 0.8:
            made[place] = how.mask_id
        elif chance < 0.9:
            made[place] = draw.choice(how.vocabulary)
    return Hidden(made, [ids[place] for place in places], tuple(places))


def _spans(ids: Sequence[int], how: Corruption, draw: random.Random) -> Hidden | None:
    body = [each for each in ids if each not in how.special]
    if len(body) < 2:
        return None
    noise = min(max(1, round(how.share * len(body))), len(body) - 1)
    spans = min(max(1, round(noise / how.span)), noise, len(body) - noise, len(how.sentinels))
    hidden, kept = _parts(noise, spans, draw), _parts(len(body) - noise, spans, draw)
    made: list[int] = []
    labels: list[int] = []
    at = 0
    for sentinel, stay, go in zip(how.sentinels, kept, hidden, strict=False):
        made += [*body[at : at + stay], sentinel]
        labels += [sentinel, *body[at + stay : at + stay + go]]
        at += stay + go
    before = next(place for place, each in enumerate(ids) if each not in how.special)
    after = next(place for place in range(len(ids), 0, -1) if ids[place - 1] not in how.special)
    return Hidden([*ids[:before], *made, *ids[after:]], [*labels, how.end_id], ())


def _parts(total: int, count: int, draw: random.Random) -> list[int]:
    """`total` as a sum of `count` numbers of at least 1, each sum as likely as another."""
    cuts = sorted(draw.sample(range(1, total), count - 1))
    return [end - start for start, end in pairwise([0, *cuts, total])]
