"""The server over real HTTP on loopback: each answer is the offline one, and every fault has its form."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from bridge_ds.serve.app import Service
from bridge_ds.serve.backends import LocalBackend, ServedModel
from bridge_ds.serve.batching import RequestQueue, Row, Scheduler
from bridge_ds.serve.protocol import APIError, ChatRequest, ServerLimits
from bridge_ds.serve.server import bind, serve
from tests.hub.conftest import CHAT
from tests.serve.served import Client, served, until

TEXTS = ["the cat sat on the mat", "a dog", "猫 one river", "rain fell and it was wet", "two banks", "a", "1 2 3 ;"]
Offline = Callable[..., str]
Server = tuple[Client, Service]


def texts_of(body: Any) -> list[str]:
    return [choice["text"] for choice in body["choices"]]


def test_requests_at_the_same_time_get_the_offline_answers(server: Server, offline: Offline) -> None:
    client, service = server
    asked = [(text, most) for text in TEXTS for most in (None, 3, 25)]

    def one(text: str, most: int | None) -> Any:
        more = {} if most is None else {"max_tokens": most}
        status, _, body = client.complete(text, **more)
        assert status == 200, body
        return body

    with ThreadPoolExecutor(len(asked)) as pool:
        bodies = list(pool.map(one, *zip(*asked, strict=True)))
    for (text, most), body in zip(asked, bodies, strict=True):
        assert texts_of(body) == [offline(text, max_new_tokens=most)]
        assert body["object"] == "text_completion" and body["model"] == "tiny" and body["id"].startswith("cmpl-")
        (choice,), usage = body["choices"], body["usage"]
        assert choice["finish_reason"] == ("length" if usage["completion_tokens"] == (most or 10) else "stop")
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    page = client.ask("GET", "/metrics")[2]
    assert f'bridge_requests_total{{path="/v1/completions",status="200"}} {len(asked)}.0' in page
    batches = float(page.split("bridge_batch_rows_count ")[1].split()[0])
    assert batches < len(asked), "they shared batches"
    assert "bridge_waiting_rows 0.0" in page
    until(lambda: service.scheduler.queue.idle)


def test_several_prompts_stops_seeds_and_chats(server: Server, offline: Offline) -> None:
    client, _ = server
    assert texts_of(client.complete(TEXTS[:3], max_tokens=12)[2]) == [offline(t, max_new_tokens=12) for t in TEXTS[:3]]
    whole = offline(TEXTS[0], max_new_tokens=14)
    stop = whole[4:6]
    body = client.complete(TEXTS[0], max_tokens=14, stop=["never", stop])[2]
    assert texts_of(body) == [offline(TEXTS[0], max_new_tokens=14, stop=("never", stop))] == [whole.split(stop)[0]]
    assert body["choices"][0]["finish_reason"] == "stop"
    sampled = [texts_of(client.complete(TEXTS[0], temperature=2, seed=seed, top_k=30)[2])[0] for seed in (5, 5, 6)]
    assert sampled[0] == sampled[1] == offline(TEXTS[0], temperature=2.0, seed=5, top_k=30) != sampled[2]
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": TEXTS[0]}]
    body = client.chat(messages, max_completion_tokens=9)[2]
    assert body["object"] == "chat.completion"
    message = body["choices"][0]["message"]
    assert message == {"role": "assistant", "content": offline(messages, chat=True, max_new_tokens=9)}


def test_streams_joined_are_the_offline_answers(server: Server, offline: Offline) -> None:
    client, _ = server
    body = {"prompt": TEXTS[:2], "max_tokens": 12, "stream_options": {"include_usage": True}}
    *pieces, usage = client.events("/v1/completions", body)
    for index in (0, 1):
        mine = [event["choices"][0] for event in pieces if event["choices"][0]["index"] == index]
        assert "".join(choice["text"] for choice in mine) == offline(TEXTS[index], max_new_tokens=12)
        assert len(mine) > 3 and [c["finish_reason"] for c in mine if c["finish_reason"]] == [mine[-1]["finish_reason"]]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] > 12
    messages = [{"role": "user", "content": TEXTS[0]}]
    first, *rest = client.events("/v1/chat/completions", {"messages": messages})
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert {event["object"] for event in rest} == {"chat.completion.chunk"} and len({e["id"] for e in rest}) == 1
    joined = "".join(event["choices"][0]["delta"].get("content", "") for event in rest)
    assert joined == offline(messages, chat=True)


def test_texts_that_are_too_long_are_cut_as_offline_and_the_reply_counts_them(server: Server, offline: Offline) -> None:
    client, service = server
    long = " ".join(["the cat sat on the mat"] * 40)
    status, headers, body = client.complete([long, TEXTS[0]], max_tokens=9)
    assert (status, headers["x-bridge-truncated"], body["usage"]["truncated"]) == (200, "1", 1)
    assert texts_of(body) == [offline(text, max_new_tokens=9) for text in (long, TEXTS[0])]
    connection, answer = client.open("POST", "/v1/completions", {"model": "tiny", "stream": True, "prompt": long})
    with contextlib.closing(connection):
        assert answer.headers["x-bridge-truncated"] == "1" and answer.read().endswith(b"[DONE]\n\n")
    status, headers, body = client.complete(TEXTS[0], max_tokens=9)
    assert "x-bridge-truncated" not in headers and body["usage"]["truncated"] == 0
    assert "bridge_truncated_texts_total 2.0" in service.metrics.page().decode()


def test_bad_requests_get_openais_error_object(server: Server) -> None:
    client, _ = server
    # A system message is not to be truncated.
    endless = [{"role": "system", "content": "the cat sat on the mat " * 40}, {"role": "user", "content": "a"}]
    for status, told, method, path, body, headers in (
        (400, "not JSON", "POST", "/v1/completions", b'{"model": ', {}),
        (400, "not JSON", "POST", "/v1/completions", b"\xff\xfe", {}),
        (400, "not JSON", "POST", "/v1/completions", b"[" * 100_000, {}),
        (400, "the key 'prompt' twice", "POST", "/v1/completions", b'{"prompt": "a", "prompt": "b"}', {}),
        (400, "not a JSON object", "POST", "/v1/completions", [1], {}),
        (400, "prompt is missing", "POST", "/v1/completions", {"model": "tiny"}, {}),
        (400, "max_tokens is 65", "POST", "/v1/completions", {"model": "tiny", "prompt": "a", "max_tokens": 65}, {}),
        (400, "besides its context", "POST", "/v1/chat/completions", {"model": "tiny", "messages": endless}, {}),
        (404, "is not here", "POST", "/v1/completions", {"model": "gpt-4", "prompt": "a"}, {}),
        (404, "no such path", "GET", "/v1/embeddings", None, {}),
        (405, "this method", "GET", "/v1/completions", None, {}),
        (415, "content type", "POST", "/v1/completions", {"model": "tiny"}, {"Content-Type": "text/plain"}),
    ):  # fmt: skip
        found, answer_headers, answer = client.ask(method, path, body, headers)
        assert found == status and told in answer["error"]["message"], answer
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        assert answer["error"]["type"] == "invalid_request_error" and "retry-after" not in answer_headers
    assert client.ask("GET", "/v1/models")[2]["data"][0]["id"] == "tiny"
    assert client.ask("GET", "/health")[::2] == (200, {"status": "ok"})


def test_a_chat_that_the_template_refuses_is_a_bad_request(
    server: Server, answerer: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusing = "{{ raise_exception('no cats here') if 'cat' in messages[-1].content else messages[-1].content }}"
    monkeypatch.setattr(answerer.model.tokenizers.llm, "chat_template", refusing)
    client, _ = server
    status, _, answer = client.chat([{"role": "system", "content": "be brief"}, {"role": "user", "content": "a cat"}])
    assert status == 400 and answer["error"]["param"] == "messages" and "no cats here" in answer["error"]["message"]
    assert client.chat([{"role": "user", "content": "a dog"}])[0] == 200


def test_large_bodies_and_wrong_keys_are_refused(answerer: Pipeline) -> None:
    with served(answerer, limits=ServerLimits(body=2000), key="sesame") as (client, _):
        right = {"Authorization": "Bearer sesame"}
        ask = {"model": "tiny", "prompt": "a"}
        assert client.ask("POST", "/v1/completions", ask, right)[0] == 200
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "sesame"}):
            status, given, body = client.ask("POST", "/v1/completions", ask, headers)
            assert (status, body["error"]["code"], given["www-authenticate"]) == (401, "invalid_api_key", "Bearer")
        assert client.ask("GET", "/v1/models")[0] == client.ask("GET", "/metrics")[0] == 401
        assert client.ask("GET", "/health")[0] == 200
        with contextlib.suppress(ConnectionError):  # it may close before all has been sent
            assert client.ask("POST", "/v1/completions", {**ask, "prompt": "a" * 3000}, right)[0] == 413


class Gated(LocalBackend):
    """The local backend behind a gate, so that a test decides when a batch is answered."""

    def __init__(self, answerer: Pipeline) -> None:
        super().__init__(ServedModel(answerer.model))
        self.gate = threading.Event()
        self.fail = False

    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        assert self.gate.wait(60)
        if self.fail:
            done(len(rows))
            raise RuntimeError("a fault of the backend")
        super().start(rows, done)


def test_overload_gets_429_a_drain_503_and_what_waits_its_answer(answerer: Pipeline, offline: Offline) -> None:
    backend = Gated(answerer)
    with served(answerer, backend=backend, queue=3, batch=1) as (client, service), ThreadPoolExecutor(8) as pool:
        waiting = service.scheduler.queue
        try:
            first = pool.submit(client.complete, TEXTS[0])
            until(lambda: waiting.running == 1)
            others = [pool.submit(client.complete, text) for text in TEXTS[1:4]]
            until(lambda: len(waiting) == 3)
            status, headers, body = client.complete("one more")
            assert (status, body["error"]["type"], body["error"]["code"]) == (429, "rate_limit_error", "queue_full")
            assert int(headers["retry-after"]) >= 1
            assert "bridge_waiting_rows 3.0" in client.ask("GET", "/metrics")[2]
            waiting.drain()
            status, headers, body = client.complete("one more")
            assert (status, body["error"]["code"], headers["retry-after"]) == (503, "draining", "5")
            assert client.ask("GET", "/health")[::2] == (503, {"status": "draining"})
        finally:
            backend.gate.set()
        for text, asked in zip(TEXTS, [first, *others], strict=False):
            status, _, body = asked.result(60)
            assert status == 200 and texts_of(body) == [offline(text)]


def test_a_batch_that_fails_is_a_500_and_the_next_is_answered(answerer: Pipeline, offline: Offline) -> None:
    backend = Gated(answerer)
    backend.gate.set()
    backend.fail = True
    with served(answerer, backend=backend) as (client, _):
        status, _, body = client.complete("a dog")
        assert status == 500 and body["error"]["type"] == "server_error" and "backend" not in str(body)
        *_, last = client.events("/v1/completions", {"prompt": "a dog"})
        assert last["error"]["type"] == "server_error"
        backend.fail = False
        assert texts_of(client.complete("a dog")[2]) == [offline("a dog")]


def test_who_goes_away_leaves_no_work_behind(answerer: Pipeline) -> None:
    backend = Gated(answerer)
    with served(answerer, backend=backend, batch=1) as (client, service):
        waiting = service.scheduler.queue
        threads = ThreadPoolExecutor(1)
        first = threads.submit(client.complete, TEXTS[0])
        until(lambda: waiting.running == 1)
        connection, answer = client.open("POST", "/v1/completions", {"model": "tiny", "prompt": "a", "stream": True})
        until(lambda: len(waiting) == 1)
        answer.close()
        connection.close()
        until(lambda: all(row.cancelled for row in waiting._rows))
        backend.gate.set()
        assert first.result(60)[0] == 200
        until(lambda: waiting.idle)
        threads.shutdown()


def test_the_scheduler_is_the_only_thread_that_runs_the_model(answerer: Pipeline) -> None:
    seen = set()
    hook = answerer.model.bridge.llm.model.register_forward_pre_hook(
        lambda *_: seen.add(threading.current_thread().name)
    )
    try:
        with served(answerer) as (client, _):
            assert client.complete(TEXTS[:3])[0] == 200
    finally:
        hook.remove()
    assert seen == {"scheduler"} and torch.is_grad_enabled()


def test_a_port_that_is_taken_while_models_load_is_a_user_error(answerer: Pipeline) -> None:
    model = ServedModel(answerer.model)
    service = Service("tiny", model, Scheduler(RequestQueue(1, 1, 0), LocalBackend(model)), ServerLimits())
    with bind("127.0.0.1", 0) as listening, socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(listening.getsockname())
        other.listen()
        with pytest.raises(LaunchError, match=r"127.0.0.1:\d+ cannot be listened on \(Address already in use\)"):
            serve(service, listening, connections=4)
    assert not service.scheduler.alive


def test_several_chat_templates_without_a_default_are_one_sentence_at_every_door(
    answerer: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answerer.processor.tokenizer, "chat_template", {"one": CHAT, "two": CHAT})
    monkeypatch.setattr(answerer.model.tokenizers.llm, "chat_template", {"one": CHAT, "two": CHAT})
    chat = [{"role": "user", "content": "a dog"}]
    with pytest.raises(ConfigError, match="cannot render a chat"):
        Pipeline(answerer.model, answerer.processor, GenerateOptions(chat=True)).row(chat)
    for tokenize in (True, False):
        with pytest.raises(ConfigError, match="cannot render a chat"):
            answerer.processor.apply_chat_template(chat, tokenize=tokenize)
    with pytest.raises(APIError, match="cannot render a chat") as told:
        ServedModel(answerer.model).rows(ChatRequest.model_validate({"model": "m", "messages": chat}), print)
    assert told.value.status == 400
    assert answerer.processor.apply_chat_template(chat, chat_template="one")["input_ids"].shape[0] == 1
