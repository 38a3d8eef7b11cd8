"""Request bodies that no client should send: each gets an answer that obeys it, or a 4xx in OpenAI's form."""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
from tests import tiny
from tests.hub.conftest import CHAT
from tests.made import make_run
from tests.serve.served import Client, served

SEED = int(os.environ.get("BRIDGE_DS_FUZZ_SEED", "17"))
CASES = round(300 * float(os.environ.get("BRIDGE_DS_FUZZ", "1")))
LIMIT = 16
"""Highest max_tokens of the server."""
TEXTS = [
    "the cat sat on the mat",
    "a",
    "",
    " ",
    "\n",
    "猫",
    "\u2028",
    "\0",
    "a" * 3000,
    "\ufdd0",
    "e\u0301",
    "👩‍👩‍👧",
    "<s></s>",
    "</s>",
]
NUMBERS = [
    0, 1, -1, 2, 3, 16, 17, 0.0, -0.0, 0.5, 1.0, 1.5, 2.5, 1e-38, 1e-300, 5e-324, 1e-8, 1e308, 1 << 31, 1 << 63,
    (1 << 63) - 1, -(1 << 63), 1 << 64, 10**400,
]  # fmt: skip
OTHERS = [None, True, False, [], {}, [[]], [None], {"a": 1}, "1", "true", ["a", "b"], ["a", 1], {"type": "text"}]
FIELDS = [
    "model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "seed", "stop", "stream", "stream_options",
    "language", "user", "metadata", "n", "best_of", "echo", "logprobs", "top_logprobs", "suffix", "presence_penalty",
    "frequency_penalty", "logit_bias", "tools", "tool_choice", "response_format", "store", "messages",
    "max_completion_tokens", "functions", "", "\ufdd0", "__class__", "model_config",
]  # fmt: skip
RAW = [
    b"", b" ", b"null", b"{", b"}", b"[]", b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\x80", b"[" * 5000, b"1" * 6000,
    b'{"a":' * 5000, b"NaN", b'"\\ud800"', b"{'model': 'tiny'}", b'{"model":"tiny","prompt":"\\ud83d"}',
    *(b'{"model":"tiny","prompt":"a",' + more + b"}" for more in (
        b"", b'"prompt":"b"', b'"\\udc00":1', b'"temperature":NaN', b'"user":Infinity', b'"temperature":1e999',
        b'"metadata":{"a":-Infinity}', b'"seed":' + b"9" * 5000, b'"user":' + b"[" * 150 + b"]" * 150,
    )),
]  # fmt: skip


def value(draw: random.Random, depth: int = 0) -> Any:
    """Of any type."""
    kind = draw.randrange(10)
    if kind < 3:
        return draw.choice(TEXTS)
    if kind < 6:
        return draw.choice(NUMBERS)
    if kind < 8 or depth > 3:
        return draw.choice(OTHERS)
    if kind == 8:
        return [value(draw, depth + 1) for _ in range(draw.randrange(4))]
    return {draw.choice([*FIELDS, "role", "content", "type", "text"]): value(draw, depth + 1) for _ in range(3)}


def sensible(draw: random.Random) -> tuple[str, dict[str, Any]]:
    """A path and a body that are answered."""
    body: dict[str, Any] = {"model": "tiny"}
    options = {
        "max_tokens": draw.randrange(1, LIMIT + 1),
        "temperature": draw.choice([0, 0.7, 1e-8, 2]),
        "top_p": draw.choice([0.9, 1, 1e-300]),
        "top_k": draw.choice([0, 1, 5]),
        "seed": draw.choice([0, 7, -(1 << 63)]),
        "stop": draw.choice([["e"], "the", [" ", "a"]]),
        "stream": draw.choice([True, False]),
        "user": "someone",
        "n": 1,
    }
    body |= {name: options[name] for name in options if draw.random() < 0.3}
    if draw.random() < 0.5:
        return "/v1/completions", body | {"prompt": draw.choice([TEXTS[0], TEXTS[:2], ["猫", "a", "a"]])}
    return "/v1/chat/completions", body | {
        "messages": [
            *([{"role": "system", "content": "be brief"}] if draw.random() < 0.5 else []),
            {"role": "user", "content": draw.choice([TEXTS[0], [{"type": "text", "text": "a dog"}]])},
        ]
    }


def mutated(draw: random.Random) -> tuple[str, Any]:
    """A path and a body, as JSON or as bytes."""
    path, body = sensible(draw)
    kind = draw.randrange(10)
    if kind == 0:
        return path, body
    if kind == 1:
        return path, draw.choice(RAW)
    if kind == 2:
        raw = bytearray(json.dumps(body).encode())
        for _ in range(draw.randrange(1, 4)):
            at = draw.randrange(len(raw) + 1)
            raw[at : at + draw.randrange(3)] = draw.randbytes(draw.randrange(3))
        return path, bytes(raw)
    messages = body.get("messages", [])
    for _ in range(draw.randrange(1, 3)):
        target: Any = body
        if kind == 3 and messages:
            target = messages[draw.randrange(len(messages))]
        if kind == 4:
            target.pop(draw.choice(list(target) or FIELDS), None)
        else:
            target[draw.choice([*list(target), *FIELDS])] = value(draw)
    return path, json.dumps(body).encode()


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    from bridge_ds.serve.protocol import ServerLimits

    root = tmp_path_factory.mktemp("fuzz")
    encoder, llm = tiny.make_encoder("mt5", root / "mt5"), tiny.make_llm("llama", root / "llama")
    (llm / "chat_template.jinja").write_text(CHAT)
    more = ["data.max_source_tokens=60", "data.max_target_tokens=10"]
    run = make_run(root / "run", [f"model.encoder={encoder}", f"model.llm={llm}", *more])
    with served(Pipeline.load(str(run), GenerateOptions()), limits=ServerLimits(tokens=LIMIT, texts=4)) as (found, _):
        yield found


def test_every_body_gets_an_answer_or_a_refusal(client: Client) -> None:
    draw = random.Random(SEED)
    statuses: Counter[int] = Counter()
    for number in range(CASES):
        path, body = mutated(draw)
        case = f"BRIDGE_DS_FUZZ_SEED={SEED}, case {number}: {path} {body!r:.2000}"
        began = time.monotonic()
        status, headers, answer = client.ask("POST", path, body)
        assert time.monotonic() - began < 10, case
        statuses[status] += 1
        if status == 200:
            asked = json.loads(body if isinstance(body, bytes) else json.dumps(body))
            check_answer(asked, headers, answer, case)
        else:
            assert 400 <= status < 500 and status not in (429, 499), (status, answer, case)
            assert set(answer["error"]) == {"message", "type", "param", "code"}, case
            assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"], case
    assert min(statuses[200], statuses[400]) > CASES // 10, statuses
    print(statuses)
    if CASES > 1000:
        before = resident()
        draw = random.Random(SEED)
        for _ in range(CASES):
            client.ask("POST", *mutated(draw))
        print("memory", resident() - before)
        assert resident() - before < 20e6


def check_answer(asked: dict[str, Any], headers: dict[str, str], answer: Any, case: str) -> None:
    """What was asked for, and no more."""
    texts = asked["prompt"] if isinstance(asked.get("prompt"), list) else [""]
    most = asked.get("max_completion_tokens") or asked.get("max_tokens") or 10
    stops = asked.get("stop") or []
    if not asked.get("stream"):
        answers = [choice["text"] if "text" in choice else choice["message"]["content"] for choice in answer["choices"]]
        assert answer["usage"]["completion_tokens"] <= most * len(texts), case
        assert {choice["finish_reason"] for choice in answer["choices"]} <= {"stop", "length"}, case
    else:
        assert headers["content-type"].startswith("text/event-stream") and answer.endswith("data: [DONE]\n\n"), case
        answers = [""] * len(texts)
        for line in answer.split("\n\n")[:-2]:
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, (event, case)
            for choice in event["choices"]:
                answers[choice["index"]] += choice.get("text", "") or choice.get("delta", {}).get("content", "")
    assert len(answers) == len(texts), case
    for stop in [stops] if isinstance(stops, str) else stops:
        assert not any(stop in each for each in answers), (answers, case)


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
