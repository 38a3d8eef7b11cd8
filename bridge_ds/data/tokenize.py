"""From text to token ids, in loader workers and in evaluation alike. The two tokenizers share no ids."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ds.config.names import resolve
from bridge_ds.config.schema import DataConfig, ModelConfig
from bridge_ds.data.order import uniform
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
]

_log = logging.getLogger(__name__)

# Scripts that mT5's vocabulary covers thinly, and signs that it lacks: where byte fallback shows.
_PROBES = ("the cat", "the 猫 cat", "පූසා", "பூனை", "ድመት", "🐈 ok", "naïve ﬁ", "ꦏꦸꦕꦶꦁ")


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

    def source_ids(self, text: str) -> list[int]:
        """Encoder ids of a source text, the tokenizer's own special tokens included, uncut."""
        return _ids(self.encoder, text, special=True)

    def prompt_ids(self, text: str) -> list[int]:
        """LLM ids of a prompt text without special tokens, uncut; the space before the target belongs to the target."""
        return _ids(self.llm, text.rstrip(), special=False)

    def label_ids(self, text: str) -> list[int]:
        """LLM ids of a target text as training predicts them, end token included, uncut."""
        spaced = (" " if self.leading_space else "") + text.strip()
        return [*_ids(self.llm, spaced, special=False), self.eos_id]


def load_tokenizers(model: ModelConfig) -> Tokenizers:
    """Load both tokenizers of a run.

    Raises:
        ConfigError: one cannot be loaded, or the LLM's has no end token.
    """
    encoder = _load("model.encoder", model.encoder, model.encoder_revision, model.trust_remote_code)
    llm = _load("model.llm", model.llm, model.llm_revision, model.trust_remote_code)
    _warn_if_not_sentencepiece(encoder, model.encoder, model.encoder_revision)
    eos_id = llm.eos_token_id
    if eos_id is None:
        raise ConfigError(
            f"the tokenizer of model.llm {model.llm!r} has no end token; targets must end with one: "
            "set eos_token in its tokenizer_config.json or choose another model."
        )
    return Tokenizers(
        encoder=encoder,
        llm=llm,
        bos_id=_bos_id(llm, model.llm, model.llm_revision),
        eos_id=eos_id,
        pad_id=eos_id if llm.pad_token_id is None else llm.pad_token_id,
        encoder_pad_id=encoder.pad_token_id or 0,
        leading_space=_wants_leading_space(llm),
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
    sample: dict[str, Any],
    tokenizers: Tokenizers,
    data: DataConfig,
    *,
    seed: int = 0,
    epoch: int = 0,
    number: int = 0,
) -> TokenizedSample:
    """Turn a checked sample into ids, cut to the lengths of the config.

    A task's source and prompt keep their beginning when cut; those of prefix_lm keep their end, for the target goes on
    from there. End tokens are kept.

    Args:
        sample: with the fields that the objective requires.
        tokenizers: both tokenizers.
        data: objective, prompt augmentation and lengths (tokens).
        seed: seed of the run; with epoch and number it decides where prefix_lm splits a text.
        epoch: how often the sample has been seen before.
        number: the sample's number in the index.

    Raises:
        DataError: a source gives no token, or a text cannot be split.
    """
    from_text = data.objective == "prefix_lm"
    if from_text:
        source_text, target_text = split_text(sample["text"], seed, epoch, number)
        prompt_text = source_text
    else:
        source_text, target_text = sample["source"], sample["target"]
        prompt_text = sample.get("prompt") or source_text
    full = {
        "source": tokenizers.source_ids(source_text),
        "prompt": tokenizers.prompt_ids(prompt_text) if data.augment_prompt else [],
        "target": tokenizers.label_ids(target_text),
    }
    if not full["source"]:
        raise DataError(
            "has a source without any token of the encoder; expected text that its tokenizer knows: remove it."
        )
    source_end = int(full["source"][-1] in tokenizers.encoder.all_special_ids)
    kept = {
        "source": _cut(full["source"], data.max_source_tokens, source_end, keep_tail=from_text),
        "prompt": _cut(full["prompt"], data.max_prompt_tokens, 0, keep_tail=from_text),
        "target": _cut(full["target"], data.max_target_tokens, 1, keep_tail=False),
    }
    cut = tuple(name for name in full if len(kept[name]) < len(full[name]))
    return TokenizedSample(**kept, cut=cut)


def split_text(text: str, seed: int, epoch: int, number: int) -> tuple[str, str]:
    """Split a text between two words, after 10 % to 90 % of them: a pure function of its arguments.

    Returns:
        The words before the split and the words after it, inner white space kept.

    Raises:
        DataError: the text has fewer than two words.
    """
    starts = [match.start() for match in re.finditer(r"\S+", text)]
    if len(starts) < 2:
        raise DataError(f"has {len(starts)} words in `text`; a prefix and a rest need at least two: join or remove it.")
    lowest = max(1, math.ceil(0.1 * len(starts)))
    highest = min(len(starts) - 1, math.floor(0.9 * len(starts)))
    at = starts[lowest + int(uniform(seed, epoch, number) * (highest - lowest + 1))]
    return text[:at].strip(), text[at:].strip()


def _cut(ids: list[int], limit: int, end: int, *, keep_tail: bool) -> list[int]:
    # `end` is how many closing ids (0 or 1) must survive; a special token in front is given up with the head.
    if len(ids) <= limit:
        return ids
    return ids[-limit:] if keep_tail else ids[: limit - end] + ids[len(ids) - end :]


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> list[int]:
    # verbose=False: lengths are cut and counted here, so "longer than the maximum length" would only be noise.
    return list(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def _bos_id(tokenizer: PreTrainedTokenizerBase, name: str, revision: str | None) -> int | None:
    """The token that opened texts in pretraining, as far as the tokenizer tells.

    Most that want one put it there themselves, but not all: Llama 3.1 was published without (transformers#32172), and
    transformers 5 passes over `add_bos_token` beside a tokenizer.json. So the file itself is asked, and where it is
    silent a begin token counts unless it is the end token under another name (GPT-2).
    """
    from transformers.models.auto.tokenization_auto import get_tokenizer_config

    bos_id = tokenizer.bos_token_id
    if bos_id is None or _ids(tokenizer, "a", special=True)[:1] == [bos_id]:
        return bos_id
    wanted = get_tokenizer_config(resolve(name), revision=revision).get("add_bos_token")
    return bos_id if (bos_id != tokenizer.eos_token_id if wanted is None else wanted) else None


def _wants_leading_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a word that follows other words must be given with a space before it to become its usual tokens.

    A target continues a text. Byte-level BPE (GPT-2, Qwen, Llama 3) and Gemma keep the space in the word's token, so
    "b" alone is not the token that the model has learnt to expect after "a". SentencePiece with its dummy prefix
    (Llama 2, T5) adds the space itself, and one more would be an extra token. No attribute says which holds; so compare
    the tail of "a b" with both ways of writing "b".
    """
    inside = _ids(tokenizer, "a b", special=False)
    alone = _ids(tokenizer, "b", special=False)
    spaced = _ids(tokenizer, " b", special=False)
    return bool(spaced) and spaced != alone and inside[-len(spaced) :] == spaced


def _load(key: str, name: str, revision: str | None, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(resolve(name), revision=revision, trust_remote_code=trust_remote_code)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise ConfigError(
            f"the tokenizer of {key} {name!r} could not be loaded ({reason}); expected a hub id or a local folder with "
            "tokenizer files: check the name, the revision and, without network, that the model is in the cache."
        ) from None


def _warn_if_not_sentencepiece(tokenizer: PreTrainedTokenizerBase, name: str, revision: str | None) -> None:
    # transformers 5 builds mT5's tokenizer without byte fallback: characters outside its vocabulary become <unk>.
    path = _spiece_model(name, revision)
    if path is None:
        return
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(path))
    wrong = [text for text in _PROBES if _ids(tokenizer, text, special=False) != model.encode(text)]
    if wrong:
        _log.warning(
            "the tokenizer of model.encoder %r gives other ids than its spiece.model on %d of %d probes (first: %r); "
            "characters outside its vocabulary are lost to <unk>: scripts that rely on byte fallback will score low.",
            name, len(wrong), len(_PROBES), wrong[0],
        )  # fmt: skip


def _spiece_model(name: str, revision: str | None) -> Path | None:
    from transformers.utils import cached_file

    folder = Path(resolve(name))
    if folder.is_dir():
        return folder / "spiece.model" if (folder / "spiece.model").is_file() else None
    # Loading has just fetched it if the hub has one, so the cache is asked and the network left alone.
    found = cached_file(
        name, "spiece.model", revision=revision, local_files_only=True,
        _raise_exceptions_for_gated_repo=False, _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip
    return Path(found) if found else None
