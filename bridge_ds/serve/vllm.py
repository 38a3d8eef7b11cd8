"""Answers written by a vLLM server (`vllm serve LLM --enable-prompt-embeds`): encoder and bridge here, the LLM there.

What is sent: vLLM's documentation, "Prompt Embedding Inputs": `prompt_embeds` of /v1/completions is base64 of a tensor
[X, H] as torch.save writes it, with no chat template added there. vLLM batches by itself, so each row is a request.

Letters: B rows of a batch, X places of a prompt, H LLM width.
"""

from __future__ import annotations

import base64
import http.client
import io
import json
import logging
import os
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from bridge_ds.errors import ConfigError
from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.serve.schema import APIError
from bridge_ds.serve.texts import Texts
from bridge_ds.serve.work import Event, Row

__all__ = ["KEY", "Upstream", "VllmWriter", "request_of"]

_log = logging.getLogger(__name__)
KEY = "BRIDGE_DS_VLLM_KEY"
"""Environment variable with the key of the vLLM server."""


class Upstream:
    """A vLLM server."""

    def __init__(self, url: str, timeout_s: float = 300) -> None:
        """Args:
            url: such as http://127.0.0.1:8000 or http://127.0.0.1:8000/v1.
            timeout_s: of silence.

        Raises:
            ConfigError: no http or https URL.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"--vllm is {url!r}; expected a URL such as http://127.0.0.1:8000.")
        self.url, self.timeout_s = url, timeout_s
        self._secure, self._place = parts.scheme == "https", parts.netloc.rpartition("@")[2]
        self._root = parts.path.rstrip("/").removesuffix("/v1")

    def model(self) -> str:
        """The model that is served there.

        Raises:
            ConfigError: no vLLM server answers.
        """
        try:
            with self._ask("GET", "/v1/models") as answer:
                return str(json.load(answer)["data"][0]["id"])
        except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError, APIError) as error:
            raise ConfigError(
                f"no vLLM server answers at {self.url} ({' '.join(str(error).split())[:200]}); expected one; start it "
                "with: vllm serve LLM --enable-prompt-embeds"
            ) from None

    def complete(self, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Post a streamed completion, and give its events.

        Raises:
            APIError: 502, with what the server said or how the connection ended.
        """
        try:
            with self._ask("POST", "/v1/completions", json.dumps(body).encode()) as answer:
                for raw in answer:
                    text = raw.decode("utf-8").strip()
                    if text == "data: [DONE]":
                        return
                    if text.startswith("data:"):
                        event = json.loads(text.removeprefix("data:"))
                        if "error" in event:
                            raise APIError(f"the vLLM server failed: {str(event['error'])[:300]}", 502, code="upstream")
                        yield event
            raise APIError("the vLLM server broke off in the middle of an answer.", 502, code="upstream")
        except (OSError, http.client.HTTPException, ValueError) as error:
            told = " ".join(str(error).split())[:200]
            raise APIError(f"the vLLM server cannot be used ({told}).", 502, code="upstream") from None

    def _ask(self, method: str, path: str, body: bytes | None = None) -> http.client.HTTPResponse:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if os.environ.get(KEY):
            headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        connection = kind(self._place, timeout=self.timeout_s)
        connection.request(method, self._root + path, body, headers)
        answer = connection.getresponse()
        if answer.status != 200:
            said = answer.read(2000).decode("utf-8", "replace")
            connection.close()
            raise APIError(f"the vLLM server answers {answer.status}: {said[:300]}", 502, code="upstream")
        return answer  # with Connection: close it holds the socket, and closing it closes that


class VllmWriter:
    """Makes prompt embeddings in the scheduler's thread; threads of its own then wait for the answers."""

    def __init__(self, answerer: Pipeline, texts: Texts, upstream: Upstream, at_once: int) -> None:
        """Args:
        answerer: model and processor; of the LLM only the embedding table is used.
        texts: the tokenizers.
        upstream: writes.
        at_once: requests to it at a time.

        Raises:
            ConfigError: no vLLM server answers, or the LLM has updates that it cannot know of.
        """
        if answerer.model.bridge.llm.trained:
            raise ConfigError(
                "this run trained the LLM (llm.trainable) or updates of the LLM (lora.rank), which a vLLM server does "
                "not have; expected a run without; leave --vllm out."
            )
        self.answerer, self.texts, self.upstream = answerer, texts, upstream
        self.model = upstream.model()
        """Its name there."""
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="vllm")

    @torch.no_grad()
    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Encode one batch and send it; returns before the answers are there.

        Args:
            rows: of a batch.
            done: called with 1 for each row that is at its end.
        """
        try:
            features = self.answerer.processor.collate([row.ids for row in rows])
            spliced = self.answerer.model.prefix(**features)
            prompts = [e[m.bool()].cpu() for e, m in zip(spliced.embeds_BXH, spliced.mask_BX, strict=True)]
        except BaseException:
            done(len(rows))
            raise
        for row, prompt_XH in zip(rows, prompts, strict=True):
            self._pool.submit(self._write, row, prompt_XH, done)

    def _write(self, row: Row, prompt_XH: torch.Tensor, done: Callable[[int], None]) -> None:
        try:
            self._relay(row, prompt_XH)
        except APIError as why:
            row.fail(why)
        except Exception:
            _log.exception("a row could not be written by vLLM")
            row.fail(APIError("the vLLM server's answer could not be read (see the log).", 502, code="upstream"))
        finally:
            done(1)

    def _relay(self, row: Row, prompt_XH: torch.Tensor) -> None:
        begun, reason, tokens = False, None, 0
        for event in self.upstream.complete(request_of(row, prompt_XH, self.model, self.texts.ends)):
            if row.cancelled:
                return  # leaving the loop closes the connection, and vLLM stops
            tokens = int((event.get("usage") or {}).get("completion_tokens", tokens))
            for choice in event.get("choices", []):
                text = choice.get("text") or ""
                if text and not begun:
                    begun, text = True, self.answerer.processor.bare(text, row.chat)
                if text:
                    row.sink(Event(row.index, text))
                reason = choice.get("finish_reason") or reason
        if reason not in ("stop", "length"):
            raise APIError(f"the vLLM server ended an answer with {reason!r}.", 502, code="upstream")
        row.reason = reason
        row.sink(Event(row.index, "", reason, tokens))


def request_of(row: Row, prompt_XH: torch.Tensor, model: str, ends: frozenset[int]) -> dict[str, Any]:
    """The body of vLLM's /v1/completions for a row.

    Args:
        row: its options.
        prompt_XH: [X, H] what the LLM is to read, in the LLM's number format.
        model: the name there.
        ends: ids that end an answer.
    """
    file = io.BytesIO()
    torch.save(prompt_XH.contiguous().clone(), file)  # the one form that vLLM takes; it reads tensors only
    sampling = row.sampling
    body: dict[str, Any] = {
        "model": model,
        "prompt_embeds": base64.b64encode(file.getvalue()).decode("ascii"),
        "max_tokens": row.most,
        # All of them: what is not said, vLLM takes from the LLM's generation_config.json.
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "stop_token_ids": sorted(ends),
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if row.stops:
        body["stop"] = list(row.stops)
    if sampling.seed is not None:
        body["seed"] = sampling.seed
    return body
