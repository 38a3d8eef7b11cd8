"""Requests to rows, and rows to answers by the LLM in this process (elsewhere: :mod:`bridge_ds.serve.vllm`)."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from bridge_ds.data.text.chat import has_template
from bridge_ds.data.text.prompting import Context, DoesNotFit
from bridge_ds.errors import BridgeError
from bridge_ds.hub.config import to_run
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.inference.choice import BRIDGE, ChoiceTable
from bridge_ds.inference.generator import AnswerLength, Generator, mixed_seed, stops_of
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.inference.stops import Decoder, answers_criterion
from bridge_ds.llm.splice import Spliced
from bridge_ds.products import few_kernels
from bridge_ds.serve.batching import BackendLost, Row
from bridge_ds.serve.protocol import APIError, GenerationRequest
from bridge_ds.serve.replies import Event

__all__ = ["LocalBackend", "ServedModel"]


@dataclass(frozen=True)
class _LockedDecoder(Decoder):
    lock: threading.Lock = field(default_factory=threading.Lock)

    def raw(self, ids: Sequence[int], **options: Any) -> str:
        with self.lock:
            return super().raw(ids, **options)


class ServedModel(Generator):
    """A loaded bridge that many threads ask for prompts. A lock guards the tokenizers, which are not thread-safe."""

    def __init__(self, loaded: BridgeForCausalLM, choice: ChoiceTable | None = None) -> None:
        """Args:
        loaded: the bridge.
        choice: decides by the language of a request whether the LLM alone answers; None = the bridge always does.
        """
        super().__init__(loaded.bridge, loaded.tokenizers)
        self.choice = choice
        self.defaults = copy.deepcopy(loaded.generation_config)
        """Of the bridge: its generation_config.json, but for its stop strings."""
        self.stops, self.defaults.stop_strings = stops_of(self.defaults), None
        """Stop strings of a request that gives none."""
        self.length = AnswerLength.of(self.defaults.to_dict())
        """Of an answer to a request that gives no max_tokens."""
        self.default_tokens = self.length.after(0)
        """Highest max_tokens of such a request; may be lowered."""
        ends = self.defaults.eos_token_id or []
        self.ends |= set(ends if isinstance(ends, list) else [ends])
        self.prompts = PromptBuilder.of(
            to_run(loaded.config).data, self.tokenizers, self.positions, self.model.soft_prompt
        )
        self._lock = threading.Lock()

    def decoder(self, chat: bool = False) -> Decoder:
        """Of :class:`Generator`; takes the lock."""
        return _LockedDecoder(self.tokenizers, chat, self._lock)

    def way(self, request: GenerationRequest) -> str:
        """Who answers a request, BRIDGE or LLM. The bridge answers what the table was not measured on: a chat where the
        run has no chat template."""
        if self.choice is None or not request.language or (request.chat and not self.choice.of_chats):
            return BRIDGE
        return self.choice.way(request.language)

    def rows(self, request: GenerationRequest, sink: Callable[[Event], None]) -> list[Row]:
        """A row for each text, with the ids that `bridge-ds generate` gives it, truncated as in training.

        Raises:
            APIError: there is no room for an answer, no chat template, or no such language.
        """
        if request.chat and not has_template(self.tokenizers.llm):
            raise APIError(
                "the LLM's tokenizer has no chat template, so there are no chats here; use /v1/completions.",
                param="messages",
            )
        languages = self.tokenizers.languages
        if languages and request.language and self.way(request) == BRIDGE:
            try:
                languages.tag(request.language)
            except BridgeError as error:
                raise APIError(str(error), param="language") from None
        with self._lock:
            return [self._row(request, index, sink) for index in range(len(request.inputs))]

    def _row(self, request: GenerationRequest, index: int, sink: Callable[[Event], None]) -> Row:
        text, language, param = request.inputs[index], request.language or "", "messages" if request.chat else "prompt"
        limit, way = request.token_limit, self.way(request)
        prompts = self.prompts if way == BRIDGE else self.prompts.alone()
        try:
            context = prompts.chat(text, language=language) if request.chat else Context(text, language=language)
            if request.llm_prompt and request.llm_prompt[index]:  # an empty one is none, as in training
                context = replace(context, prompt=request.llm_prompt[index])
            ids = prompts.ids(context, prompts.room(self.default_tokens if limit is None else limit))
        except BridgeError as error:
            code = "context_length_exceeded" if isinstance(error, DoesNotFit) else None
            raise APIError(str(error), param=param, code=code) from None
        length = self.prompts.length(ids)
        limit = min(self.default_tokens, self.length.after(length)) if limit is None else limit
        if self.positions:
            limit = min(limit, self.positions - length)
        if limit < 1:
            raise APIError("the text leaves the LLM no room to answer.", code="context_length_exceeded", param=param)
        answer = self.answer(limit, request.stop or self.stops, request.chat, bool(request.stream))
        seed = request.seed if request.temperature else None
        return Row(ids, length, limit, answer, request.sampling, seed, index, sink, way)

    @torch.no_grad()
    @few_kernels()
    def prefix_of(self, rows: Sequence[Row]) -> Spliced:
        """The LLM's input, left-padded."""
        return self.prefix(self.prompts.batch([row.ids for row in rows]))


_DEVICE_LOST: tuple[type[Exception], ...] = tuple(filter(None, [getattr(torch, "AcceleratorError", None)]))
"""What a failed kernel raises, and then every later call of CUDA; from torch 2.8."""


class LocalBackend:
    """All models in this process; used by the scheduler's thread alone."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Answer one batch; returns when all rows have ended.

        Raises:
            APIError: 503, the batch does not fit in memory.
            BackendLost: the GPU no longer works.
        """
        try:
            self._start(rows)
            return
        except (torch.OutOfMemoryError, MemoryError):
            pass  # raised below: as its context this error would keep the tensors of the batch
        except _DEVICE_LOST as error:
            raise BackendLost(str(error)) from error
        finally:
            done(len(rows))
        message = f"a batch of {len(rows)} texts does not fit in memory; send shorter texts or a lower max_tokens."
        raise APIError(message, 503, code="out_of_memory")

    @few_kernels()
    def _start(self, rows: Sequence[Row]) -> None:
        def take(number: int, text: str) -> bool:
            rows[number].send(text)
            return not rows[number].cancelled

        if rows[0].sampling.temperature:
            # As bridge-ds generate --seed; without a seed at random.
            seed = rows[0].seed
            torch.manual_seed(int(torch.seed()) >> 1 if seed is None else mixed_seed(seed))
        config = self.model.config(max_new_tokens=max(row.limit for row in rows), **rows[0].sampling.options())
        model = self.model if rows[0].way == BRIDGE else self.model.alone()
        model.generate(
            model.prefix_of(rows),
            config,
            model.defaults,
            stopping_criteria=[answers_criterion([row.answer for row in rows], take)],
        )
        for row in rows:
            if row.answer.reason is None and not row.cancelled:  # the LLM had fewer positions than its config says
                row.send(row.answer.finish("length"))
