"""A chat template around the soft prompt: rendered with the user's turn between two marks, and split there.

What is between the marks goes to the encoder; the rest stays text for the LLM, exactly as rendered.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge_ds.data.text.plain import NONCHARACTERS, guarded
from bridge_ds.errors import ConfigError, DataError, brief

__all__ = [
    "MARKS",
    "NO_FRAME",
    "Frame",
    "collapse",
    "frame_of",
    "has_template",
    "mark",
    "messages_of",
    "render",
    "take_apart",
]

MARKS = ("\ufdd0", "\ufdd1")
"""Noncharacters of Unicode around the user's turn: no text holds them, and no chat template changes them."""
_OPEN, _CLOSE = MARKS
_ROLES = ("system", "user", "assistant")
_BEGUN = "\ufdd5"
"""Put before the beginning of an answer."""
_DATE = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_TODAY = datetime.date(2024, 7, 26)
"""The date that templates get (Llama 3.2 writes it): their own default. With the real one a run would change from day
to day."""


@dataclass(frozen=True)
class Frame:
    """Text around the source; empty = none."""

    head: str = ""
    """Before the soft prompt."""
    tail: str = ""
    """After it."""

    def __bool__(self) -> bool:
        return bool(self.head or self.tail)

    @property
    def before_answer(self) -> str | None:
        """The text that an answer directly follows; None = no template."""
        return self.tail if self else None


NO_FRAME = Frame()
"""Of runs without a chat template."""


def has_template(tokenizer: Any) -> bool:
    """Whether there is one."""
    return bool(getattr(tokenizer, "chat_template", None))


def frame_of(tokenizer: Any, chat_template: bool, system: str) -> Frame:
    """The template of a run around any source.

    Args:
        tokenizer: the LLM's.
        chat_template: as data.chat_template.
        system: as data.system_prompt.

    Raises:
        ConfigError: the tokenizer has no chat template, or it does not write the user's turn once.
    """
    if not chat_template:
        return Frame()
    try:
        text = render(tokenizer, [{"role": "user", "content": "a"}], system=system)
        head, _, tail, _ = take_apart(text)
    except (ValueError, DataError) as error:
        raise ConfigError(
            f"data.chat_template is true and the tokenizer of the LLM cannot render a chat "
            f"({brief(error, 120)}); expected a chat template; set data.chat_template=false, or "
            "choose an instruction-tuned LLM."
        ) from None
    return Frame(head, tail)


def messages_of(chat: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Messages with text alone; a list of text parts is joined.

    Raises:
        DataError: a message that is not text, an unknown role, or a system message that is not the first.
    """
    found: list[dict[str, str]] = []
    for message in chat:
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, list) and all(isinstance(p, Mapping) and p.get("type") == "text" for p in content):
            parts = [part.get("text") for part in content]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
        if not isinstance(content, str) or not isinstance(message.get("role"), str):
            raise DataError(f"a message is {str(message)[:80]!r}; expected a role and text content.")
        if message["role"] not in (_ROLES if not found else _ROLES[1:]):
            raise DataError(
                f"the message {len(found) + 1} of a chat has the role {message['role'][:40]!r}; expected user or "
                "assistant, or system for the first one."
            )
        found.append({"role": message["role"], "content": content})
    return found


def mark(source: str) -> str:
    """A user's turn for the chat template, marked so that :func:`take_apart` finds the soft prompt's position."""
    return f"{_OPEN}{source}{_CLOSE}"


def take_apart(text: str) -> tuple[str, str, str, bool]:
    """Split what :func:`render` gave into head, source, tail and whether an answer is begun in the tail.

    Raises:
        ValueError: the marks are not there.
    """
    head, opened, rest = text.partition(_OPEN)
    source, closed, tail = rest.partition(_CLOSE)
    if not opened or not closed:
        raise ValueError("the chat template leaves the user's turn out")
    return head, source, tail.replace(_BEGUN, ""), _BEGUN in tail


def render(
    tokenizer: Any, history: Sequence[dict[str, str]], answering: bool = True, system: str = "", **options: Any
) -> str:
    """The LLM's chat template around ONE user turn, which the soft prompt replaces.

    The encoder reads the worked examples and the question as one text; a system message stays text for the LLM.

    Args:
        tokenizer: the LLM's.
        history: messages with `role` and `content`.
        answering: open the assistant's turn; otherwise continue the last message, if it is the assistant's.
        system: system message of a chat that has none.
        options: of the template.

    Raises:
        ValueError: the tokenizer has no chat template.
        DataError: the template refuses the chat, has an error, or writes the user's turn more than once.
    """
    from jinja2.exceptions import TemplateError

    own, source, answer = collapse(history, answering=not answering)
    system = guarded(tokenizer, own or system)
    turns = [{"role": "user", "content": mark(NONCHARACTERS.sub("", source))}]
    if answer:
        begins = len(answer) - len(answer.lstrip())
        answer = guarded(tokenizer, answer)
        turns.append({"role": "assistant", "content": answer[:begins] + _BEGUN + answer[begins:]})
    template = tokenizer.get_chat_template(options.pop("chat_template", None), options.get("tools"))
    options["chat_template"] = _DATE.sub(lambda match: repr(_TODAY.strftime(match[2])), template)

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

    try:
        if system:
            with contextlib.suppress(TemplateError):  # some templates refuse a system role, others leave it out
                if system.strip() in (text := fill([{"role": "system", "content": system}, *turns])):
                    return _once(text)
            turns[0]["content"] = f"{system}\n\n{turns[0]['content']}"
        return _once(fill(turns))
    except TemplateError as error:
        raise DataError(
            f"the chat template of the LLM does not take this chat ({type(error).__name__}: "
            f"{brief(error)}); expected one that it takes; change the messages or the options "
            "of the template, or give plain text."
        ) from None


def _once(text: str) -> str:
    """The text, where the user's turn is not in it more than once: there is one soft prompt."""
    if text.count(_OPEN) > 1:
        raise DataError(
            f"the chat template of the LLM writes the user's turn {text.count(_OPEN)} times; expected once; choose "
            "another template, or give plain text."
        )
    return text


def collapse(history: Sequence[dict[str, str]], answering: bool) -> tuple[str, str, str]:
    """A chat as (system text, the encoder's source, beginning of the answer).

    There is one soft prompt, so worked examples and the question are one text, as lm_eval writes them without a chat
    template. The system text stays text: it is an instruction to the LLM, and in the LLM's own language. A question
    without earlier messages stays as it is, so that it has the ids of the same text without a chat.

    Args:
        history: messages with `role` and `content`.
        answering: the last message, if it is the assistant's, is the beginning of the answer.
    """
    messages = list(history)
    system = messages.pop(0)["content"] if messages and messages[0]["role"] == "system" else ""
    answer = messages.pop()["content"] if answering and messages and messages[-1]["role"] == "assistant" else ""
    if len(messages) == 1:
        return system, messages[0]["content"], answer
    source = ""
    for message in messages:
        between = "" if not source else " " if message["role"] == "assistant" else "\n\n"
        source = source.rstrip() + between + message["content"].strip() if source else message["content"].strip()
    return system, source, answer
