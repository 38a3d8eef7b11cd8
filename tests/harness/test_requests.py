"""What becomes the encoder's text and what the LLM's: every word is scored once, whatever the request."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.data.text.chat import collapse, mark
from bridge_ds.data.text.prompting import Context, parse
from bridge_ds.harness.requests import Asked, Continuation, plan, plan_texts, windows


def letters(texts: list[str]) -> list[int]:
    """A tokenizer of one token a character."""
    return [len(text.strip()) for text in texts]


def cut(text: str) -> list[tuple[str, str]]:
    return windows(text, letters, 6)


TEXTS = st.text("ab 猫\n", max_size=60)


@given(text=TEXTS, limit=st.integers(1, 20))
def test_windows_hold_every_word_once_in_order(text: str, limit: int) -> None:
    found = windows(text, letters, limit)
    assert "".join(piece for _, piece in found) == text.rstrip()
    assert all(before == text[: len(before)] and piece.strip() for before, piece in found)
    assert all(len("".join(piece.split())) <= limit for _, piece in found)
    assert [before == "" for before, _ in found] == [place == 0 for place in range(len(found))]


@given(words=st.lists(st.text("abc", min_size=1, max_size=3), min_size=2, max_size=80))
def test_the_first_window_is_a_tenth_at_most(words: list[str]) -> None:
    (_, first), *_ = windows(" ".join(words), letters, 1000)
    assert len(first.split()) == math.ceil(len(words) / 10)


def test_a_context_goes_to_the_encoder_and_is_planned_once() -> None:
    asked = [Asked("the question", f" {answer}", 1) for answer in ("yes", "no")] + [Asked("another", " yes", 2)] * 2
    made = plan(asked, cut)
    assert made.contexts == [Context("the question"), Context("another")]
    assert made.continuations == [[Continuation(" yes"), Continuation(" no")], [Continuation(" yes")]]
    assert made.parts == [[(0, 0)], [(0, 1)], [(1, 0)], [(1, 0)]]


def test_choices_that_hold_the_whole_sample_share_their_beginning() -> None:
    # As in lm_eval's xnli_sw: no context, and Hivyo and Hapana begin alike.
    choices = [f" Ni kweli, sahihi? {word}, mvua" for word in ("Ndiyo", "Hivyo", "Hapana")]
    made = plan([Asked("", choice, "sw-1") for choice in choices[1:]], cut)
    assert Context(" Ni kweli, sahihi?") in made.contexts
    for parts, choice in zip(made.parts, choices[1:], strict=True):
        assert "".join(made.continuations[row][place].text for row, place in parts) == choice
        assert [made.continuations[row][place].whole for row, place in parts] == [False] * (len(parts) - 1) + [True]
        assert made.contexts[parts[-1][0]] == Context(" Ni kweli, sahihi?")
    assert made.parts[0][:-1] == made.parts[1][:-1], "the beginning is scored once for all"


def test_a_likelihood_without_any_context_reads_an_empty_source() -> None:
    null = [Asked("", " Very Good", 1), Asked("", " Very Bad", 1)]
    # Beside requests with a context (acc_mutual_info) it is the answer's own likelihood that is asked for.
    made = plan([Asked("how was it", " Very Good", 1), *null], cut)
    assert made.contexts == [Context("how was it"), Context("")] and len(made.parts[1]) == 1
    for asked in ([Asked("", " left", 1), Asked("", " right", 1)], [Asked("", " alone", 1)], [Asked("", " alone")]):
        assert plan(asked, cut).contexts == [Context("")]


def test_whole_texts_begin_without_a_context() -> None:
    made = plan_texts(["one two three", "", "one"], cut)
    assert made.contexts[0] == Context(None) and made.parts[1] == []
    assert made.parts[2] == [made.parts[0][0]], "the same words after the same text are scored once"
    assert not any(each.whole for own in made.continuations for each in own)


def test_chat_templates_are_taken_apart_around_the_users_turn() -> None:
    assert parse(f"<s>[INST] be brief\n{mark('swali?')} [/INST]") == Context(
        "swali?", "<s>[INST] be brief\n", " [/INST]"
    )
    assert parse("no template") == Context("no template") and not parse("no template").is_chat
    history = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "q1\n"},
        {"role": "assistant", "content": "a1"},
        {"role": "user", "content": "q2"},
    ]
    assert collapse(history, answering=False) == ("be brief", "q1 a1\n\nq2", "")
    assert collapse([*history, {"role": "assistant", "content": "The"}], answering=True) == (
        "be brief",
        "q1 a1\n\nq2",
        "The",
    )
    assert collapse([{"role": "user", "content": "q"}], answering=False) == ("", "q", "")
