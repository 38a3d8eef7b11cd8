"""All that comes before an answer, as text and then as token ids: what the encoder reads, what the LLM reads. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from bridge_ds.data.text.chat import Frame, take_apart
from bridge_ds.data.text.plain import ids_after, template_ids
from bridge_ds.data.text.truncate import Limits, fit
from bridge_ds.errors import DataError
from bridge_ds.reading import refuse_surrogates

if TYPE_CHECKING:
    from bridge_ds.data.loading.tokenize import Tokenizers

__all__ = ["Context", "ContextIds", "DoesNotFit", "answers", "context_ids", "frame_ids", "framed", "parse"]


_USER = "a"
"""An example of what a user's turn ends with."""


class DoesNotFit(DataError):
    """What must not be truncated is longer than the LLM's input."""


@dataclass(frozen=True)
class Context:
    """All that comes before the scored or written text."""

    source: str | None
    """What the encoder reads; None = nothing, and there is no soft prompt."""
    head: str = ""
    """Text for the LLM before the soft prompt (of a chat template)."""
    tail: str = ""
    """Text for the LLM after it (of a chat template)."""
    prompt: str | None = None
    """What the LLM reads instead of the source, if it reads text at all; None = the source."""
    begun: bool = False
    """The tail holds the beginning of an answer, which is continued."""
    continues: bool = False
    """What follows is not an answer but the rest of the same text: a long one is truncated at its beginning, as in
    prefix_lm training, and gets no chat template."""
    language: str = ""
    """Of the source, for an encoder that needs it; empty = not known."""

    @property
    def is_chat(self) -> bool:
        """Whether it has a chat template around it."""
        return bool(self.head or self.tail)


@dataclass(frozen=True)
class ContextIds:
    """A context as token ids, in the order in which the LLM reads them, the soft prompt where `source` is."""

    head: list[int]
    """LLM ids, BOS first."""
    source: list[int]
    """Encoder ids; empty = no soft prompt."""
    prompt: list[int]
    """LLM ids of the text itself, where the LLM reads it."""
    tail: list[int]
    """LLM ids."""
    truncated: tuple[str, ...] = ()
    """Which of `source` and `prompt` were truncated."""


def context_ids(
    of: Tokenizers, context: Context, limits: Limits, following: int, *, bridge: bool = True, prompt: bool = False
) -> ContextIds:
    """Token ids of a context, truncated to what fits, as in training.

    Args:
        of: both tokenizers.
        context: the text.
        limits: most tokens, and the side on which longer texts are truncated.
        following: positions of the LLM to keep free after the context.
        bridge: the encoder reads the source; otherwise only the LLM does.
        prompt: the LLM reads it too.

    Raises:
        DoesNotFit: what must not be truncated is too long.
        DataError: a text holds half of a surrogate pair, which no tokenizer takes.
    """
    _check(context.source or "", context.prompt or "", context.head, context.tail)
    # Not stripped, as in training: trailing white space may be tokens of its own.
    frame = Frame(context.head, context.tail)
    head, tail = of.frame_ids if frame == of.frame else frame_ids(of, frame)
    text = context.source or ""
    shown = text if context.prompt is None else context.prompt
    source = of.source_ids(text, context.language) if bridge and context.source is not None else []
    ids = of.prompt_ids(shown) if shown and (prompt or not bridge) else []
    if not (head or ids or tail or limits.soft.positions(len(source))):
        head = of.opened(head)
    if context.continues:
        limits = replace(limits, side="left")
    fixed = limits.soft.positions(len(source)) if limits.soft.length else 0
    room = _room(limits.positions, len(head) + len(tail) + following + fixed)
    source, ids, truncated = fit(source, ids, limits, of.kept_ends(source), room)
    return ContextIds(head, source, ids, tail, truncated)


def frame_ids(of: Tokenizers, frame: Frame) -> tuple[list[int], list[int]]:
    """LLM ids before the soft prompt, BOS first, and after it."""
    head, tail = template_ids(of.llm, frame.head), template_ids(of.llm, frame.tail)
    if frame.tail:  # it follows the user's turn, see ids_after()
        before, both = template_ids(of.llm, _USER), template_ids(of.llm, _USER + frame.tail)
        tail = both[len(before) :] if both[: len(before)] == before else tail
    if of.bos_id is not None and head[:1] != [of.bos_id]:
        head = [of.bos_id, *head]
    return head, tail


def framed(context: Context, frame: Frame) -> Context:
    """A plain context in the run's own chat template; one that has a template already is left as it is."""
    if context.is_chat or context.continues or context.source is None:
        return context
    return replace(context, head=frame.head, tail=frame.tail)


def answers(
    of: Tokenizers, texts: Sequence[str], tail: str | None, closed: bool = True, parted: Sequence[bool] | None = None
) -> list[list[int]]:
    """LLM ids of answers, not truncated.

    Args:
        of: both tokenizers.
        texts: the answers.
        tail: the end of the chat template that they follow directly; None = no template, as :meth:`Tokenizers.targets`.
        closed: with the end token, where training closes a target with it.
        parted: as of :meth:`Tokenizers.targets`.

    Raises:
        DataError: as :func:`context_ids`.
    """
    _check(*texts)
    if tail is None:
        found = of.targets(texts, parted)
    else:
        # No space after a line end; otherwise (Llama 2's [/INST]) the tokenizer's own, which such templates write.
        found = ids_after(of.llm, tail[-1:] if tail[-1:].isspace() else "", [text.strip() for text in texts])
    return [[*ids, *of.closing] for ids in found] if closed else found


def parse(context: str) -> Context:
    """A context from one text, with the chat template's part taken off where there is one."""
    try:
        head, source, tail, begun = take_apart(context)
    except ValueError:
        return Context(context)
    return Context(source, head, tail, begun=begun)


def _check(*texts: str) -> None:
    for text in texts:
        try:
            refuse_surrogates(text)
        except ValueError as error:
            raise DataError(f"{text[:80]!r} cannot be used: {error}.") from None


def _room(positions: int, taken: int) -> int | None:
    """Positions that remain; None = any number."""
    if not positions:
        return None
    if taken + 2 > positions:
        raise DoesNotFit(
            f"a request needs {taken} positions besides its context; the LLM has {positions}; shorten what is to be "
            "scored or written (choices, max_new_tokens, max_gen_toks), or choose another LLM."
        )
    return positions - taken
