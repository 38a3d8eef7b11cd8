"""What lm_eval asks, as what a bridge can answer: which text the encoder reads, which text the LLM scores. Pure.

A language model reads context and continuation as one text. Here they part: the CONTEXT goes through the encoder and
the bridge, the CONTINUATION is scored by the LLM. Two kinds of request have no context, and get one by these rules:

- A likelihood with an empty context (lm_eval's xnli and paws-x put the whole sample into each choice): what all choices
  of the sample begin with, up to a blank, becomes the context; its own likelihood, the same for all of them, is added.
  Where the sample has other requests with a context (`acc_mutual_info`), or the choices share no beginning, the encoder
  reads an empty text.
- A whole text (loglikelihood_rolling): the first tenth of its words is scored by the LLM alone, then window after
  window, each with all that stands before it as the context. Every word is scored once.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bridge_ds.data.text.languages import SourceLanguages
from bridge_ds.data.text.prompting import Context, parse
from bridge_ds.data.text.words import starts, without_spaces, words_of

__all__ = ["Asked", "Continuation", "ScoringPlan", "of_task", "plan", "plan_texts", "windows"]

FIRST_SHARE = 0.1
"""Words of a text, as a share, that the LLM predicts with nothing to go by: the least that prefix_lm training leaves
before its split."""


@dataclass(frozen=True)
class Continuation:
    """Text to score."""

    text: str
    """As lm_eval gives it."""
    whole: bool = True
    """An answer, which training would close with the end token; else a piece of a longer text."""
    parted: bool = True
    """It may begin with a space; what goes on in the middle of a word, or between two letters, may not."""


@dataclass(frozen=True)
class Asked:
    """One likelihood request."""

    context: str
    """May be empty."""
    continuation: str
    """The text whose likelihood is wanted."""
    sample: object = None
    """Requests of one sample have the same."""
    language: str = ""
    """Of the context; empty = not known."""


@dataclass
class ScoringPlan:
    """Each context once, with its continuations, each once; a request's score is a sum over some of them."""

    contexts: list[Context] = field(default_factory=list)
    """Every context once."""
    continuations: list[list[Continuation]] = field(default_factory=list)
    """For each context."""
    parts: list[list[tuple[int, int]]] = field(default_factory=list)
    """For each request: (context, continuation) indices whose scores are added."""
    _contexts: dict[Context, int] = field(default_factory=dict)
    _indices: dict[tuple[int, Continuation], int] = field(default_factory=dict)

    def add(self, context: Context, continuation: Continuation) -> tuple[int, int]:
        """Its indices; added if it is new."""
        number = self._contexts.setdefault(context, len(self.contexts))
        if number == len(self.contexts):
            self.contexts.append(context)
            self.continuations.append([])
        own = self.continuations[number]
        at = self._indices.setdefault((number, continuation), len(own))
        if at == len(own):
            own.append(continuation)
        return number, at


def plan(asked: Sequence[Asked], cut: Callable[[str], list[tuple[str, str]]]) -> ScoringPlan:
    """What to score for likelihood requests.

    Args:
        asked: the requests.
        cut: :func:`windows` of a text, for beginnings that have no context.
    """
    made = ScoringPlan()
    shared = _shared_beginnings(asked)
    for request in asked:
        if request.context:
            context = dataclasses.replace(parse(request.context), language=request.language)
            made.parts.append([made.add(context, Continuation(request.continuation))])
            continue
        beginning = shared.get(request.sample, "")
        pieces = _windowed(made, cut(beginning), request.language) if beginning else []
        text = request.continuation[len(beginning) :]
        rest = Continuation(text, parted=not beginning or text[:1].isspace())
        made.parts.append([*pieces, made.add(Context(beginning, language=request.language), rest)])
    return made


def plan_texts(
    texts: Sequence[str], cut: Callable[[str], list[tuple[str, str]]], languages: Sequence[str] | None = None
) -> ScoringPlan:
    """What to score for whole texts; `languages` of each, empty = not known."""
    made = ScoringPlan()
    of = [""] * len(texts) if languages is None else languages
    made.parts = [_windowed(made, cut(text), language) for text, language in zip(texts, of, strict=True)]
    return made


def windows(text: str, count: Callable[[Sequence[str]], list[int]], limit: int) -> list[tuple[str, str]]:
    """Split a text between words into (what is before, piece): all words once, pieces of about `limit` tokens.

    Args:
        text: any text; white space at its end is left out.
        count: LLM tokens of each of some strings.
        limit: tokens of a piece; a longer word is split between its characters.
    """
    words = words_of(text)
    counts = count(words) if words else []
    atoms: list[tuple[str, int]] = []
    for word, tokens in zip(words, counts, strict=True):
        bare = word.lstrip()
        size = max(1, len(bare) * limit // tokens) if tokens > limit else len(bare)
        share = max(1, math.ceil(tokens * size / len(bare)))
        parts = [bare[start : start + size] for start in range(0, len(bare), size)]
        atoms += [(part, share) for part in (word[: len(word) - len(bare)] + parts[0], *parts[1:])]
    found: list[tuple[str, str]] = []
    before, piece, used = "", "", 0
    first = math.ceil(FIRST_SHARE * len(atoms))
    for number, (atom, tokens) in enumerate(atoms):
        if piece and (used + tokens > limit or (not before and number >= first)):
            found.append((before, piece))
            before, piece, used = before + piece, "", 0
        piece, used = piece + atom, used + tokens
    return [*found, (before, piece)] if piece else found


def of_task(name: str, languages: SourceLanguages) -> str:
    """The language in which a task's name ends, by the encoder's tag: `xnli_sw`, `belebele_sin_Sinh`; or nothing."""
    code = re.search(r"_([a-z]{2,3}(?:_[A-Z][a-z]{3}|_[A-Z]{2})?)$", name)
    return (code and languages.find(code[1])) or ""


def _windowed(made: ScoringPlan, cuts: Sequence[tuple[str, str]], language: str) -> list[tuple[int, int]]:
    return [
        made.add(
            Context(before or None, continues=bool(before), language=language),
            Continuation(piece, whole=False, parted=not before or piece[:1].isspace()),
        )
        for before, piece in cuts
    ]


def _shared_beginnings(asked: Sequence[Asked]) -> dict[object, str]:
    """Sample -> what all its continuations begin with, up to and without a blank; nothing where any has a context."""
    by_sample = defaultdict(set)
    with_context = {request.sample for request in asked if request.context}
    for request in asked:
        if not request.context and request.sample is not None and request.sample not in with_context:
            by_sample[request.sample].add(request.continuation)
    found = {}
    for sample, texts in by_sample.items():
        low, high = min(texts), max(texts)  # what these two share, all between them share
        length = next((index for index, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
        if len(texts) < 2:
            continue
        if without_spaces(low) or not re.search(r"\S\s", low.strip()):
            # Up to the last letter that all have whole.
            index = max(set(starts(low)[1:]) & {index for index in starts(high)[1:] if index <= length}, default=0)
            at = low[:index].rstrip()
        else:
            # Up to the last blank: a word that the choices only begin alike belongs to them.
            blank = re.match(r"(.*\S)\s", low[:length], re.DOTALL)
            at = blank[1] if blank else ""
        if at:
            found[sample] = at
    return found
