"""From contexts and continuations in words to likelihoods and written text, by the bridge or by the LLM alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bridge_ds.data.text.plain import ids_after
from bridge_ds.data.text.prompting import Context, answers, framed
from bridge_ds.harness.requests import Continuation
from bridge_ds.inference.generator import Generator
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.llm.splice import Spliced

__all__ = ["Answerer"]

_OF_SAMPLING = ("temperature", "top_p", "top_k")


class Answerer:
    """What lm_eval asks for, in terms of prompts and a generator."""

    def __init__(self, generator: Generator, prompts: PromptBuilder, end_token: bool = True) -> None:
        """Args:
        generator: the model.
        prompts: how contexts become input.
        end_token: an answer is scored with the end token after it, as training taught it.
        """
        self.generator, self.prompts, self.end_token = generator, prompts, end_token
        self.tokenizers = generator.tokenizers

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """LLM tokens of each text, as targets."""
        return [len(ids) for ids in self.tokenizers.targets(texts)]

    @torch.no_grad()
    def score(
        self, contexts: Sequence[Context], continuations: Sequence[Sequence[Continuation]]
    ) -> list[list[tuple[float, bool]]]:
        """For each context and each of its continuations: log-probability (nats), and whether it is the greedy text.

        Raises:
            DataError: a continuation is longer than the LLM's input.
        """
        ids = [
            [self._continuation(context, each) for each in of]
            for context, of in zip(contexts, continuations, strict=True)
        ]
        prefix = self._prefix(contexts, [max(map(len, own), default=0) for own in ids])
        scores, greedy, *_ = self.generator.score(prefix, ids)
        return [list(zip(*own, strict=True)) for own in zip(scores, greedy, strict=True)]

    @torch.no_grad()
    def write(
        self, contexts: Sequence[Context], tokens: int, stops: Sequence[str], options: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Text after each context, up to the end token, a stop string or `tokens`.

        Args:
            options: more of `transformers.GenerationConfig`; those of sampling have no meaning without `do_sample`.
        """
        options = {"do_sample": False, **(options or {})}
        if not options["do_sample"]:
            options = {name: value for name, value in options.items() if name not in _OF_SAMPLING}
        tokens = self.prompts.room(tokens)
        prefix = self._prefix(contexts, [tokens] * len(contexts))
        config = self.generator.config(max_new_tokens=tokens, **options)
        rows = self.generator.generate(prefix, config, stop_strings=list(stops)).tolist()
        chats = [framed(context, self.tokenizers.frame).is_chat for context in contexts]
        return [self.generator.texts([row], stops, chat)[0] for row, chat in zip(rows, chats, strict=True)]

    def _continuation(self, context: Context, of: Continuation) -> list[int]:
        context = framed(context, self.tokenizers.frame)
        if context.begun:  # goes on in the middle of an answer
            ids = ids_after(self.tokenizers.llm, context.tail[-1:], [of.text])[0] if of.text else []
        else:
            tail = context.tail if context.is_chat else None
            found = answers(self.tokenizers, [of.text], tail, closed=False, parted=[of.parted])
            ids = found[0] if of.text.strip() else []
        return [*ids, self.tokenizers.eos_id] if of.whole and self.end_token else ids

    def _prefix(self, contexts: Sequence[Context], following: Sequence[int]) -> Spliced:
        """`following`: positions to keep free after each context."""
        rows = [self.prompts.ids(context, room) for context, room in zip(contexts, following, strict=True)]
        return self.generator.prefix(self.prompts.batch(rows))
