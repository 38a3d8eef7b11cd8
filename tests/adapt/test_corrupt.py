"""What is hidden of a text."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from statistics import fmean

from bridge_ds.data.text.corrupt import Corruption, hide

HOW = Corruption(0.15, frozenset({0, 1, 2, 99}), tuple(range(3, 99)), mask_id=99)
SPANS = replace(HOW, sentinels=(99, 98, 97), special=frozenset({0, 1, 2, 97, 98, 99}))


def test_masked_tokens_are_a_pure_function_and_never_special_ones() -> None:
    ids = [2, *range(3, 63), 1]
    found = [hide(ids, HOW, 7, 0, number) for number in range(400)]
    assert hide(ids, HOW, 7, 0, 3) == found[3] != hide(ids, HOW, 7, 1, 3) and found[3] != hide(ids, HOW, 8, 0, 3)
    kinds: Counter[str] = Counter()
    for hidden in found:
        assert hidden and len(hidden.ids) == len(ids) and len(hidden.places) == 9 == len(set(hidden.places))
        assert [ids[place] for place in hidden.places] == hidden.labels and not {1, 2} & set(hidden.labels)
        for place, (now, was) in enumerate(zip(hidden.ids, ids, strict=True)):
            if place not in hidden.places:
                assert now == was
            else:
                kinds["mask" if now == 99 else "same" if now == was else "other"] += 1
                assert now == 99 or now in HOW.vocabulary
    shares = {kind: count / 3600 for kind, count in kinds.items()}
    assert abs(shares["mask"] - 0.8) < 0.03 and abs(shares["other"] - 0.1) < 0.03 and abs(shares["same"] - 0.1) < 0.03
    assert hide([2, 0, 1], HOW, 0, 0, 0) is None
    short = hide([2, 5, 1], HOW, 0, 0, 0)
    assert short and short.places == (1,)


def test_spans_and_what_is_left_are_the_text() -> None:
    ids = [*range(3, 43), 1]
    lengths = []
    for number in range(200):
        hidden = hide(ids, SPANS, 0, 0, number)
        assert hidden and hidden.places == () and hidden.ids[-1] == hidden.labels[-1] == 1
        assert [each for each in hidden.ids if each > 90] == [99, 98] == [each for each in hidden.labels if each > 90]
        spans: dict[int, list[int]] = {}
        for each in hidden.labels[:-1]:
            spans.setdefault(each, []) if each > 90 else spans[list(spans)[-1]].append(each)
        whole = [part for each in hidden.ids for part in spans.get(each, [each])]
        assert whole == ids
        lengths += map(len, spans.values())
    assert fmean(lengths) == 3.0 and len(set(lengths)) > 3
    assert hide([5, 1], SPANS, 0, 0, 0) is None
    assert hide(list(range(3, 90)), replace(SPANS, share=0.5), 0, 0, 0).ids.count(97) == 1  # type: ignore[union-attr]
