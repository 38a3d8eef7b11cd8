"""From text to token ids, in loader workers and in evaluation alike. The two tokenizers share no ids."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bridge_ds.config.schema import DataConfig, ModelConfig
from bridge_ds.data.loading.adapting import Adapting, adapted_ids
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.texts import is_replayed, shown, texts_of
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.data.text.chat import NO_FRAME, Frame, frame_of
from bridge_ds.data.text.convention import KEEP, begins_with_space, opening
from bridge_ds.data.text.languages import SHARD_LANGUAGE, SourceLanguages, find_languages, source_ids
from bridge_ds.data.text.mixing import WordMixer
from bridge_ds.data.text.plain import ids_after, text_ids
from bridge_ds.data.text.prompting import answers, frame_ids
from bridge_ds.data.text.spiece import with_spiece
from bridge_ds.data.text.truncate import Limits, fit, truncated
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.frozen.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Tokenizers",
    "check_vocabulary",
    "language_of",
    "load_tokenizers",
    "tokenize_samples",
]


@dataclass(frozen=True)
class Tokenizers:
    """Both tokenizers and how the run writes text for the LLM: the settings `data.bos`, `data.separator`,
    `data.target_space` and `data.target_end`, applied here and nowhere else."""

    encoder: PreTrainedTokenizerBase
    """Of the multilingual encoder."""
    llm: PreTrainedTokenizerBase
    """Of the causal language model."""
    bos_id: int | None
    """LLM id before everything else, or none (see :func:`bridge_ds.data.text.convention.opening`)."""
    eos_id: int
    """LLM id of the end token; it closes every target where `end` is set."""
    pad_id: int
    """LLM id on padding positions; may equal `eos_id`, so masks are never made by comparing ids with it."""
    encoder_pad_id: int
    """Encoder id on padding positions."""
    leading_space: bool
    """Whether a target begins with a space (:func:`bridge_ds.data.text.convention.begins_with_space`)."""

    special: frozenset[int]
    """Special ids of the encoder tokenizer."""
    end: bool = True
    """Whether the end token closes a target."""
    separator: str = ""
    """Replaces the white space at the end of a prompt; `keep` = leave it as it is."""
    languages: SourceLanguages | None = None
    """Ids that the encoder tokenizer puts around a text in each language; None if it has no language tags."""
    has_encoder: bool = True
    """False = the LLM alone reads the texts (`model.encoder: none`); its tokenizer stands in for the encoder's."""
    frame: Frame = NO_FRAME
    """The run's own chat template around a source (`data.chat_template`); empty = none."""
    adapting: Adapting | None = None
    """How samples train the encoder alone (`model.llm: none`); its tokenizer then stands in for the LLM's. None = a
    bridge or an LLM is trained."""

    @functools.cached_property
    def frame_ids(self) -> tuple[list[int], list[int]]:
        """LLM ids of `frame` before the soft prompt, BOS first, and after it."""
        return frame_ids(self, self.frame)

    def sources(self, texts: Sequence[str], languages: Sequence[object] | None = None) -> list[list[int]]:
        """:func:`~bridge_ds.data.text.languages.source_ids` with the encoder's tokenizer."""
        return source_ids(self.encoder, self.languages, texts, languages)

    def kept_ends(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many ids truncation must keep at a source's beginning (a language tag) and at its end (an end token)."""
        if self.languages:
            before, after = self.languages.frames[self.languages.default]
            return len(before), len(after)
        return 0, int(bool(ids) and ids[-1] in self.special)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """LLM ids of prompts and of the separator before the target, without special tokens, not truncated."""
        if self.separator != KEEP:
            texts = [text.rstrip() + self.separator if text.strip() else "" for text in texts]
        return text_ids(self.llm, texts, special=False)

    def targets(self, texts: Sequence[str], parted: Sequence[bool] | None = None) -> list[list[int]]:
        """LLM ids of targets as training predicts them, without the end token, not truncated.

        Args:
            texts: the targets.
            parted: of each, whether it may begin with a space; the rest of a text that was split between two characters
                may not. None = all may.
        """
        space, texts = " " if self.leading_space else "", [text.strip() for text in texts]
        found = text_ids(self.llm, [space + text for text in texts], special=False)
        if parted is None or all(parted):
            return found
        return [
            ids if may else own for ids, own, may in zip(found, ids_after(self.llm, "\n", texts), parted, strict=True)
        ]

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """:meth:`targets`, each closed as training closes it."""
        return [[*ids, *self.closing] for ids in self.targets(texts)]

    @property
    def closing(self) -> list[int]:
        """LLM ids that close a target: the end token, or none."""
        return [self.eos_id] if self.end else []

    def opened(self, ids: list[int]) -> list[int]:
        """The LLM's input before an answer where there is no soft prompt; never empty, since a token can only be
        predicted from another."""
        return ids if ids or self.bos_id is not None else [self.eos_id]

    def answer(self, text: str) -> str:
        """A generated text without the space that training puts before a target."""
        return text.removeprefix(" ") if self.leading_space else text

    def source_ids(self, text: str, language: object = None) -> list[int]:
        """:meth:`sources` of one text."""
        return self.sources([text], None if language is None else [language])[0]

    def prompt_ids(self, text: str) -> list[int]:
        """:meth:`prompts` of one text."""
        return self.prompts([text])[0]


def load_tokenizers(
    model: ModelConfig, hub: Mapping[str, Any] = MappingProxyType({}), data: DataConfig | None = None
) -> Tokenizers:
    """Load both tokenizers of a run.

    Args:
        model: the base models.
        hub: options of the Hub (cache_dir, token, local_files_only).
        data: how the run writes text for the LLM; None = the defaults.

    Raises:
        ConfigError: one cannot be loaded, or the LLM's has no end token, or no BOS where the run wants one.
    """
    encoder: Any = None
    if model.has_encoder:
        encoder = load_tokenizer("model.encoder", model.encoder, model.encoder_revision, model.trust_remote_code, hub)
        encoder = with_spiece(encoder, model.encoder, model.encoder_revision, hub)
    data = data or DataConfig()
    if not model.has_llm:
        return _of_encoder(encoder)
    llm = load_tokenizer("model.llm", model.llm, model.llm_revision, model.trust_remote_code, hub)
    eos_id = llm.eos_token_id
    if eos_id is None:
        raise ConfigError(
            f"the tokenizer of model.llm {model.llm!r} has no end token; targets must end with one: "
            "set eos_token in its tokenizer_config.json or choose another model."
        )
    encoder = encoder or llm
    return Tokenizers(
        encoder=encoder,
        llm=llm,
        bos_id=opening(llm, data.bos, model, hub),
        eos_id=eos_id,
        pad_id=eos_id if llm.pad_token_id is None else llm.pad_token_id,
        encoder_pad_id=encoder.pad_token_id or 0,
        leading_space=begins_with_space(llm, data.target_space),
        special=frozenset(encoder.all_special_ids),
        end=data.target_end,
        separator=data.separator,
        languages=find_languages(encoder) if model.has_encoder else None,
        has_encoder=model.has_encoder,
        frame=frame_of(llm, data.chat_template, data.system_prompt),
    )


def _of_encoder(encoder: PreTrainedTokenizerBase) -> Tokenizers:
    """Of a run without an LLM, for which nothing is written."""
    pad_id = encoder.pad_token_id or 0
    return Tokenizers(
        encoder=encoder,
        llm=encoder,
        bos_id=None,
        eos_id=pad_id,
        pad_id=pad_id,
        encoder_pad_id=pad_id,
        leading_space=False,
        special=frozenset(encoder.all_special_ids),
        languages=find_languages(encoder),
    )


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, rows: int, what: str) -> None:
    """Refuse a tokenizer that can give an id for which the model has no embedding.

    Args:
        tokenizer: the tokenizer.
        rows: rows of the model's input embedding.
        what: which model, for the message (`model.llm`).

    Raises:
        ConfigError: the largest id is `rows` or more.
    """
    token, largest = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if largest >= rows:
        raise ConfigError(
            f"the tokenizer of {what} gives ids up to {largest} ({token!r}) but the model has {rows} embedding rows; "
            "tokenizer and model do not belong together: take both from the same model."
        )


def tokenize_samples(
    samples: Sequence[dict[str, Any]],
    tokenizers: Tokenizers,
    data: DataConfig,
    *,
    seed: int = 0,
    epochs: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
    mixer: WordMixer | None = None,
) -> list[TokenizedSample | BadSample]:
    """Checked samples as ids, truncated to the lengths of the config; one call of each tokenizer for all of them.

    Sources and prompts are truncated by :func:`bridge_ds.data.text.truncate.fit`; end tokens are kept.

    Args:
        samples: with the fields that the objective requires.
        tokenizers: both tokenizers.
        data: objective, prompt augmentation and lengths (tokens).
        seed: of the run; with epoch and number it decides where prefix_lm splits a text, and what `mixer` replaces.
        epochs: how often each sample has been seen before.
        numbers: each sample's number in the corpus.
        mixer: replaces words of what the encoder reads, and of the prompt where that is the same text; None = none.

    Returns:
        For each sample its ids, or (kind `empty`, a reason only) why it has none.
    """
    if not samples:
        return []
    epochs, numbers = epochs or [0] * len(samples), numbers or [0] * len(samples)
    languages = [language_of(sample, data) for sample in samples]
    if tokenizers.adapting:
        return list(adapted_ids(samples, tokenizers, data, languages, seed, epochs, numbers))
    assert bool(tokenizers.frame) == data.chat_template, "load_tokenizers must be given the run's data"
    texts = [
        texts_of(sample, data.objective, seed, epoch, number, mixer)
        for sample, epoch, number in zip(samples, epochs, numbers, strict=True)
    ]
    try:
        sources = tokenizers.sources([of.source for of in texts], languages) if tokenizers.has_encoder else []
    except DataError as error:
        if len(samples) == 1:
            return [BadSample("malformed", f"cannot be tokenized: {error}")]
        return [
            tokenize_samples([sample], tokenizers, data, seed=seed, epochs=[epoch], numbers=[number], mixer=mixer)[0]
            for sample, epoch, number in zip(samples, epochs, numbers, strict=True)
        ]
    tail, parted = tokenizers.frame.before_answer, [of.parted for of in texts]
    targets = answers(tokenizers, [of.target or "" for of in texts], tail, parted=parted)
    # Of an answer that is not known, its first token can be taught: what is predicted there is known before it.
    targets = [ids if of.target else [tokenizers.eos_id] for ids, of in zip(targets, texts, strict=True)]
    nothing: list[list[int]] = [[] for _ in samples]
    share = data.taught_share(tokenizers.has_encoder)
    taught = [share == 1 or is_replayed(share, seed, *of) for of in zip(epochs, numbers, strict=True)]
    prompts = nothing
    if data.augment_prompt or not tokenizers.has_encoder:
        read = [of.prompt for of in texts]
        if tokenizers.has_encoder:
            read = [shown(text, data, seed, *of) for text, *of in zip(texts, epochs, numbers, strict=True)]
        prompts = [ids if text else [] for ids, text in zip(tokenizers.prompts(read), read, strict=True)]
    lessons = tokenizers.prompts([of.lesson for of in texts]) if any(taught) else nothing
    found = [
        _truncated(source, prompt, target, tokenizers, data)
        for source, prompt, target in zip(sources or nothing, prompts, targets, strict=True)
    ]
    rows = zip(found, lessons, taught, strict=True)
    return [_with_lesson(of, ids, tokenizers, data) if is_taught else of for of, ids, is_taught in rows]


def language_of(sample: dict[str, Any], data: DataConfig) -> object:
    """Code of a sample's source, for an encoder with language tags; None = the encoder's default."""
    return sample.get("language") or data.source_language or sample.get(SHARD_LANGUAGE)


def _truncated(
    source: list[int], prompt: list[int], target: list[int], tokenizers: Tokenizers, data: DataConfig
) -> TokenizedSample | BadSample:
    reader, read = ("encoder", source) if tokenizers.has_encoder else ("LLM", prompt)
    if not read:
        return BadSample(
            "empty", f"has a source without any token of the {reader}; expected text that its tokenizer knows"
        )
    source, prompt, shortened = fit(source, prompt, Limits.of(data), tokenizers.kept_ends(source))
    kept = truncated(target, data.max_target_tokens, "right", closing=len(tokenizers.closing))
    shortened += ("target",) if len(kept) < len(target) else ()
    head, tail = tokenizers.frame_ids if tokenizers.frame else ([], [])
    return TokenizedSample(source, [*prompt, *tail], kept, shortened, tuple(head))


def _with_lesson(
    found: TokenizedSample | BadSample, lesson: list[int], tokenizers: Tokenizers, data: DataConfig
) -> TokenizedSample | BadSample:
    """The sample with what the LLM reads that teaches: as the LLM alone reads a text, the same chat template around."""
    if isinstance(found, BadSample):
        return found
    if not lesson:
        return BadSample("empty", "has a text without any token of the LLM; expected text that its tokenizer knows")
    limits = Limits.of(data)
    kept = truncated(lesson, limits.prompt, limits.side)
    lost = ("prompt",) if len(kept) < len(lesson) and "prompt" not in found.truncated else ()
    tail = tokenizers.frame_ids[1] if tokenizers.frame else []
    return replace(found, lesson=[*kept, *tail], truncated=(*found.truncated, *lost))
