"""What ends a written answer, and which part of its text is certain: the one handler of end ids and stop strings.

A stop string is looked for in the decoded text, not in token ids: the same text has many tokenizations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bridge_ds.data.loading.tokenize import Tokenizers

if TYPE_CHECKING:
    import torch
    from transformers import StoppingCriteria

__all__ = ["Answer", "Decoder", "StopStrings", "answers_criterion", "stop_criterion"]

_INCOMPLETE = "\ufffd"
"""What incomplete UTF-8 at the end of a text decodes to."""


@dataclass(frozen=True)
class StopStrings:
    """Texts before which an answer ends."""

    texts: tuple[str, ...] = ()
    """Empty ones stop nothing."""

    def __bool__(self) -> bool:
        return any(self.texts)

    def cut(self, text: str) -> str:
        """The part of a finished text before the first stop string."""
        for stop in filter(None, self.texts):
            text = text.split(stop)[0]
        return text

    def found(self, text: str) -> bool:
        """Whether an unfinished text holds a stop string. Incomplete UTF-8 at its end does not count."""
        text = text.rstrip(_INCOMPLETE)
        return any(stop in text for stop in filter(None, self.texts))

    def certain(self, text: str) -> str:
        """The part of an unfinished text that will not change: without incomplete UTF-8 at its end, and without as many
        characters as a stop string that has only begun may have."""
        text = self.cut(text)
        return text[: max(0, len(text.rstrip(_INCOMPLETE)) - max(map(len, self.texts), default=0))]

    @property
    def tail(self) -> int:
        """Last tokens of an answer that can have completed a stop string: a character is at most four tokens."""
        return 4 * max(map(len, self.texts), default=0) + 4


@dataclass(frozen=True)
class Decoder:
    """LLM ids of an answer to its text: special tokens left out, without the space that training puts before it."""

    tokenizers: Tokenizers
    chat: bool = False
    """The answer follows a chat template that was asked for (of a run trained with one: always), so that it has no such
    space."""

    def raw(self, ids: Sequence[int], **options: Any) -> str:
        """The text as the LLM wrote it; `options` of the tokenizer's decode win."""
        # Some tokenizers would take spaces before signs out: other text than training has, and not the beginning of it
        # while the text still grows.
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False, **options}
        return str(self.tokenizers.llm.decode(list(ids), **options))

    def bare(self, raw: str) -> str:
        """The text as it is answered."""
        return raw if self.chat or self.tokenizers.frame else self.tokenizers.answer(raw)

    def __call__(self, ids: Sequence[int]) -> str:
        return self.bare(self.raw(ids))


class Answer:
    """One answer while it is written, token by token."""

    def __init__(
        self,
        decoder: Decoder,
        ends: Collection[int],
        stops: Sequence[str] = (),
        max_new_tokens: int | None = None,
        streamed: bool = False,
    ) -> None:
        """Args:
        decoder: ids to text.
        ends: ids each of which ends the answer.
        stops: stop strings.
        max_new_tokens: most tokens, the end token included; None = any number.
        streamed: text is wanted as soon as it is certain.
        """
        self.decoder, self.ends, self.stops = decoder, ends, StopStrings(tuple(stops))
        self.max_new_tokens, self.streamed = max_new_tokens, streamed
        self.tokens: list[int] = []
        """Written so far, the end token included."""
        self.reason: str | None = None
        """Why it is finished, `stop` (end token or stop string) or `length`; None = it is not."""
        self._sent = 0

    def add(self, token: int) -> str:
        """Take one more token; the text that is new and certain, all the rest of it once the answer is finished."""
        if self.reason is not None:
            return ""
        self.tokens.append(token)
        text = self.decoder(self.tokens) if self.stops or self.streamed else ""
        if token in self.ends or self.stops.found(text):
            return self.finish("stop")
        if self.max_new_tokens is not None and len(self.tokens) >= self.max_new_tokens:
            return self.finish("length")
        return self._new(self.stops.certain(text)) if self.streamed else ""

    def stops_of_raw(self) -> tuple[StopStrings, StopStrings]:
        """For an LLM elsewhere: the stop strings that may be looked for in what it writes, and those only in the text
        as it is answered. Those that begin with the space that is taken off would end an answer at its beginning."""
        late = [text for text in self.stops.texts if text.startswith(" ") and self.decoder.bare(text) != text]
        return StopStrings(tuple(text for text in self.stops.texts if text not in late)), StopStrings(tuple(late))

    def finish(self, reason: str = "length") -> str:
        """End the answer; what of its text has not been given yet."""
        self.reason = self.reason or reason
        return self._new(self.text)

    @property
    def text(self) -> str:
        """The answer up to now, the part before the first stop string."""
        ended = bool(self.tokens) and self.tokens[-1] in self.ends
        return self.stops.cut(self.decoder(self.tokens[:-1] if ended else self.tokens))

    def _new(self, text: str) -> str:
        new = text[self._sent :]
        self._sent += len(new)
        return new


def stop_criterion(decoder: Decoder, stops: StopStrings) -> StoppingCriteria:
    """A stopping criterion of transformers that ends each sequence, beams too, at the first stop string."""

    def text(row: list[int]) -> str:
        # The space that is taken off the beginning of an answer completes no stop string.
        return decoder(row) if len(row) <= stops.tail else decoder.raw(row[-stops.tail :])

    return _criterion(lambda rows: [stops.found(text(row)) for row in rows])


def answers_criterion(
    answers: Sequence[Answer], take: Callable[[int, str], bool] = lambda row, new: True
) -> StoppingCriteria:
    """A stopping criterion of transformers that hands each step's tokens to their answers and ends those that are
    finished. It is asked once a step, before a streamer would be told (which on GPUs is a step later). Not for beams.

    Args:
        answers: one for each row of the batch.
        take: called with a row's number and its new text, "" too, each step until it is finished; what it returns is
            whether the row is still wanted.
    """
    wanted = [True] * len(answers)

    def ended(rows: list[list[int]]) -> list[bool]:
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True)):
            if wanted[number] and answer.reason is None:
                wanted[number] = take(number, answer.add(row[-1]))
        return [not some or answer.reason is not None for some, answer in zip(wanted, answers, strict=True)]

    return _criterion(ended)


def _criterion(ended: Callable[[list[list[int]]], list[bool]]) -> StoppingCriteria:
    """From whether each sequence of ids is at its end."""
    import torch
    from transformers import StoppingCriteria

    class Criterion(StoppingCriteria):
        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # type: ignore[override]
            return torch.tensor(ended(input_ids.tolist()), dtype=torch.bool, device=input_ids.device)

    return Criterion()
