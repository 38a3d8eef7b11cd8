"""All that comes before an answer, as text and then as token ids: what the encoder reads, what the LLM reads. Pure.

A chat template stands around the soft prompt: it is rendered with the user's turn between two marks, and what lies
between them goes to the encoder, the rest stays text for the LLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ds.data.tokenize import Tokenizers
from bridge_ds.errors import DataError

__all__ = [
    "MARKS",
    "Context",
    "ContextIds",
    "Limits",
    "collapse",
    "context_ids",
    "mark",
    "parse",
    "plain_ids",
    "render",
]

MARKS = ("\ufdd0", "\ufdd1")
"""Noncharacters of Unicode around the user's turn: no text holds them, and no chat template changes them."""
_OPEN, _CLOSE = MARKS


@dataclass(frozen=True)
class Context:
    """All that comes before the scored or written text."""

    source: str | None
    """What the encoder reads; none = nothing, and no soft prompt."""
    head: str = ""
    """Text for the LLM before the soft prompt (of a chat template)."""
    tail: str = ""
    """Text for the LLM after it (of a chat template)."""
    prompt: str | None = None
    """What the LLM reads in the source's place where it reads text at all; none = the source."""

    @property
    def is_chat(self) -> bool:
        """Whether a chat template stands around it."""
        return bool(self.head or self.tail)


@dataclass(frozen=True)
class Limits:
    """How many tokens a context may have."""

    source: int
    """Encoder tokens of a source."""
    prompt: int
    """LLM tokens of a source that the LLM reads."""
    positions: int = 0
    """Places of the LLM, for context and answer together; 0 = unknown."""
    soft: int = 0
    """Soft tokens of a source whatever its length, the end vector aside; 0 = one for each of its encoder tokens."""


@dataclass(frozen=True)
class ContextIds:
    """A context as token ids, in the order in which the LLM meets them; the soft prompt stands in `source`'s place."""

    head: list[int]
    """LLM ids, BOS first."""
    source: list[int]
    """Encoder ids; empty = no soft prompt."""
    prompt: list[int]
    """LLM ids of the text itself, where the LLM reads it."""
    tail: list[int]
    """LLM ids."""
    cut: tuple[str, ...] = ()
    """Which of `source` and `prompt` lost their beginning."""


def context_ids(
    of: Tokenizers, context: Context, limits: Limits, following: int, *, bridge: bool = True, prompt: bool = False
) -> ContextIds:
    """Token ids of a context, cut to what fits: the question stands at the end, so the beginning is what goes.

    Args:
        of: both tokenizers.
        context: the text.
        limits: most tokens.
        following: places to keep free behind the context.
        bridge: the encoder reads the source; else the LLM alone does.
        prompt: the LLM reads it too.

    Raises:
        DataError: what is not to be cut does not fit.
    """
    head, tail = plain_ids(of, context.head), plain_ids(of, context.tail)
    if of.bos_id is not None and head[:1] != [of.bos_id]:
        head = [of.bos_id, *head]
    text = (context.source or "").strip()
    shown = text if context.prompt is None else context.prompt.strip()
    source = of.source_ids(text) if bridge and context.source is not None else []
    ids = of.prompt_ids(shown) if shown and (prompt or not bridge) else []
    if not head and not source and not ids and not tail:
        head = [of.eos_id]  # an LLM without an opening token still needs a place to predict from
    fixed = limits.soft + 1 if limits.soft and source else 0
    room = _room(limits.positions, len(head) + len(tail) + following + fixed)
    kept = _end(ids, min(limits.prompt, room // 2 if source and not fixed else room))
    kept_source = _end(source, limits.source if fixed else min(limits.source, room - len(kept) - 1))
    lost = {"source": len(kept_source) < len(source), "prompt": len(kept) < len(ids)}
    return ContextIds(head, kept_source, kept, tail, tuple(name for name, was in lost.items() if was))


def plain_ids(of: Tokenizers, text: str) -> list[int]:
    """LLM ids of a text, no special tokens added."""
    return list(of.llm(text, add_special_tokens=False, verbose=False)["input_ids"]) if text else []


def parse(context: str) -> Context:
    """A context from one text, with the chat template's part taken off where there is one (see :func:`mark`)."""
    head, opened, rest = context.partition(_OPEN)
    if not opened:
        return Context(context)
    source, _, tail = rest.partition(_CLOSE)
    return Context(source, head, tail)


def mark(source: str) -> str:
    """A user's turn for the chat template, from which :func:`parse` finds the place of the soft prompt again."""
    return f"{_OPEN}{source}{_CLOSE}"


def render(tokenizer: Any, history: Sequence[dict[str, str]], answering: bool = True, **options: Any) -> str:
    """The LLM's chat template around ONE user turn, in whose place the soft prompt will stand; :func:`parse` reads it.

    The encoder reads the worked examples and the question as one text; a system message stays text for the LLM.

    Args:
        tokenizer: the LLM's.
        history: messages with `role` and `content`.
        answering: the assistant's turn is opened; else the last message, if it is the assistant's, is gone on with.
        options: of the template.

    Raises:
        ValueError: the tokenizer has no chat template.
    """
    import jinja2

    system, source, answer = collapse(history, answering=not answering)
    turns = [{"role": "user", "content": mark(source)}]
    if answer:
        turns.append({"role": "assistant", "content": answer})

    def fill(messages: list[dict[str, str]]) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=not answer,
                continue_final_message=bool(answer),
                **options,
            )
        )

    if not system:
        return fill(turns)
    try:
        return fill([{"role": "system", "content": system}, *turns])
    except jinja2.exceptions.TemplateError:  # some templates know no system role
        return fill([{"role": "user", "content": f"{system}\n\n{mark(source)}"}, *turns[1:]])


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


def _room(positions: int, taken: int) -> int:
    if not positions:
        return 1 << 30
    if taken + 2 > positions:
        raise DataError(
            f"a request needs {taken} places besides its context; the LLM has {positions}; shorten what is to be "
            "scored or written (choices, max_new_tokens, max_gen_toks), or choose another LLM."
        )
    return positions - taken


def _end(ids: list[int], limit: int) -> list[int]:
    # With the end of the text the encoder's end token is kept.
    return ids if len(ids) <= limit else ids[len(ids) - limit :] if limit > 0 else []
