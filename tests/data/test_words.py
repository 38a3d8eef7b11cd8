"""Texts in scripts without spaces are split between characters; all others where they always were."""

from __future__ import annotations

import itertools
import math
import random
import re
import unicodedata
from pathlib import Path

import pytest

from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.sources import file_parts
from bridge_ds.data.sampling.order import uniform
from bridge_ds.data.shards.samples import BadSample, check_sample
from bridge_ds.data.text.words import split_text, starts
from bridge_ds.harness.requests import Asked, plan, plan_texts, windows

KHMER = ("ឆ្មាអង្គុយលើកន្ទេល។", "ឆ្កែដេក។")
CHINESE = ("猫坐在垫子上。", "狗在睡觉。", "天下雨了。")
UNITS = {
    "猫坐在垫子上。": "猫|坐|在|垫|子|上。",
    "我爱Python编程，你呢？《书》好": "我|爱|Python|编|程，|你|呢？|《书》|好",
    "แมวนั่งบนเสื่อ": "แม|ว|นั่|ง|บ|น|เสื่|อ",
    "ແມວນັ່ງ": "ແມ|ວ|ນັ່|ງ",
    "ឆ្មាអង្គុយ": "ឆ្មា|អ|ង្គុ|យ",
    "猫がマットに": "猫|が|マ|ッ|ト|に",
    "第12章": "第|12|章",
}


@pytest.mark.parametrize(("text", "right"), UNITS.items())
def test_script_without_spaces_is_cut_between_letters_with_their_marks(text: str, right: str) -> None:
    bounds = [*starts(text), len(text)]
    assert [text[a:b] for a, b in itertools.pairwise(bounds)] == right.split("|")


def test_script_without_spaces_paragraphs_stay_apart_and_lines_join_without_a_space(tmp_path: Path) -> None:
    def paragraphs(text: str) -> list[str]:
        (tmp_path / "a.txt").write_text(text, encoding="utf-8")
        return [row["text"] for part in file_parts([tmp_path / "a.txt"]) for _, row in part_rows(part)]  # type: ignore

    assert paragraphs("\n\n".join(KHMER) + "\n") == list(KHMER)
    assert paragraphs("\n\n".join(CHINESE)) == list(CHINESE)
    assert paragraphs("猫坐在\n垫子上。\n\nThe cat\nsat.") == ["猫坐在垫子上。", "The cat sat."]
    # As before: a heading of one word goes with what follows.
    assert paragraphs("Chapter\n\nIt was\ta dark\r\n night\n\nThe end") == ["Chapter It was a dark night", "The end"]


def test_script_without_spaces_has_no_fewest_words(tmp_path: Path) -> None:
    for text in (*KHMER, *CHINESE):
        check_sample({"text": text}, "prefix_lm")
        splits = {split_text(text, 0, epoch, 0) for epoch in range(60)}
        assert len(splits) > 1 and all(a and b and a + b == text for a, b in splits)
        for _, after in splits:
            assert unicodedata.category(after[0])[0] not in "MP"
    for text in ("word", "猫", "猫。", "слово", "말"):
        with pytest.raises(BadSample, match="fewer than two words"):
            check_sample({"text": text}, "prefix_lm")


def test_script_with_spaces_is_split_as_before() -> None:
    """Byte for byte, whatever is between the spaces: a resumed run has the same samples."""

    def before(text: str, seed: int, epoch: int, number: int) -> tuple[str, str]:
        begins = [match.start() for match in re.finditer(r"\S+", text)]
        lowest, highest = max(1, math.ceil(0.1 * len(begins))), min(len(begins) - 1, math.floor(0.9 * len(begins)))
        at = begins[lowest + int(uniform(seed, epoch, number) * (highest - lowest + 1))]
        return text[:at].strip(), text[at:].strip()

    draw = random.Random(0)
    for number in range(300):
        words = draw.choices(["the", "cat", "naïve", "e\u0301", "1.5", "හෝ", "말이"], k=draw.randint(2, 30))
        words.insert(draw.randrange(len(words)), draw.choice(["\u732b", "transformer"]))  # one of the others
        text = draw.choice(" \n\t\u3000").join(words)
        assert split_text(text, 3, 1, number) == before(text, 3, 1, number)


def test_script_without_spaces_is_cut_between_letters_also_where_it_holds_a_space() -> None:
    """A space is one boundary among all, not the only one."""
    for text in (CHINESE[0] * 9 + " " + CHINESE[1], "ឆ្មាអង្គុយលើកន្ទេល " * 2 + KHMER[1], "我爱Python 和 编程，你呢？"):
        splits = {split_text(text, 0, epoch, 0) for epoch in range(99)}
        spaces = {match.start() for match in re.finditer(r"\s", text)}
        assert len({len(a) for a, _ in splits} - spaces) > 4, "most boundaries are between characters"
        assert all(a and b and (a + b).replace(" ", "") == text.replace(" ", "") for a, b in splits)
        pieces = windows(text, lambda words: [len(word) for word in words], 8)
        assert "".join(piece for _, piece in pieces) == text and max(len(piece) for _, piece in pieces) <= 8
    text = "我很爱Python 和 编程 。好"
    units = [text[a:b] for a, b in itertools.pairwise([*starts(text), len(text)])]
    assert units == ["我", "很", "爱", "Python ", "和 ", "编", "程 ", "。", "好"]
    made = plan(
        [Asked("", "昨天 猫坐在垫子上", 1), Asked("", "昨天 猫坐在河边", 1)], lambda beginning: [("", beginning)]
    )
    assert [context.source for context in made.contexts] == [None, "昨天 猫坐在"]
    made = plan(
        [Asked("", "猫在家, 正确? 是的", 1), Asked("", "猫在家, 正确? 所以", 1)], lambda beginning: [("", beginning)]
    )
    assert [context.source for context in made.contexts] == [None, "猫在家, 正确?"], "as before"


def test_script_without_spaces_is_windowed_and_shared_by_letters_in_the_harness() -> None:
    text = "".join(CHINESE)
    pieces = windows(text, lambda words: [len(word) for word in words], 4)
    assert "".join(piece for _, piece in pieces) == text and max(len(piece) for _, piece in pieces) <= 4
    assert pieces[0] == ("", "猫坐") and pieces[1][0] == "猫坐"  # the first tenth has no source
    made = plan_texts([text], lambda text: pieces)
    assert [each.parted for of in made.continuations for each in of] == [True, *[False] * (len(pieces) - 1)]
    made = plan_texts(["the cat sat"], lambda text: windows(text, lambda words: [1] * len(words), 1))
    assert [each.parted for of in made.continuations for each in of] == [True] * 3
    made = plan([Asked("", "猫坐在垫子上", 1), Asked("", "猫坐在河边", 1)], lambda beginning: [("", beginning)])
    assert [context.source for context in made.contexts] == [None, "猫坐在"]
    assert [each.text for each in made.continuations[1]] == ["垫子上", "河边"]
    assert not any(each.parted for each in made.continuations[1])
