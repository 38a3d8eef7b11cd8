"""The LLM elsewhere: against a small HTTP server that checks what it is sent by vLLM's schema and runs the LLM."""

from __future__ import annotations

import base64
import contextlib
import copy
import io
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
import torch

from bridge_ds.errors import ConfigError
from bridge_ds.generate.pipeline import Pipeline
from bridge_ds.serve.backends import ServedModel
from bridge_ds.serve.vllm import VLLM_KEY, VllmBackend, VllmClient
from tests.serve.served import served, until

TEXTS = ["the cat sat on the mat", "a dog", "猫 one river", "rain fell"]
SCHEMA: dict[str, tuple[type, ...]] = {
    "model": (str,), "prompt_embeds": (str,), "max_tokens": (int,), "temperature": (int, float), "top_p": (int, float),
    "top_k": (int,), "seed": (int,), "stop": (list,), "stop_token_ids": (list,), "stream": (bool,),
    "stream_options": (dict,), "min_p": (int, float), "repetition_penalty": (int, float), "min_tokens": (int,),
}  # fmt: skip
"""Fields of vLLM's /v1/completions with their types, as far as they are sent: its CompletionRequest, and "Prompt
Embedding Inputs" of its documentation; written down by hand, not taken from a running server. vLLM passes over fields
that it does not know; this server does not."""
REQUIRED = set(SCHEMA) - {"seed", "stop"}
"""What is not said vLLM takes from the LLM's generation_config.json, which is not the bridge's."""


GARBAGE = {
    "number": b"data: 3\n",
    "text": b"data: hello\n",
    "choices": b'data: {"choices": [[1]]}\n',
    "tokens": b'data: {"choices": [], "usage": {"completion_tokens": "many"}}\n',
    "surrogate": b'data: {"choices": [{"index": 0, "text": "\\ud800"}]}\n',
    "bytes": b"data: \xff\xfe\n",
    "long": b"data: " + b"a" * (2 << 20),
    "silent": b"",
    "dripping": b"",
}


@contextlib.contextmanager
def upstream(answerer: Pipeline, broken: str = "") -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server as vLLM is with --enable-prompt-embeds; its URL and what it was sent.

    Args:
        answerer: whose LLM it runs.
        broken: `status` answers 400, `middle` closes in the middle, `error` sends an error event; `separator` begins
            each answer with U+2028, which ends a line for Python and not in JSON, `space` with a space.
    """
    sent: list[dict[str, Any]] = []
    llm, tokenizer = answerer.model.bridge.llm.model, answerer.processor.tokenizer
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

        def do_GET(self) -> None:
            assert self.path == "/v1/models"
            self._send(json.dumps({"object": "list", "data": [{"id": "the-llm", "object": "model"}]}).encode())

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions" and self.headers["Content-Type"] == "application/json"
            sent.append({**body, "key": self.headers["Authorization"]})
            wrong = [name for name, value in body.items() if not isinstance(value, SCHEMA.get(name, ()))]
            if wrong or REQUIRED - set(body) or body["model"] != "the-llm" or broken == "status":
                return self._send(json.dumps({"error": {"message": f"bad fields {wrong}"}}).encode(), 400)
            data = io.BytesIO(base64.b64decode(body["prompt_embeds"], validate=True))
            prompt_XH = torch.load(data, weights_only=True)
            assert prompt_XH.dim() == 2 and prompt_XH.dtype == llm.dtype
            assert prompt_XH.shape[1] == llm.config.hidden_size
            with lock, torch.no_grad():
                (ids,) = llm.generate(
                    inputs_embeds=prompt_XH[None],
                    attention_mask=torch.ones(1, len(prompt_XH), dtype=torch.long),
                    max_new_tokens=body["max_tokens"],
                    do_sample=False,
                    eos_token_id=body["stop_token_ids"],
                    pad_token_id=0,
                ).tolist()
            text = " " * (broken == "space") + tokenizer.decode(ids, skip_special_tokens=True)
            for stop in body.get("stop", []):
                text = text.split(stop)[0]
            if broken in GARBAGE:
                self.send_response(200)
                self.end_headers()
                with contextlib.suppress(OSError):
                    self.wfile.write(GARBAGE[broken])
                    if broken == "silent":
                        time.sleep(4)
                    while broken == "dripping":
                        self.wfile.write(b": wait\n")
                        time.sleep(0.2)
                return None
            if broken == "separator":
                text = "\u2028" + text
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for place in range(0, len(text), 3):
                self._event(choices=[{"index": 0, "text": text[place : place + 3], "finish_reason": None}])
                if broken == "middle":
                    return None
                if broken == "error":
                    return self._event(error={"message": "out of memory", "code": 500})
            self._event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])
            self._event(choices=[], usage={"prompt_tokens": len(prompt_XH), "completion_tokens": len(ids)})
            self.wfile.write(b"data: [DONE]\n\n")
            return None

        def _event(self, **values: Any) -> None:
            self.wfile.write(f"data: {json.dumps(values, ensure_ascii=False)}\n\n".encode())

        def _send(self, data: bytes, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", sent
    finally:
        server.shutdown()
        server.server_close()


def test_answers_are_the_offline_ones(
    answerer: Pipeline, offline: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VLLM_KEY, "hush")
    with upstream(answerer) as (url, sent):
        backend = VllmBackend(ServedModel(answerer.model), VllmClient(url + "/v1/"), concurrency=8)
        with served(answerer, backend=backend, concurrency=8) as (client, service):
            status, _, body = client.complete(TEXTS, max_tokens=12)
            assert status == 200, body
            assert [c["text"] for c in body["choices"]] == [offline(text, max_new_tokens=12) for text in TEXTS]
            assert {c["finish_reason"] for c in body["choices"]} == {"length"}
            assert body["usage"]["completion_tokens"] == 12 * len(TEXTS)
            pieces = client.events("/v1/completions", {"prompt": TEXTS[0]})
            assert "".join(p["choices"][0]["text"] for p in pieces) == offline(TEXTS[0]) and len(pieces) > 2
            stop = offline(TEXTS[0])[4:6]
            body = client.complete(TEXTS[0], stop=[stop])[2]
            assert body["choices"][0]["text"] == offline(TEXTS[0], stop=(stop,))
            messages = [{"role": "user", "content": TEXTS[1]}]
            body = client.chat(messages)[2]
            assert body["choices"][0]["message"]["content"] == offline(messages, chat=True)
            client.complete(TEXTS[0], temperature=0.5, top_p=0.9, top_k=7, seed=3)
            until(lambda: service.scheduler.queue.idle)
    assert len(sent) == len(TEXTS) + 4 and {each["key"] for each in sent} == {"Bearer hush"}
    greedy, sampled = sent[0], sent[-1]
    assert not {"seed", "stop"} & set(greedy) and greedy["temperature"] == greedy["top_k"] == 0
    assert {name: sampled[name] for name in ("temperature", "top_p", "top_k", "seed")} == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 7, "seed": 3,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("broken", "told"),
    [("status", "answers 400"), ("middle", "in the middle of an answer"), ("error", "out of memory")],
)
def test_a_server_that_fails_is_a_502(answerer: Pipeline, broken: str, told: str) -> None:
    with upstream(answerer, broken) as (url, _):
        backend = VllmBackend(ServedModel(answerer.model), VllmClient(url), concurrency=2)
        with served(answerer, backend=backend, concurrency=2) as (client, service):
            status, _, body = client.complete(TEXTS[0])
            assert status == 502 and told in body["error"]["message"] and body["error"]["code"] == "upstream"
            until(lambda: service.scheduler.queue.idle)


@pytest.mark.parametrize("broken", GARBAGE)
def test_a_server_that_sends_nonsense_or_nothing_is_a_502(
    answerer: Pipeline, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    with upstream(answerer, broken) as (url, _):
        backend = VllmBackend(ServedModel(answerer.model), VllmClient(url, timeout_s=1), concurrency=2)
        with served(answerer, backend=backend, concurrency=2) as (client, service):
            began = time.monotonic()
            status, _, body = client.complete(TEXTS[0], max_tokens=1)
            assert (
                status == 502 and body["error"]["code"] == "upstream" and "cannot be used" in body["error"]["message"]
            )
            assert time.monotonic() - began < 6
            until(lambda: service.scheduler.queue.idle)
    assert not [each for each in caplog.records if each.exc_info]


def test_a_line_separator_in_an_answer_ends_no_event(answerer: Pipeline, offline: Callable[..., str]) -> None:
    with upstream(answerer, "separator") as (url, _):
        backend = VllmBackend(ServedModel(answerer.model), VllmClient(url), concurrency=2)
        with served(answerer, backend=backend, concurrency=2) as (client, _):
            answered = client.complete(TEXTS[0])[2]["choices"][0]["text"]
    assert answered == "\u2028" + offline(TEXTS[0])


def test_a_stop_string_does_not_end_an_answer_at_the_space_that_is_taken_off_it(
    answerer: Pipeline, offline: Callable[..., str]
) -> None:
    whole = offline(TEXTS[0])
    with upstream(answerer, "space") as (url, sent):
        backend = VllmBackend(ServedModel(answerer.model), VllmClient(url), concurrency=2)
        with served(answerer, backend=backend, concurrency=2) as (client, _):
            for stop in (f" {whole[:2]}", " ", " never"):
                for streamed in (False, True):
                    asked = {"prompt": TEXTS[0], "stop": [stop, "zzz"]}
                    if streamed:
                        pieces = client.events("/v1/completions", asked)
                        found = "".join(piece["choices"][0]["text"] for piece in pieces)
                    else:
                        found = client.complete(TEXTS[0], stop=asked["stop"])[2]["choices"][0]["text"]
                    assert found == offline(TEXTS[0], stop=tuple(asked["stop"])), (stop, streamed)
    assert whole and {tuple(each["stop"]) for each in sent} == {("zzz",)}


@pytest.fixture
def own(answerer: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets options in the bridge's generation_config.json."""

    def change(**options: Any) -> None:
        changed = copy.deepcopy(answerer.model.generation_config)
        changed.update(**options)
        monkeypatch.setattr(answerer.model, "generation_config", changed)

    return change


def test_the_bridges_own_options_hold_with_either_llm(
    answerer: Pipeline, offline: Callable[..., str], own: Callable[..., None]
) -> None:
    whole = offline(TEXTS[0])
    stop, other = whole[4:6], whole[6:8]
    own(min_new_tokens=3, repetition_penalty=1.25, min_p=0.25, stop_strings=stop, no_repeat_ngram_size=0)
    assert offline(TEXTS[0]) == whole.split(stop)[0]
    pieces: list[str] = []
    alone = Pipeline(answerer.model, answerer.processor, answerer.options)
    alone.stream(alone.row(TEXTS[0]), 0, pieces.append)
    assert "".join(pieces) == offline(TEXTS[0])
    with served(answerer) as (client, _):
        for asked, expected in ((None, stop), ([other], other)):
            (choice,) = client.complete(TEXTS[0], stop=asked)[2]["choices"]
            assert choice["finish_reason"] == "stop"
            assert choice["text"] == whole.split(expected)[0] == offline(TEXTS[0], stop=tuple(asked or ()))
    with upstream(answerer) as (url, sent):
        backend = VllmBackend(ServedModel(answerer.model), VllmClient(url), concurrency=2)
        with served(answerer, backend=backend, concurrency=2) as (client, _):
            assert client.complete(TEXTS[0], max_tokens=2)[0] == 200
    values = {"min_tokens": 2, "repetition_penalty": 1.25, "min_p": 0.25, "stop": [stop]}
    assert {name: sent[0][name] for name in values} == values


@pytest.mark.parametrize(
    "options", [{"no_repeat_ngram_size": 2}, {"suppress_tokens": [3]}, {"forced_bos_token_id": 0}, {"max_time": 1.0}]
)
def test_an_option_that_vllm_does_not_have_is_refused_at_the_start(
    answerer: Pipeline, own: Callable[..., None], options: dict[str, Any]
) -> None:
    own(**options)
    with pytest.raises(ConfigError, match=f"sets {next(iter(options))} to"):
        VllmBackend(ServedModel(answerer.model), VllmClient("http://127.0.0.1:9"), concurrency=2)


def test_no_server_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match="no vLLM server answers at"):
        VllmClient("http://127.0.0.1:9", timeout_s=2).model()
    for url in ("127.0.0.1:8000", "ftp://a", "http://"):
        with pytest.raises(ConfigError, match="expected a URL"):
            VllmClient(url)
