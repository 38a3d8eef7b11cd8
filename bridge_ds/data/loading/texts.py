"""Which texts of a sample are read, by whom. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.sampling.order import uniforms
from bridge_ds.data.text.cipher import cipher
from bridge_ds.data.text.mixing import WordMixer
from bridge_ds.data.text.words import is_parted, split_text
from bridge_ds.objectives import OBJECTIVES

__all__ = ["SampleTexts", "is_replayed", "shown", "texts_of"]

_SHOWN = 1_000_003
"""Tells the draws of :func:`shown` from others of the same seed, epoch and sample."""
_REPLAYED = 3_000_017
"""Likewise those of :func:`is_replayed`."""


class SampleTexts(NamedTuple):
    """Of one sample, before tokenization."""

    source: str
    """What the encoder reads."""
    prompt: str
    """What the LLM reads as text, where it reads any (`data.augment_prompt`, `model.encoder: none`)."""
    target: str | None
    """The answer; None = the sample has none (objective self_teaching)."""
    lesson: str
    """What the LLM reads that teaches (objective self_teaching, `data.replay`): English."""
    parted: bool = True
    """Whether the target may begin with a space; the rest of a text that was split between two characters may not."""


def texts_of(
    sample: Mapping[str, Any], objective: str, seed: int, epoch: int, number: int, mixer: WordMixer | None = None
) -> SampleTexts:
    """The texts of a checked sample.

    Word mixing changes what the encoder reads, and the prompt where that is the same text: in use both read the same
    text, and from an English prompt the LLM could take what the encoder is to give. The lesson stays English.

    Args:
        sample: with the fields that the objective requires.
        objective: `data.objective`.
        seed: of the run; with the next two it decides where prefix_lm splits a text, and what `mixer` replaces.
        epoch: how often the sample has been read before.
        number: of the sample in the corpus.
        mixer: of `data.mix_words`; None = nothing is replaced.
    """
    if objective == "prefix_lm":
        source, target = split_text(sample["text"], seed, epoch, number)
        texts = SampleTexts(source, source, target, source, is_parted(sample["text"], source))
    else:
        source = sample[OBJECTIVES[objective].read(sample)]
        prompt = sample.get("prompt") or source
        # Without the objective's leave, `text` is some column that nothing has checked.
        lesson = sample.get("text") if "text" in OBJECTIVES[objective].optional else None
        texts = SampleTexts(source, prompt, sample.get("target"), lesson or prompt)
    if mixer is None:
        return texts
    mixed = mixer.mix(texts.source, seed, epoch, number)
    return texts._replace(source=mixed, prompt=mixed if texts.prompt == texts.source else texts.prompt)


def shown(texts: SampleTexts, data: DataConfig, seed: int, epoch: int, number: int) -> str:
    """What the LLM is shown of a text beside the soft prompt; other arguments as of :func:`texts_of`.

    Args:
        texts: of the sample.
        data: `replay`, the probability that it is shown the lesson; else `augment_share`, that the prompt is shown at
            all, and `augment_cipher`, that it is in cipher then.

    Returns:
        the text, the text in cipher, or nothing.
    """
    if is_replayed(data.replay, seed, epoch, number):
        return texts.lesson
    prompt = texts.prompt
    whether, how = uniforms(seed + _SHOWN, epoch, number, 2).tolist()
    if whether >= data.augment_share:
        return ""
    return cipher(prompt, seed, epoch, number) if how < data.augment_cipher else prompt


def is_replayed(share: float, seed: int, epoch: int, number: int) -> bool:
    """Whether the LLM alone is the target of a sample (`data.replay`), with probability `share`; other arguments as of
    :func:`texts_of`."""
    return share > 0 and float(uniforms(seed + _REPLAYED, epoch, number, 1)[0]) < share
