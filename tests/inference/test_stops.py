"""Stop strings are looked for in the answer, without the space that training puts before it."""

from __future__ import annotations

import pytest
import torch

from bridge_ds.config.schema import ModelConfig
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.prompting import answers
from bridge_ds.evaluation.written import Wanted
from bridge_ds.hub.processor import BridgeProcessor
from bridge_ds.inference.stops import Answer, Decoder, StopStrings, stop_criterion
from tests import tiny

LONG = "the cat sat on the mat and looked at the dog "


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Tokenizers:
    root = tmp_path_factory.mktemp("stops")
    encoder, llm = tiny.make_encoder("mt5", root / "mt5"), tiny.make_llm("llama", root / "llama")
    return load_tokenizers(ModelConfig(encoder=str(encoder), llm=str(llm)))


def ended_by_criterion(decoder: Decoder, ids: list[int], stop: str) -> list[int]:
    """What is written up to where transformers is told to end."""
    criterion = stop_criterion(decoder, StopStrings((stop,)))
    for count in range(1, len(ids) + 1):
        if bool(criterion(torch.tensor([ids[:count]]), None)[0]):  # type: ignore[arg-type]
            return ids[:count]
    return ids


@pytest.mark.parametrize(
    ("written", "stop", "answer"),
    [
        ("one two one", " one", "one two"),  # not the one at its beginning
        ("one two", " one", "one two"),
        ("one two", " ", "one"),
        ("one two", "one", ""),
        (LONG + "one two", " one", LONG.strip()),
        ("one " + LONG * 2 + "one two", " one", ("one " + LONG * 2).strip()),  # more tokens than are looked at together
    ],
)
def test_a_stop_string_that_begins_with_a_space(tokenizers: Tokenizers, written: str, stop: str, answer: str) -> None:
    (ids,) = answers(tokenizers, [written], None, closed=False)
    decoder = Decoder(tokenizers)
    assert decoder.raw(ids) == f" {written}" and decoder(ids) == written
    assert StopStrings((stop,)).cut(decoder(ended_by_criterion(decoder, ids, stop))) == answer
    streamed = Answer(decoder, (), (stop,), streamed=True)
    assert "".join([*map(streamed.add, ids), streamed.finish()]) == streamed.text == answer
    assert (streamed.reason == "stop") == (answer != written)
    # All that is read behind the stop is the rest of the token that completes it.
    assert len(streamed.tokens) == len(ended_by_criterion(decoder, ids, stop))


def test_spaces_before_signs_stay_however_the_tokenizer_is_set(
    tokenizers: Tokenizers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("", "_for_bpe_even_though_it_will_corrupt_output"):
        monkeypatch.setattr(tokenizers.llm, f"clean_up_tokenization_spaces{name}", True, raising=False)
    written = "numbers , and signs . it 's"
    (ids,) = answers(tokenizers, [written], None, closed=False)
    assert tokenizers.llm.decode(ids) == " numbers, and signs. it's"
    streamed = Answer(Decoder(tokenizers), (), streamed=True)
    assert "".join([*map(streamed.add, ids), streamed.finish()]) == streamed.text == written
    right = Wanted(written, tokenizers)
    assert right.done(ids) and all(right.open(ids[:count]) for count in range(1, len(ids)))
    processor = BridgeProcessor.__new__(BridgeProcessor)
    processor.tokenizers = tokenizers
    assert processor.batch_decode([ids, torch.tensor(ids)]) == [processor.decode(ids)] * 2 == [written] * 2
    assert processor.decode(ids, clean_up_tokenization_spaces=True) == "numbers, and signs. it's"


def test_a_chats_answer_has_no_such_space(tokenizers: Tokenizers) -> None:
    (ids,) = answers(tokenizers, ["one two"], None, closed=False)
    chat = Answer(Decoder(tokenizers, chat=True), (), (" one",))
    assert [chat.add(token) for token in ids][-1] == "" and (chat.text, chat.reason) == ("", "stop")
