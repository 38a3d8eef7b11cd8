"""What the LLM is shown of a training sample's text: a pure function, and the shares that were asked for."""

from __future__ import annotations

import pytest

from bridge_ds.config.schema import Config, DataConfig
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.texts import SampleTexts, shown, texts_of
from bridge_ds.data.loading.tokenize import load_tokenizers, tokenize_samples
from bridge_ds.data.text.cipher import cipher

TEXT = "A text of several words."
TEXTS = SampleTexts(TEXT, TEXT, "yes", TEXT)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("secret", [0.0, 0.5, 1.0])
def test_the_shares(share: float, secret: float) -> None:
    data = DataConfig(augment_share=share, augment_cipher=secret)
    found = [shown(TEXTS, data, 5, 0, number) for number in range(2000)]
    seen = [text for text in found if text]
    assert len(seen) / 2000 == pytest.approx(share, abs=0.04)
    if seen:
        assert sum(text != TEXT for text in seen) / len(seen) == pytest.approx(secret, abs=0.06)
    assert found == [shown(TEXTS, data, 5, 0, number) for number in range(2000)]
    assert all(text in ("", TEXT, cipher(TEXT, 5, 0, number)) for number, text in enumerate(found))
    if share == 0.3:
        assert found != [shown(TEXTS, data, 5, 1, number) for number in range(2000)]
        assert found != [shown(TEXTS, data, 6, 0, number) for number in range(2000)]


def test_what_is_not_shown_or_in_cipher_leaves_all_else_as_it_is() -> None:
    tokenizers = load_tokenizers(Config().model)
    samples = [{"source": f"text number {number}", "target": "yes"} for number in range(40)]
    given = {"epochs": [0] * 40, "numbers": list(range(40)), "seed": 3}
    half_data = DataConfig(augment_prompt=True, augment_share=0.5, augment_cipher=0.5)
    whole, half = (
        tokenize_samples(samples, tokenizers, data, **given)  # type: ignore[arg-type]
        for data in (DataConfig(augment_prompt=True), half_data)
    )
    kinds = set()
    for number, (one, other) in enumerate(zip(whole, half, strict=True)):
        assert isinstance(one, TokenizedSample) and isinstance(other, TokenizedSample)
        assert (one.source, one.target) == (other.source, other.target)
        text = shown(texts_of(samples[number], "task", 3, 0, number), half_data, 3, 0, number)
        assert other.prompt == (tokenizers.prompts([text])[0] if text else [])
        kinds.add("none" if not text else "plain" if other.prompt == one.prompt else "cipher")
    assert kinds == {"none", "plain", "cipher"}


def test_the_lesson_stays_english() -> None:
    """Self-teaching: what the LLM reads that teaches is not put into cipher."""
    tokenizers = load_tokenizers(Config().model)
    data = DataConfig(augment_prompt=True, augment_cipher=1.0, objective="self_teaching")
    (found,) = tokenize_samples([{"source": TEXT, "target": "yes"}], tokenizers, data)
    assert isinstance(found, TokenizedSample)
    assert found.lesson == tokenizers.prompts([TEXT])[0] != found.prompt
