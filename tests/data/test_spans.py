"""Which tokens of both tokenizers share characters: as counted one by one, and what is left out."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.data.loading.spans import covered, overlaps
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.data.text.spiece import PROBES
from bridge_ds.errors import ConfigError
from tests import tiny


def spans_of(cuts: list[int], kept: list[bool]) -> list[tuple[int, int]]:
    """Spans between sorted cuts, some left out; two cuts at one place make an empty one."""
    cuts = sorted(cuts)
    return [pair for pair, keep in zip(itertools.pairwise(cuts), kept, strict=False) if keep]


SPANS = st.builds(
    spans_of, st.lists(st.integers(0, 30), max_size=14), st.lists(st.booleans(), min_size=14, max_size=14)
)


@given(SPANS, SPANS)
def test_overlaps_are_the_spans_that_share_a_character(
    ones: list[tuple[int, int]], others: list[tuple[int, int]]
) -> None:
    expected = [
        [n for n, (start, end) in enumerate(others) if set(range(*span)) & set(range(start, end))] for span in ones
    ]
    assert overlaps(ones, others) == expected


def test_the_testbeds_tokenizers_on_sentences_of_every_script() -> None:
    """SentencePiece with letters that it loses, beside byte-level BPE."""
    tokenizers = load_tokenizers(Config().model)
    texts = ["the cat sat on the mat", "A bridge, over water!", *PROBES.values()]
    rows = covered(tokenizers, texts, [None] * len(texts), 500)
    assert len(rows) == len(texts)
    for text, row in zip(texts, rows, strict=True):
        assert row.source == tokenizers.sources([text])[0] and len(row.same) == len(row.source)
        words = tokenizers.llm(text, add_special_tokens=False)["input_ids"]
        assert row.same[-1] == [words[-1]] and row.last == tokenizers.prompts([text])[0][-1]
        met = [one for ids in row.same[:-1] for one in ids]
        assert set(met) <= set(words)
        if text.isascii():  # nothing is normalized away: every token of the LLM is met
            assert set(met) == set(words)


def test_long_texts_are_left_out_and_slow_tokenizers_refused(tmp_path: Path) -> None:
    encoder, llm = tiny.make_encoder("xlm-roberta", tmp_path / "encoder"), tiny.make_llm("llama", tmp_path / "llm")
    tokenizers = load_tokenizers(ModelConfig(encoder=str(encoder), llm=str(llm)))
    texts = ["the cat", "the cat sat on the mat and on the dog and on the train", ""]
    (row,) = covered(tokenizers, texts, [None] * 3, 8)
    assert row.source == tokenizers.sources(["the cat"])[0]

    class Slow:
        is_fast = False

    object.__setattr__(tokenizers, "llm", Slow())
    with pytest.raises(ConfigError, match=r"model\.llm \(Slow\) does not say which characters .* mapping\.init=random"):
        covered(tokenizers, texts, [None] * 3, 8)
