"""From text to token ids, in loader workers and in evaluation alike. The two tokenizers share no ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bridge_ds.config.names import resolve
from bridge_ds.config.schema import DataConfig, ModelConfig
from bridge_ds.data.languages import SHARD_LANGUAGE, SourceLanguages, find_languages
from bridge_ds.data.samples import BadSample
from bridge_ds.data.spiece import with_spiece
from bridge_ds.data.words import split_text
from bridge_ds.errors import ConfigError, DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "TokenizedSample",
    "Tokenizers",
    "check_vocabulary",
    "load_tokenizers",
    "split_text",
    "tokenize_sample",
    "tokenize_samples",
]


@dataclass(frozen=True)
class TokenizedSample:
    """One sample as token ids."""

    source: list[int]
    """Encoder ids with the encoder tokenizer's own special tokens."""
    prompt: list[int]
    """LLM ids shown beside the soft prompt; empty unless `data.augment_prompt`."""
    target: list[int]
    """LLM ids to predict, end token included."""
    cut: tuple[str, ...]
    """Which of `source`, `prompt`, `target` were longer than allowed."""


@dataclass(frozen=True)
class Tokenizers:
    """Both tokenizers and what was decided about their special tokens."""

    encoder: PreTrainedTokenizerBase
    """Of the multilingual encoder."""
    llm: PreTrainedTokenizerBase
    """Of the causal language model."""
    bos_id: int | None
    """LLM id that goes before everything, or none (see `_bos_id`)."""
    eos_id: int
    """LLM id that ends every target."""
    pad_id: int
    """LLM id on padding places; may equal `eos_id`, so masks are never made by comparing ids with it."""
    encoder_pad_id: int
    """Encoder id on padding places."""
    leading_space: bool
    """Whether a target is tokenised with a space before it (see `_wants_leading_space`)."""

    special: frozenset[int]
    """Special ids of the encoder tokenizer."""
    languages: SourceLanguages | None = None
    """What the encoder tokenizer puts around a text in each language, where it does so."""

    def sources(self, texts: Sequence[str], languages: Sequence[object] | None = None) -> list[list[int]]:
        """Encoder ids of source texts, the tokenizer's own special tokens included, uncut.

        Args:
            texts: of sources.
            languages: of each, for an encoder that is told it; an empty one is not known. None = the tokenizer's own.

        Raises:
            DataError: a language that the encoder does not have.
        """
        if self.languages is None or languages is None:
            return _ids(self.encoder, texts, special=True)
        frames = [self.languages.frames[self.languages.tag(language)] for language in languages]
        bare = _ids(self.encoder, texts, special=False)
        return [[*before, *ids, *after] for ids, (before, after) in zip(bare, frames, strict=True)]

    def kept_ends(self, ids: Sequence[int]) -> tuple[int, int]:
        """How many ids of a source a cut must leave at its beginning (a language tag) and at its end (an end token)."""
        if self.languages:
            before, after = self.languages.frames[self.languages.default]
            return len(before), len(after)
        return 0, int(ids[-1] in self.special)

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """LLM ids of prompts without special tokens, uncut; the space before the target belongs to the target."""
        return _ids(self.llm, [text.rstrip() for text in texts], special=False)

    def labels(self, texts: Sequence[str]) -> list[list[int]]:
        """LLM ids of targets as training predicts them, end token included, uncut."""
        space = " " if self.leading_space else ""
        return [[*ids, self.eos_id] for ids in _ids(self.llm, [space + text.strip() for text in texts], special=False)]

    def source_ids(self, text: str, language: object = None) -> list[int]:
        """:meth:`sources` of one text."""
        return self.sources([text], None if language is None else [language])[0]

    def prompt_ids(self, text: str) -> list[int]:
        """:meth:`prompts` of one text."""
        return self.prompts([text])[0]

    def label_ids(self, text: str) -> list[int]:
        """:meth:`labels` of one text."""
        return self.labels([text])[0]


def load_tokenizers(model: ModelConfig, hub: Mapping[str, Any] = MappingProxyType({})) -> Tokenizers:
    """Load both tokenizers of a run.

    Args:
        model: which.
        hub: where from (cache_dir, token, local_files_only).

    Raises:
        ConfigError: one cannot be loaded, or the LLM's has no end token.
    """
    encoder = _load("model.encoder", model.encoder, model.encoder_revision, model.trust_remote_code, hub)
    encoder = with_spiece(encoder, model.encoder, model.encoder_revision, hub)
    llm = _load("model.llm", model.llm, model.llm_revision, model.trust_remote_code, hub)
    eos_id = llm.eos_token_id
    if eos_id is None:
        raise ConfigError(
            f"the tokenizer of model.llm {model.llm!r} has no end token; targets must end with one: "
            "set eos_token in its tokenizer_config.json or choose another model."
        )
    return Tokenizers(
        encoder=encoder,
        llm=llm,
        bos_id=_bos_id(llm, model.llm, model.llm_revision, hub),
        eos_id=eos_id,
        pad_id=eos_id if llm.pad_token_id is None else llm.pad_token_id,
        encoder_pad_id=encoder.pad_token_id or 0,
        leading_space=_wants_leading_space(llm),
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
            "tokenizer and model do not belong together: take both from one place."
        )


def tokenize_sample(
    sample: dict[str, Any], tokenizers: Tokenizers, data: DataConfig, *, seed: int = 0, epoch: int = 0, number: int = 0
) -> TokenizedSample:
    """:func:`tokenize_samples` of one sample.

    Raises:
        BadSample: its source gives no token.
    """
    (found,) = tokenize_samples([sample], tokenizers, data, seed=seed, epochs=[epoch], numbers=[number])
    if isinstance(found, BadSample):
        raise found
    return found


def tokenize_samples(
    samples: Sequence[dict[str, Any]],
    tokenizers: Tokenizers,
    data: DataConfig,
    *,
    seed: int = 0,
    epochs: Sequence[int] | None = None,
    numbers: Sequence[int] | None = None,
) -> list[TokenizedSample | BadSample]:
    """Turn checked samples into ids, cut to the lengths of the config; one call of each tokenizer for all of them.

    A task's source and prompt keep their beginning when cut; those of prefix_lm keep their end, for the target goes on
    from there. End tokens are kept.

    Args:
        samples: with the fields that the objective requires.
        tokenizers: both tokenizers.
        data: objective, prompt augmentation and lengths (tokens).
        seed: seed of the run; with epoch and number it decides where prefix_lm splits a text.
        epochs: how often each sample has been seen before.
        numbers: each sample's number in the corpus.

    Returns:
        For each sample its ids, or (kind `empty`, a reason only) why it has none.
    """
    if not samples:
        return []
    epochs, numbers = epochs or [0] * len(samples), numbers or [0] * len(samples)
    from_text = data.objective == "prefix_lm"
    if from_text:
        texts = [split_text(s["text"], seed, e, n) for s, e, n in zip(samples, epochs, numbers, strict=True)]
        prompts = [source for source, _ in texts]
    else:
        texts = [(sample["source"], sample["target"]) for sample in samples]
        prompts = [sample.get("prompt") or sample["source"] for sample in samples]
    try:
        sources = tokenizers.sources([source for source, _ in texts], [_language(sample, data) for sample in samples])
    except DataError as error:
        if len(samples) == 1:
            return [BadSample("malformed", f"cannot be tokenised: {error}")]
        return [
            tokenize_samples([sample], tokenizers, data, seed=seed, epochs=[epoch], numbers=[number])[0]
            for sample, epoch, number in zip(samples, epochs, numbers, strict=True)
        ]
    targets = tokenizers.labels([target for _, target in texts])
    shown = tokenizers.prompts(prompts) if data.augment_prompt else [[] for _ in samples]
    return [
        _cut_all(source, prompt, target, tokenizers, data)
        for source, prompt, target in zip(sources, shown, targets, strict=True)
    ]


def _language(sample: dict[str, Any], data: DataConfig) -> object:
    return sample.get("language") or data.source_language or sample.get(SHARD_LANGUAGE)


def _cut_all(
    source: list[int], prompt: list[int], target: list[int], tokenizers: Tokenizers, data: DataConfig
) -> TokenizedSample | BadSample:
    if not source:
        return BadSample(
            "empty", "has a source without any token of the encoder; expected text that its tokenizer knows"
        )
    tail = data.objective == "prefix_lm"
    kept = {
        "source": _cut(source, data.max_source_tokens, *tokenizers.kept_ends(source), keep_tail=tail),
        "prompt": _cut(prompt, data.max_prompt_tokens, 0, 0, keep_tail=tail),
        "target": _cut(target, data.max_target_tokens, 0, 1, keep_tail=False),
    }
    full = {"source": source, "prompt": prompt, "target": target}
    return TokenizedSample(**kept, cut=tuple(name for name in full if len(kept[name]) < len(full[name])))


def _cut(ids: list[int], limit: int, head: int, end: int, *, keep_tail: bool) -> list[int]:
    # `head` and `end` are how many ids at either end must survive; other special tokens in front go with the text.
    if len(ids) <= limit:
        return ids
    return ids[:head] + ids[len(ids) - limit + head :] if keep_tail else ids[: limit - end] + ids[len(ids) - end :]


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    # verbose=False: lengths are cut and counted here, so "longer than the maximum length" would only be noise.
    return tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]  # type: ignore[return-value]


def _bos_id(tokenizer: PreTrainedTokenizerBase, name: str, revision: str | None, hub: Mapping[str, Any]) -> int | None:
    """The token that opened texts in pretraining, as far as the tokenizer tells.

    Most that want one put it there themselves, but not all: Llama 3.1 was published without (transformers#32172), and
    transformers 5 passes over `add_bos_token` beside a tokenizer.json. So the file itself is asked, and where it is
    silent a begin token counts unless it is the end token under another name (GPT-2).
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    bos_id = tokenizer.bos_token_id
    if bos_id is None or _ids(tokenizer, ["a"], special=True)[0][:1] == [bos_id]:
        return bos_id
    wanted = get_tokenizer_config(resolve(name), revision=revision, **hub).get("add_bos_token")
    return bos_id if (bos_id != tokenizer.eos_token_id if wanted is None else wanted) else None


def _wants_leading_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word that follows other words must be given with a space before it to become its usual tokens.

    A target continues a text. Byte-level BPE (GPT-2, Qwen, Llama 3) and Gemma keep the space in the word's token, so
    "b" alone is not the token that the model has learnt to expect after "a". SentencePiece with its dummy prefix
    (Llama 2, T5) adds the space itself, and one more would be an extra token. No attribute says which holds; so compare
    the tail of "a b" with both ways of writing "b".
    """
    inside, alone, spaced = _ids(tokenizer, ["a b", "b", " b"], special=False)
    return bool(spaced) and spaced != alone and inside[-len(spaced) :] == spaced


def _load(
    key: str, name: str, revision: str | None, trust_remote_code: bool, hub: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    options = {"revision": revision, "trust_remote_code": trust_remote_code, **hub}
    try:
        return AutoTokenizer.from_pretrained(resolve(name), **options)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"the tokenizer of {key} {name!r} could not be loaded ({reason}); expected a hub id or a local folder with "
            "tokenizer files: check the name, the revision and, without network, that the model is in the cache."
        ) from None
