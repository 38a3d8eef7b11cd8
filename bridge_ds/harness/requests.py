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

import math
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

__all__ = ["Asked", "Context", "Continuation", "Plan", "collapse", "mark", "parse", "plan", "plan_texts", "windows"]

# Noncharacters of Unicode: no text holds them, and no chat template changes them.
_OPEN, _CLOSE = "\ufdd0", "\ufdd1"

FIRST_SHARE = 0.1
"""Words of a text, as a share, that the LLM predicts with nothing to go by: the least that prefix_lm training leaves
before its split."""


@dataclass(frozen=True)
class Context:
    """All that comes before the scored or written text."""

    source: str | None
    """What the encoder reads; none = nothing, and no soft prompt."""
    head: str = ""
    """Text for the LLM before the soft prompt (of a chat template)."""
    tail: str = ""
    """Text for the LLM after it (of a chat template)."""

    @property
    def is_chat(self) -> bool:
        """Whether a chat template stands around it."""
        return bool(self.head or self.tail)


@dataclass(frozen=True)
class Continuation:
    """Text to score."""

    text: str
    """As lm_eval gives it."""
    whole: bool = True
    """An answer, which training would close with the end token; else a piece of a longer text."""


@dataclass(frozen=True)
class Asked:
    """One likelihood request."""

    context: str
    """May be empty."""
    continuation: str
    """The text whose likelihood is wanted."""
    sample: object = None
    """Requests of one sample have the same."""


@dataclass
class Plan:
    """Each context once, with its continuations, each once; a request's score is a sum over some of them."""

    contexts: list[Context] = field(default_factory=list)
    """Every context once."""
    continuations: list[list[Continuation]] = field(default_factory=list)
    """For each context."""
    parts: list[list[tuple[int, int]]] = field(default_factory=list)
    """For each request: (context, continuation) places whose scores are added."""
    _contexts: dict[Context, int] = field(default_factory=dict)
    _places: dict[tuple[int, Continuation], int] = field(default_factory=dict)

    def place(self, context: Context, continuation: Continuation) -> tuple[int, int]:
        """Where it stands, added if it is new."""
        number = self._contexts.setdefault(context, len(self.contexts))
        if number == len(self.contexts):
            self.contexts.append(context)
            self.continuations.append([])
        own = self.continuations[number]
        place = self._places.setdefault((number, continuation), len(own))
        if place == len(own):
            own.append(continuation)
        return number, place


def plan(asked: Sequence[Asked], cut: Callable[[str], list[tuple[str, str]]]) -> Plan:
    """What to score for likelihood requests.

    Args:
        asked: the requests.
        cut: :func:`windows` of a text, for beginnings that have no context.
    """
    made = Plan()
    shared = _shared_beginnings(asked)
    for request in asked:
        if request.context:
            made.parts.append([made.place(parse(request.context), Continuation(request.continuation))])
            continue
        beginning = shared.get(request.sample, "")
        pieces = _windowed(made, cut(beginning)) if beginning else []
        rest = Continuation(request.continuation[len(beginning) :])
        made.parts.append([*pieces, made.place(Context(beginning), rest)])
    return made


def plan_texts(texts: Sequence[str], cut: Callable[[str], list[tuple[str, str]]]) -> Plan:
    """What to score for whole texts."""
    made = Plan()
    made.parts = [_windowed(made, cut(text)) for text in texts]
    return made


def windows(text: str, count: Callable[[Sequence[str]], list[int]], limit: int) -> list[tuple[str, str]]:
    """Cut a text between words into (what stands before, piece): all words once, pieces of about `limit` tokens.

    Args:
        text: any text; white space at its end is left out.
        count: LLM tokens of each of some strings.
        limit: tokens of a piece; a word of more is cut between its characters.
    """
    words = re.findall(r"\s*\S+", text)
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


def _windowed(made: Plan, cuts: Sequence[tuple[str, str]]) -> list[tuple[int, int]]:
    return [made.place(Context(before or None), Continuation(piece, whole=False)) for before, piece in cuts]


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
        length = next((place for place, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), len(low))
        # Up to the last blank: a word that the choices only begin alike belongs to them.
        at = re.match(r"(.*\S)\s", low[:length], re.DOTALL) if len(texts) > 1 else None
        if at:
            found[sample] = at[1]
    return found


def parse(context: str) -> Context:
    """A context as lm_eval hands it over, with the chat template's text taken apart where there is one."""
    head, opened, rest = context.partition(_OPEN)
    if not opened:
        return Context(context)
    source, _, tail = rest.partition(_CLOSE)
    return Context(source, head, tail)


def mark(source: str) -> str:
    """A user's turn for the chat template, from which :func:`parse` finds the place of the soft prompt again."""
    return f"{_OPEN}{source}{_CLOSE}"


def collapse(history: Sequence[dict[str, str]], answering: bool) -> tuple[str, str, str]:
    """A chat as (system text, the encoder's source, beginning of the answer).

    There is one soft prompt, so worked examples and the question are one text, as lm_eval writes them without a chat
    template. The system text stays text: it is an instruction to the LLM, and in the LLM's own language.

    Args:
        history: messages with `role` and `content`.
        answering: the last message, if it is the assistant's, is the beginning of the answer.
    """
    messages = list(history)
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    answer = messages.pop()["content"] if answering and messages and messages[-1]["role"] == "assistant" else ""
    source = ""
    for message in messages:
        between = "" if not source else " " if message["role"] == "assistant" else "\n\n"
        source = source.rstrip() + between + message["content"].strip() if source else message["content"].strip()
    return system, source, answer
