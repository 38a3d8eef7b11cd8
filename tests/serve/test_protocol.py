"""What a request may say, and which rows share a batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.data.text.prompting import ContextIds
from bridge_ds.inference.generator import Sampling
from bridge_ds.inference.stops import Answer, Decoder
from bridge_ds.serve.batching import RequestQueue, Row, choose_batch
from bridge_ds.serve.protocol import APIError, ChatRequest, CompletionRequest, ServerLimits, parse_request
from bridge_ds.serve.replies import Event

LIMITS = ServerLimits(tokens=50, texts=3)
BAD: list[tuple[dict[str, Any], str]] = [
    ({"prompt": [1, 2]}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": ["a"] * 4}, "prompt"),
    ({"prompt": "\ud800"}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 51}, "max_tokens"),
    ({"max_tokens": 2.5}, "max_tokens"),
    ({"max_tokens": True}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": 1.1}, "top_p"),
    ({"seed": 1 << 70}, "seed"),
    ({"stop": ""}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"stop": [1]}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"n": 2}, "n"),
    ({"echo": True}, "echo"),
    ({"logprobs": 3}, "logprobs"),
    ({"logprobs": 0}, "logprobs"),
    ({"top_p": 0.5}, "top_p"),
    ({"top_k": 5}, "top_k"),
    ({"temperature": -1, "top_k": 5}, "temperature"),
    ({"reasoning_effort": "high"}, "reasoning_effort"),
    ({"modalities": ["audio"]}, "modalities"),
    ({"presence_penalty": 0.5}, "presence_penalty"),
    ({"tools": [{}]}, "tools"),
    ({"max_new_tokens": 3}, "max_new_tokens"),
    ({"model": "other"}, "model"),
    ({"model": None}, "model"),
    ({"\ud800": 1}, ""),
    ({"stop": "\ufdd0"}, "stop"),
]


@pytest.mark.parametrize(("fields", "param"), BAD, ids=lambda value: str(value)[:30])
def test_a_bad_field_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(APIError) as error:
        parse_request(CompletionRequest, {"model": "m", "prompt": "a", **fields}, "m", LIMITS)
    assert error.value.param == param and 400 <= error.value.status < 500
    assert error.value.body()["error"]["message"] and json.dumps(error.value.body())


@given(body=st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["model", "prompt", "messages", "role", "content", "stop", "n", "seed", "tools", "stream"]),
        inner, max_size=5,
    ),
    max_leaves=12,
))  # fmt: skip
def test_whatever_comes_is_an_ask_or_a_refusal(body: Any) -> None:
    for kind in (CompletionRequest, ChatRequest):
        given_model = {**body, "model": "m"} if isinstance(body, dict) else body
        try:
            assert parse_request(kind, given_model, "m", LIMITS).inputs
        except APIError as why:
            assert 400 <= why.status < 500  # noqa: PT017 (one or the other)


def test_what_changes_nothing_is_taken() -> None:
    ask = parse_request(
        CompletionRequest,
        {"model": "m", "prompt": ["a", "b"], "n": 1, "echo": False, "logprobs": None, "user": "me",
         "temperature": 0, "top_p": 0.5, "top_k": 3,
         "seed": 3, "stop": "x", "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 50},
        "m", LIMITS,
    )  # fmt: skip
    assert ask.inputs == ["a", "b"] and ask.stop == ["x"] and ask.stream and ask.include_usage and ask.token_limit == 50
    assert ask.sampling == Sampling(), "at temperature 0 nothing is sampled"
    neutral = {
        "parallel_tool_calls": True, "service_tier": "auto", "modalities": ["text"], "function_call": "none",
        "tool_choice": "auto", "tools": [], "top_p": 1, "top_k": 0, "presence_penalty": 0.0, "logprobs": False,
    }  # fmt: skip
    for fields in (neutral, dict.fromkeys([*neutral, "reasoning_effort", "a field of tomorrow"])):
        assert parse_request(CompletionRequest, {"model": "m", "prompt": "a", **fields}, "m", LIMITS).inputs == ["a"]
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    chat = parse_request(
        ChatRequest, {"model": "m", "messages": messages, "max_completion_tokens": 7, "temperature": 1}, "m", LIMITS
    )
    assert chat.inputs[0] == [{"role": "system", "content": "be brief"}, {"role": "user", "content": "ab"}]
    assert chat.chat and chat.token_limit == 7 and chat.sampling == Sampling(1, 1.0, 0) and chat.seed is None


@pytest.mark.parametrize(
    "messages",
    [[], "hello", [{"role": "user"}], [{"role": "tool", "content": "a"}], [{"role": "assistant", "content": "a"}],
     [{"role": "user", "content": [{"type": "image_url"}]}], [{"role": "user", "content": "\ufdd0"}],
     [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"}]],
    ids=lambda value: str(value)[:40],
)  # fmt: skip
def test_bad_messages_are_refused(messages: Any) -> None:
    with pytest.raises(APIError):
        parse_request(ChatRequest, {"model": "m", "messages": messages}, "m", LIMITS)


class Words(Decoder):
    """Words in place of tokenizers; ids are their numbers."""

    def raw(self, ids: Sequence[int]) -> str:
        return "".join(self.tokenizers[number] for number in ids)  # type: ignore[index]

    def bare(self, raw: str) -> str:
        return raw.removeprefix(" ")


def row(
    length: int = 5, limit: int = 5, kind: tuple[Sampling, int | None] = (Sampling(), None),
    words: Sequence[str] = (), stops: tuple[str, ...] = (), sink: Callable[[Event], None] = lambda event: None,
) -> Row:  # fmt: skip
    answer = Answer(Words(words), frozenset(), stops, limit, streamed=True)  # type: ignore[arg-type]
    return Row(ContextIds([], [], [], []), length, limit, answer, *kind, 0, sink)


KINDS = [(Sampling(), None), (Sampling(0.5), None), (Sampling(0.5, 0.9), None), (Sampling(0.5), 3)]


@given(
    kinds=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.sampled_from(KINDS)), max_size=30),
    size=st.integers(1, 9),
    positions=st.sampled_from([0, 64, 120]),
)
def test_batches_hold_each_row_once_beside_its_like_with_room_for_all(
    kinds: list[tuple[int, int, tuple[Sampling, int | None]]], size: int, positions: int
) -> None:
    fitting = [kind for kind in kinds if not positions or kind[0] + kind[1] <= positions]
    rows = [row(*kind) for kind in fitting]
    left = list(rows)
    while left:
        batch = choose_batch(left, size, positions)
        assert batch[0] is left[0], "none waits forever"
        assert len(batch) <= size and len({each.key for each in batch}) == 1
        assert batch[0].seed is None or len(batch) == 1
        longest, most = max(each.length for each in batch), max(each.limit for each in batch)
        assert not positions or longest + most <= positions
        left = [each for each in left if each not in batch]
    assert choose_batch([], size, positions) == []


def test_a_full_queue_refuses_and_says_when_to_come_again() -> None:
    waiting = RequestQueue(limit=3, size=2, positions=0)
    waiting.offer([row(), row()])
    with pytest.raises(APIError) as error:
        waiting.offer([row(), row()])
    assert error.value.status == 429 and error.value.retry_s >= 1 and len(waiting) == 2, "all of a request, or nothing"
    with pytest.raises(APIError, match="holds 4 texts"):
        waiting.offer([row()] * 4)
    gone = row()
    waiting.offer([gone])
    gone.cancelled = True
    batch = waiting.take(0)
    assert len(batch) == 2 and waiting.running == 2 and not waiting.idle
    assert waiting.take(0) == [], "what is cancelled is forgotten"
    waiting.done(2)
    assert waiting.idle
    waiting.drain()
    with pytest.raises(APIError) as error:
        waiting.offer([row()])
    assert error.value.status == 503


@given(
    words=st.lists(st.text("abc é", min_size=1, max_size=4), min_size=1, max_size=12),
    stop=st.text("abc ", max_size=3),
)
def test_pieces_of_a_stream_are_the_answer(words: list[str], stop: str) -> None:
    """Whatever the tokens, pieces joined are what stands before the first stop, and the row ends where it is found."""
    seen: list[Event] = []
    stops = (stop,) if stop else ()
    work = row(limit=len(words), words=words, stops=stops, sink=seen.append)
    for number in range(len(words)):
        if work.answer.reason is None:
            work.send(work.answer.add(number))
    whole = "".join(words).removeprefix(" ")
    assert "".join(event.text for event in seen) == (whole.split(stop)[0] if stop else whole)
    ends = [event.reason for event in seen if event.reason]
    assert ends == ["stop" if stop and stop in whole else "length"] and seen[-1].reason
    assert seen[-1].tokens == len(work.answer.tokens)
