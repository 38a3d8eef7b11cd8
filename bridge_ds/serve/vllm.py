"""The LLM in a vLLM server that is given prompt embeddings.

`vllm serve LLM --enable-prompt-embeds` (vLLM's documentation, "Prompt Embedding Inputs"). `prompt_embeds` of its
/v1/completions is base64 of a tensor [X, H] as torch.save writes it, to which it adds no chat template.

Dimensions: X positions of a prompt, H LLM width.
"""

from __future__ import annotations

import base64
import io
import logging
import os
import ssl
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import httpx
import torch
from pydantic import BaseModel, Field

from bridge_ds.errors import ConfigError, brief
from bridge_ds.hub.folder import GENERATION
from bridge_ds.serve.access import check_key
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.batching import Row
from bridge_ds.serve.protocol import APIError

if TYPE_CHECKING:
    from transformers import GenerationConfig

__all__ = ["VLLM_KEY", "VllmBackend", "VllmClient"]

_log = logging.getLogger(__name__)
VLLM_KEY = "BRIDGE_DS_VLLM_KEY"
"""Environment variable with the API key of the vLLM server."""
_OBEYED = {
    "transformers_version", "bos_token_id", "pad_token_id", "eos_token_id", "max_new_tokens", "max_length",
    "min_new_tokens", "min_p", "repetition_penalty",
    # Decided by the request, or of no account for one answer as text.
    "do_sample", "temperature", "top_p", "top_k", "num_beams", "early_stopping", "length_penalty", "use_cache",
    "cache_implementation", "renormalize_logits", "remove_invalid_values", "output_scores", "output_logits",
    "output_attentions", "output_hidden_states", "return_dict_in_generate",
}  # fmt: skip
"""Options of transformers' generate that need not be refused here."""
_NEUTRAL: dict[str, Any] = {
    "typical_p": 1, "guidance_scale": 1, "encoder_repetition_penalty": 1, "num_return_sequences": 1, "min_length": 0,
    "no_repeat_ngram_size": 0, "encoder_no_repeat_ngram_size": 0, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "suppress_tokens": [], "begin_suppress_tokens": [], "bad_words_ids": [],
}  # fmt: skip
"""Values of the others that change nothing."""
_LINE = 1 << 20
"""Most bytes of one event."""


class _Choice(BaseModel):
    text: str | None = None
    finish_reason: str | None = None


class _Usage(BaseModel):
    completion_tokens: int = Field(0, ge=0)


class _Event(BaseModel):
    """What is read of an event; anything else that a server sends is a ValidationError, which is a ValueError."""

    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class VllmClient:
    """HTTP client of a vLLM server."""

    def __init__(self, url: str, timeout_s: float = 300) -> None:
        """Args:
            url: such as http://127.0.0.1:8000 or http://127.0.0.1:8000/v1.
            timeout_s: of silence; an answer may take so long, and a second more for each of its tokens.

        Raises:
            ConfigError: no http or https URL.
        """
        try:
            parts = httpx.URL(url)
        except httpx.InvalidURL:
            parts = httpx.URL()
        key = os.environ.get(VLLM_KEY, "")
        check_key(VLLM_KEY, key)
        if parts.scheme not in ("http", "https") or not parts.host:
            raise ConfigError(f"--vllm is {url!r}; expected a URL such as http://127.0.0.1:8000.")
        self.url, self.timeout_s = url, timeout_s
        self._http = httpx.Client(
            base_url=parts.copy_with(path=parts.path.rstrip("/").removesuffix("/v1") + "/v1/"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
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
            answer = self._http.get("models", timeout=min(30, self.timeout_s))
            if answer.status_code != 200:
                raise ValueError(f"status {answer.status_code}: {answer.text[:100]}")
            return str(answer.json()["data"][0]["id"])
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(
                f"no vLLM server answers at {self.url} ({brief(error)}); expected one; start it "
                "with: vllm serve LLM --enable-prompt-embeds"
            ) from None

    def complete(self, body: dict[str, Any]) -> Iterator[_Event]:
        """Events of a streamed completion; closing the iterator closes the connection, and vLLM stops.

        Raises:
            APIError: 502, with what the server said or how the connection ended.
        """
        latest = time.monotonic() + self.timeout_s + body["max_tokens"]
        try:
            with self._http.stream("POST", "completions", json=body) as answer:
                if answer.status_code != 200:
                    said = next(answer.iter_bytes(300), b"").decode("utf-8", "replace")
                    raise _upstream_error(f"the vLLM server answers {answer.status_code}: {said}")
                for line in _lines(answer.iter_bytes(), latest):
                    if line == b"data: [DONE]":
                        return
                    if line.startswith(b"data:"):
                        event = _Event.model_validate_json(line.removeprefix(b"data:"))
                        if event.error is not None:
                            raise _upstream_error(f"the vLLM server failed: {str(event.error)[:300]}")
                        yield event
            raise _upstream_error("the vLLM server closed the connection in the middle of an answer.")
        except (httpx.HTTPError, ValueError) as error:
            message = brief(error) or type(error).__name__
            raise _upstream_error(f"the vLLM server cannot be used ({message}).") from None


def _upstream_error(message: str) -> APIError:
    return APIError(message, 502, code="upstream")


def _lines(chunks: Iterable[bytes], latest: float) -> Iterator[bytes]:
    """Lines of a response. httpx's iter_lines also splits at U+2028 and the like, which JSON strings may hold.

    Raises:
        ValueError: too long a line, or one that comes after the time `latest` (of time.monotonic).
    """
    rest = b""
    for chunk in chunks:
        *lines, rest = (rest + chunk).split(b"\n")
        if max(map(len, [rest, *lines])) > _LINE:
            raise ValueError(f"it sent a line of more than {_LINE} bytes")
        if time.monotonic() > latest:
            raise ValueError("its answer takes too long")
        yield from (line.strip() for line in lines)


def _refuse_others(defaults: GenerationConfig) -> None:
    """Refuse options of the bridge's own that the LLM here would obey and a vLLM server does not know."""
    for name, value in defaults.to_diff_dict().items():
        if name not in _OBEYED and value is not None and value != _NEUTRAL.get(name):
            raise ConfigError(
                f"the bridge's {GENERATION} sets {name} to {str(value)[:40]}, which a vLLM server is not told; "
                "expected none of it; take it out of that file, or leave --vllm out."
            )


class VllmBackend:
    """Computes prompt embeddings in the scheduler's thread; vLLM batches by itself, so each row is a request to it."""

    def __init__(self, model: ServedModel, client: VllmClient, concurrency: int) -> None:
        """Args:
        model: of its LLM only the embedding table is used.
        client: of the vLLM server.
        concurrency: requests to it at a time.

        Raises:
            ConfigError: no vLLM server answers, the run trained weights of the LLM, which vLLM does not have, or the
                bridge has options of generate that vLLM does not have.
        """
        if model.model.llm.trained:
            raise ConfigError(
                "this run trained the LLM (llm.trainable) or updates of the LLM (lora.rank), which a vLLM server does "
                "not have; expected a run without; leave --vllm out."
            )
        if model.model.injection is not None:
            raise ConfigError(
                "this run's LLM attends to the encoder's states in its layers (injection.form), and a vLLM server "
                "takes nothing but what stands in the input; expected a run without; leave --vllm out."
            )
        _refuse_others(model.defaults)
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
        decoder, (_, own) = row.answer.decoder, row.answer.stops_of_raw()
        raw, sent, reason, tokens, events = "", 0, None, 0, 0
        for event in self.client.complete(self._body(row, prompt_XH)):
            if row.cancelled:
                return
            tokens = event.usage.completion_tokens if event.usage else tokens
            for choice in event.choices:
                raw += choice.text or ""
                reason = choice.finish_reason or reason
            events += bool(event.choices)
            text = decoder.bare(raw)
            if own.found(text):
                reason, tokens = "stop", events  # a token each; the number comes with the last event alone
                break
            new = own.certain(text)[sent:]
            row.send(new)
            sent += len(new)
        if reason not in ("stop", "length"):
            raise _upstream_error(f"the vLLM server ended an answer with {reason!r}.")
        row.answer.reason = reason
        row.send(own.cut(decoder.bare(raw))[sent:], tokens)

    def _body(self, row: Row, prompt_XH: torch.Tensor) -> dict[str, Any]:
        file = io.BytesIO()
        torch.save(prompt_XH.clone(), file)  # of a view the whole storage would be saved
        own = self.model.defaults
        body = {
            "model": self.name,
            "prompt_embeds": base64.b64encode(file.getvalue()).decode("ascii"),
            "max_tokens": row.limit,
            # All of them: for what is absent vLLM uses the LLM's generation_config.json.
            "temperature": row.sampling.temperature,
            "top_p": row.sampling.top_p,
            "top_k": row.sampling.top_k,
            "min_p": own.min_p or 0.0,
            "repetition_penalty": own.repetition_penalty or 1.0,
            "min_tokens": min(own.min_new_tokens or 0, row.limit),
            "seed": row.seed,
            "stop": list(row.answer.stops_of_raw()[0].texts) or None,
            "stop_token_ids": sorted(row.answer.ends),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        return {name: value for name, value in body.items() if value is not None}
