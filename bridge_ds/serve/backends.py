"""What turns rows into answers: the LLM in this process, or a vLLM server that is given prompt embeddings.

vLLM: `vllm serve LLM --enable-prompt-embeds` (its documentation, "Prompt Embedding Inputs"). `prompt_embeds` of its
/v1/completions is base64 of a tensor [X, H] as torch.save writes it, to which it adds no chat template.

Dimensions: B rows of a batch, X positions of a prompt, H LLM width.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import torch

from bridge_ds.data.text.chat import has_template
from bridge_ds.data.text.prompting import Context, DoesNotFit
from bridge_ds.errors import BridgeError, ConfigError
from bridge_ds.hub.config import to_run
from bridge_ds.hub.model import BridgeForCausalLM
from bridge_ds.inference.generator import Generator, mixed_seed
from bridge_ds.inference.prompt import PromptBuilder
from bridge_ds.inference.stops import Decoder, answers_criterion
from bridge_ds.llm.splice import Spliced
from bridge_ds.serve.batching import Row
from bridge_ds.serve.protocol import APIError, GenerationRequest
from bridge_ds.serve.replies import Event

__all__ = ["VLLM_KEY", "LocalBackend", "ServedModel", "VllmBackend", "VllmClient"]

_log = logging.getLogger(__name__)
VLLM_KEY = "BRIDGE_DS_VLLM_KEY"
"""Environment variable with the API key of the vLLM server."""


@dataclass(frozen=True)
class _LockedDecoder(Decoder):
    lock: threading.Lock = field(default_factory=threading.Lock)

    def raw(self, ids: Sequence[int]) -> str:
        with self.lock:
            return super().raw(ids)


class ServedModel(Generator):
    """A loaded bridge that many threads ask for prompts. A lock guards the tokenizers, which are not thread-safe."""

    def __init__(self, loaded: BridgeForCausalLM) -> None:
        super().__init__(loaded.bridge, loaded.tokenizers)
        self.defaults = loaded.generation_config
        """Of the bridge: its generation_config.json."""
        self.default_tokens = int(self.defaults.max_new_tokens or 128)
        """max_tokens of a request that gives none."""
        ends = self.defaults.eos_token_id or []
        self.ends |= set(ends if isinstance(ends, list) else [ends])
        self.prompts = PromptBuilder.of(
            to_run(loaded.config).data, self.tokenizers, self.positions, self.model.mapping.fixed_length
        )
        self._lock = threading.Lock()

    def decoder(self, chat: bool = False) -> Decoder:
        """Of :class:`Generator`; takes the lock."""
        return _LockedDecoder(self.tokenizers, chat, self._lock)

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
        if languages and request.language:
            try:
                languages.tag(request.language)
            except BridgeError as error:
                raise APIError(str(error), param="language") from None
        with self._lock:
            return [self._row(request, index, sink) for index in range(len(request.inputs))]

    def _row(self, request: GenerationRequest, index: int, sink: Callable[[Event], None]) -> Row:
        text, language, param = request.inputs[index], request.language or "", "messages" if request.chat else "prompt"
        limit = request.token_limit or self.default_tokens
        try:
            context = self.prompts.chat(text, language=language) if request.chat else Context(text, language=language)
            ids = self.prompts.ids(context, self.prompts.room(limit))
        except BridgeError as error:
            code = "context_length_exceeded" if isinstance(error, DoesNotFit) else None
            raise APIError(str(error), param=param, code=code) from None
        length = self.prompts.length(ids)
        if self.positions:
            limit = min(limit, self.positions - length)
        if limit < 1:
            raise APIError("the text leaves the LLM no room to answer.", code="context_length_exceeded", param=param)
        answer = self.answer(limit, request.stop or (), request.chat, bool(request.stream))
        seed = request.seed if request.temperature else None
        return Row(ids, length, limit, answer, request.sampling, seed, index, sink)

    @torch.no_grad()
    def prefix_of(self, rows: Sequence[Row]) -> Spliced:
        """The LLM's input, left-padded."""
        return self.prefix(self.prompts.batch([row.ids for row in rows]))


class LocalBackend:
    """All models in this process; used by the scheduler's thread alone."""

    def __init__(self, model: ServedModel) -> None:
        self.model = model

    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Answer one batch; returns when all rows have ended."""

        def take(number: int, text: str) -> bool:
            rows[number].send(text)
            return not rows[number].cancelled

        try:
            if rows[0].sampling.temperature:
                # As bridge-ds generate --seed; without a seed at random.
                seed = rows[0].seed
                torch.manual_seed(int(torch.seed()) >> 1 if seed is None else mixed_seed(seed))
            config = self.model.config(max_new_tokens=max(row.limit for row in rows), **rows[0].sampling.options())
            self.model.generate(
                self.model.prefix_of(rows),
                config,
                self.model.defaults,
                stopping_criteria=[answers_criterion([row.answer for row in rows], take)],
            )
            for row in rows:
                if row.answer.reason is None and not row.cancelled:  # the LLM had fewer positions than its config says
                    row.send(row.answer.finish("length"))
        finally:
            done(len(rows))


class VllmClient:
    """HTTP client of a vLLM server."""

    def __init__(self, url: str, timeout_s: float = 300) -> None:
        """Args:
            url: such as http://127.0.0.1:8000 or http://127.0.0.1:8000/v1.
            timeout_s: of silence.

        Raises:
            ConfigError: no http or https URL.
        """
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL()
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError(f"--vllm is {url!r}; expected a URL such as http://127.0.0.1:8000.")
        self.url = url
        self._http = httpx.Client(
            base_url=parts.copy_with(path=parts.path.rstrip("/").removesuffix("/v1") + "/v1/"),
            headers={"Authorization": f"Bearer {os.environ[VLLM_KEY]}"} if os.environ.get(VLLM_KEY) else {},
            timeout=timeout_s,
            # No connection is used twice: vLLM closes idle ones, at times just when a request is sent.
            limits=httpx.Limits(max_keepalive_connections=0),
            # No proxies from the environment, and the system's certificates.
            trust_env=False,
            verify=ssl.create_default_context(),
        )

    def model(self) -> str:
        """Name of the model that is served there.

        Raises:
            ConfigError: no vLLM server answers.
        """
        try:
            answer = self._http.get("models")
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}: {answer.text[:100]}")
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"no vLLM server answers at {self.url} ({' '.join(str(error).split())[:200]}); expected one; start it "
                "with: vllm serve LLM --enable-prompt-embeds"
            ) from None

    def complete(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Events of a streamed completion; closing the iterator closes the connection, and vLLM stops.

        Raises:
            APIError: 502, with what the server said or how the connection ended.
        """
        try:
            with self._http.stream("POST", "completions", json=body) as answer:
                if answer.status_code != 200:
                    said = answer.read()[:300].decode("utf-8", "replace")
                    raise _upstream_error(f"the vLLM server answers {answer.status_code}: {said}")
                for line in _lines(answer.iter_bytes()):
                    if line == b"data: [DONE]":
                        return
                    if line.startswith(b"data:"):
                        event = json.loads(line.removeprefix(b"data:"))
                        if "error" in event:
                            raise _upstream_error(f"the vLLM server failed: {str(event['error'])[:300]}")
                        yield event
            raise _upstream_error("the vLLM server closed the connection in the middle of an answer.")
        except (httpx.HTTPError, ValueError) as error:
            message = " ".join(str(error).split())[:200]
            raise _upstream_error(f"the vLLM server cannot be used ({message}).") from None


def _upstream_error(message: str) -> APIError:
    return APIError(message, 502, code="upstream")


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Lines of a response. httpx's iter_lines also splits at U+2028 and the like, which JSON strings may hold."""
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        yield from (line.strip() for line in lines)


class VllmBackend:
    """Computes prompt embeddings in the scheduler's thread; vLLM batches by itself, so each row is a request to it."""

    def __init__(self, model: ServedModel, client: VllmClient, concurrency: int) -> None:
        """Args:
        model: of its LLM only the embedding table is used.
        client: of the vLLM server.
        concurrency: requests to it at a time.

        Raises:
            ConfigError: no vLLM server answers, or the run trained weights of the LLM, which vLLM does not have.
        """
        if model.model.llm.trained:
            raise ConfigError(
                "this run trained the LLM (llm.trainable) or updates of the LLM (lora.rank), which a vLLM server does "
                "not have; expected a run without; leave --vllm out."
            )
        self.model, self.client = model, client
        self.name = client.model()
        """Its name there."""
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="vllm")

    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Encode one batch and send it; returns before the answers are there."""
        try:
            spliced = self.model.prefix_of(rows)
            prompts = [e[m.bool()].cpu() for e, m in zip(spliced.embeds_BXH, spliced.mask_BX, strict=True)]
        except BaseException:
            done(len(rows))
            raise
        for row, prompt_XH in zip(rows, prompts, strict=True):
            self._pool.submit(self._answer, row, prompt_XH, done)

    def _answer(self, row: Row, prompt_XH: torch.Tensor, done: Callable[[int], None]) -> None:
        try:
            self._relay(row, prompt_XH)
        except APIError as why:
            row.fail(why)
        except Exception:
            _log.exception("a row could not be answered by vLLM")
            row.fail(_upstream_error("the vLLM server's answer could not be read (see the log)."))
        finally:
            done(1)

    def _relay(self, row: Row, prompt_XH: torch.Tensor) -> None:
        begun, reason, tokens = False, None, 0
        for event in self.client.complete(self._body(row, prompt_XH)):
            if row.cancelled:
                return
            tokens = int((event.get("usage") or {}).get("completion_tokens", tokens))
            for choice in event.get("choices", []):
                text = choice.get("text") or ""
                if text and not begun:
                    begun, text = True, row.answer.decoder.bare(text)
                row.send(text)
                reason = choice.get("finish_reason") or reason
        if reason not in ("stop", "length"):
            raise _upstream_error(f"the vLLM server ended an answer with {reason!r}.")
        row.answer.reason = reason
        row.send("", tokens)

    def _body(self, row: Row, prompt_XH: torch.Tensor) -> dict[str, Any]:
        file = io.BytesIO()
        torch.save(prompt_XH.clone(), file)  # of a view the whole storage would be saved
        body = {
            "model": self.name,
            "prompt_embeds": base64.b64encode(file.getvalue()).decode("ascii"),
            "max_tokens": row.limit,
            # All of them: for what is absent vLLM uses the LLM's generation_config.json.
            "temperature": row.sampling.temperature,
            "top_p": row.sampling.top_p,
            "top_k": row.sampling.top_k,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "seed": row.seed,
            "stop": list(row.answer.stops.texts) or None,
            "stop_token_ids": sorted(row.answer.ends),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return {name: value for name, value in body.items() if value is not None}
