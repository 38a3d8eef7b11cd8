"""A share of the training samples is shown to the LLM as text: a pure function, and the share that was asked for."""

from __future__ import annotations

import pytest

from bridge_ds.config.schema import Config, DataConfig
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.texts import is_shown
from bridge_ds.data.loading.tokenize import load_tokenizers, tokenize_samples


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share(share: float) -> None:
    shown = [is_shown(share, 5, 0, number) for number in range(2000)]
    assert sum(shown) / 2000 == pytest.approx(share, abs=0.04)
    assert shown == [is_shown(share, 5, 0, number) for number in range(2000)]
    if share == 0.3:
        assert shown != [is_shown(share, 5, 1, number) for number in range(2000)]
        assert shown != [is_shown(share, 6, 0, number) for number in range(2000)]


def test_what_is_not_shown_has_no_prompt_and_all_else() -> None:
    tokenizers = load_tokenizers(Config().model)
    samples = [{"source": f"text number {number}", "target": "yes"} for number in range(40)]
    given = {"epochs": [0] * 40, "numbers": list(range(40)), "seed": 3}
    whole, half = (
        tokenize_samples(samples, tokenizers, DataConfig(augment_prompt=True, augment_share=share), **given)  # type: ignore[arg-type]
        for share in (1.0, 0.5)
    )
    assert {bool(row.prompt) for row in half if isinstance(row, TokenizedSample)} == {True, False}
    for number, (one, other) in enumerate(zip(whole, half, strict=True)):
        assert isinstance(one, TokenizedSample) and isinstance(other, TokenizedSample)
        assert (one.source, one.target) == (other.source, other.target)
        assert other.prompt == (one.prompt if is_shown(0.5, 3, 0, number) else [])
