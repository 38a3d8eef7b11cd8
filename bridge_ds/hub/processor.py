"""`BridgeProcessor`: texts and chats to a bridge's input, and what it wrote to text again; over both tokenizers."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import BatchFeature, ProcessorMixin

from bridge_ds.config.names import resolve
from bridge_ds.data.loading.collate import pad
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.prompting import Context, ContextIds
from bridge_ds.data.text.truncate import SoftPrompt
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.frozen.configs import base_config
from bridge_ds.frozen.identity import tokenizer_identity
from bridge_ds.hub.config import CONFIG, BridgeConfig, save_config, to_run
from bridge_ds.hub.folder import read_config
from bridge_ds.hub.source import check_bases, hub_options, open_source
from bridge_ds.inference.generator import ANSWER_TOKENS, AnswerLength
from bridge_ds.inference.prompt import PromptBuilder, truncation_lines
from bridge_ds.inference.stops import Decoder
from bridge_ds.llm.splice import IGNORE
from bridge_ds.llm.support import positions_of

__all__ = ["BridgeProcessor"]

_log = logging.getLogger(__name__)


class BridgeProcessor(ProcessorMixin):
    """Two tokenizers that share no ids: the encoder's for what it reads, the LLM's for what is around it and written.

    `processor(texts)` gives `input_ids` and `attention_mask` (encoder), `prefix_ids` and `prefix_mask` (LLM, before the
    soft prompt), `suffix_ids` and `suffix_mask` (LLM, after it), each [B, its longest], int64, right-padded.
    """

    def __init__(
        self, config: BridgeConfig, tokenizers: Tokenizers, positions: int = 0, max_new_tokens: int = ANSWER_TOKENS
    ) -> None:
        """Args:
        config: of the bridge.
        tokenizers: both.
        positions: of the LLM; 0 = unknown.
        max_new_tokens: positions that are kept free for an answer.
        """
        self.config, self.tokenizers, self.max_new_tokens = config, tokenizers, max_new_tokens
        run = to_run(config)
        self.prompts = PromptBuilder.of(run.data, tokenizers, positions, SoftPrompt.of(run))
        """Makes and truncates the prompts."""
        self.tokenizer: Any = tokenizers.llm
        """The LLM's."""
        self.encoder_tokenizer: Any = tokenizers.encoder
        """The encoder's."""
        self.chat_template = getattr(tokenizers.llm, "chat_template", None)

    @classmethod
    def get_attributes(cls) -> list[str]:
        """None that transformers could load or save by itself."""
        return []

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        encoder: str | None = None,
        llm: str | None = None,
        encoder_revision: str | None = None,
        llm_revision: str | None = None,
        allow_base_mismatch: bool = False,
        trust_remote_code: bool | None = None,
        **options: Any,
    ) -> BridgeProcessor:
        """Load both tokenizers of a bridge; arguments as of `BridgeForCausalLM.from_pretrained`.

        Raises:
            ConfigError: nothing there, or a tokenizer cannot be loaded or has no chat template where the bridge was
                trained with one.
            CheckpointError: a tokenizer is not the one of the training.
        """
        hub = hub_options(cls.from_pretrained, options)
        bases = {"encoder": encoder, "llm": llm, "encoder_revision": encoder_revision, "llm_revision": llm_revision}
        source = open_source(os.fspath(pretrained_model_name_or_path), revision, hub, bases=bases)
        run = to_run(source.config, bool(trust_remote_code))
        model, recorded = run.model, source.config.base
        tokenizers = load_tokenizers(model, hub, run.data)
        if not allow_base_mismatch:
            found = {}
            for part in ("encoder", "llm"):
                key, name = f"{part}_tokenizer", resolve(getattr(model, part))
                of, its_revision = getattr(tokenizers, part), getattr(model, f"{part}_revision")
                found[key] = tokenizer_identity(of, name, its_revision, hub, recorded.get(key, ""))
            check_bases(source, found)
        llm_config = base_config("model.llm", model.llm, model.llm_revision, model.trust_remote_code, hub)
        most = AnswerLength.of(source.generation).after(0)
        return cls(source.config, tokenizers, positions_of(llm_config), most)

    def __call__(  # type: ignore[override]
        self,
        text: str | Sequence[str],
        prompt: str | Sequence[str] | None = None,
        text_target: str | Sequence[str] | None = None,
        max_new_tokens: int | None = None,
        return_tensors: str | None = "pt",
        language: str | Sequence[str] | None = None,
    ) -> BatchFeature:
        """Token ids of texts.

        Args:
            text: one text or several; the encoder reads it. Truncated as in training (`config.truncation_side`); in the
                LLM's chat template if the bridge was trained with it.
            prompt: what the LLM reads beside the soft prompt, if the bridge was trained with `augment_prompt`; None =
                the text itself.
            text_target: right answers; adds `labels` [B, T], IGNORE (-100) on padding, for a loss.
            max_new_tokens: positions to keep free for the answer (default: the longest target of the training).
            return_tensors: `pt`; None = lists of unequal length.
            language: of the texts, of all or of each, for encoders that are told it (NLLB, M2M-100, mBART): its tag or
                an ISO 639 code.

        Raises:
            DataError: not a text, another number of prompts, targets or languages than of texts, or a language that the
                encoder does not have.
        """
        texts = _listed("text", text)
        prompts = [None] * len(texts) if prompt is None else _listed("prompt", prompt, len(texts))
        contexts = [
            Context(each, prompt=shown, language=own)
            for each, shown, own in zip(texts, prompts, _languages(language, len(texts)), strict=True)
        ]
        targets = None if text_target is None else _listed("text_target", text_target, len(texts))
        labels = None if targets is None else self.prompts.answers(targets)
        return self._features(contexts, labels, max_new_tokens, return_tensors)

    def apply_chat_template(  # type: ignore[override]
        self,
        conversation: Sequence[Mapping[str, Any]] | Sequence[Sequence[Mapping[str, Any]]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tokenize: bool = True,
        max_new_tokens: int | None = None,
        return_tensors: str | None = "pt",
        return_dict: bool = True,
        language: str | Sequence[str] | None = None,
        **options: Any,
    ) -> Any:
        """The LLM's chat template around the soft prompt, which replaces ONE user turn.

        Earlier turns and the question are one text for the encoder; a system message stays text for the LLM (default:
        that of the training). What the template writes are its control tokens; in messages they are text.

        Args:
            conversation: messages with `role` and `content`, or several such lists.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: the last message is the beginning of the answer.
            tokenize: False = the rendered text, with two noncharacters around what the encoder will read.
            max_new_tokens: as for a text.
            return_tensors: as for a text.
            return_dict: must stay true with `tokenize`.
            language: of the user's turns, as for a text.
            options: of the template (enable_thinking, documents, ...).

        Raises:
            ConfigError: the LLM's tokenizer has no chat template.
            DataError: a message that is not text.
        """
        single = bool(conversation) and isinstance(conversation[0], Mapping)
        chats: Any = [conversation] if single else conversation
        answering = add_generation_prompt and not continue_final_message
        languages = _languages(language, len(chats))
        if not tokenize:
            texts = [self.prompts.rendered(chat, answering, **options) for chat in chats]
            return texts[0] if single else texts
        contexts = [
            self.prompts.chat(chat, answering, own, **options) for chat, own in zip(chats, languages, strict=True)
        ]
        return self._features(contexts, None, max_new_tokens, return_tensors)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = True, *, chat: bool = False, **options: Any
    ) -> list[str]:
        """What was written, as text, without the one space that training puts before an answer.

        Args:
            sequences: LLM ids.
            skip_special_tokens: as transformers.
            chat: written after a chat template (of a bridge trained with it: always), which has no such space.
            options: of the tokenizer (default: clean_up_tokenization_spaces=False).
        """
        return [self.decode(row, skip_special_tokens, chat=chat, **options) for row in sequences]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, *, chat: bool = False, **options: Any) -> str:
        """:meth:`batch_decode` of one answer."""
        of = Decoder(self.tokenizers, chat)
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        return of.bare(
            of.raw([ids] if isinstance(ids, int) else ids, skip_special_tokens=skip_special_tokens, **options)
        )

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call gives."""
        return ["input_ids", "attention_mask", "prefix_ids", "prefix_mask", "suffix_ids", "suffix_mask"]

    @property
    def max_source_tokens(self) -> int:
        """Encoder tokens of a text; longer ones are truncated. May be set."""
        return self.prompts.limits.source

    @max_source_tokens.setter
    def max_source_tokens(self, most: int) -> None:
        self.prompts.limits = dataclasses.replace(self.prompts.limits, source=most)

    @property
    def max_prompt_tokens(self) -> int:
        """LLM tokens of a text that the LLM reads too. May be set."""
        return self.prompts.limits.prompt

    @max_prompt_tokens.setter
    def max_prompt_tokens(self, most: int) -> None:
        self.prompts.limits = dataclasses.replace(self.prompts.limits, prompt=most)

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> list[str]:  # type: ignore[override]
        """Write config.json, which names both tokenizers; the model's own, if there, is left as it is.

        Raises:
            ConfigError: a config.json of another bridge is there.
        """
        path = Path(save_directory) / CONFIG
        if path.is_file():
            if read_config(str(save_directory), None, {}).base != self.config.base:
                raise ConfigError(f"{path} is of another bridge; expected none; choose another folder.")
        else:
            save_config(self.config, save_directory)
        return [str(path)]

    def to_dict(self) -> dict[str, Any]:
        """For printing."""
        return {"processor_class": type(self).__name__, **self.config.to_diff_dict()}

    def __repr__(self) -> str:
        return f"BridgeProcessor(encoder={self.config.encoder!r}, llm={self.config.llm!r})"

    def context_ids(
        self, context: Context, max_new_tokens: int | None = None, prompts: PromptBuilder | None = None
    ) -> ContextIds:
        """Token ids of a context, truncated so that `max_new_tokens` positions stay free (default: as for a text);
        `prompts` makes them (default: those of the bridge)."""
        prompts = prompts or self.prompts
        return prompts.ids(context, prompts.room(self.max_new_tokens if max_new_tokens is None else max_new_tokens))

    def _features(
        self,
        contexts: Sequence[Context],
        labels: Sequence[list[int]] | None,
        max_new_tokens: int | None,
        return_tensors: str | None,
    ) -> BatchFeature:
        if not contexts:
            raise DataError("there is no text; expected at least one.")
        if return_tensors not in ("pt", None):
            raise DataError(f"return_tensors is {return_tensors!r}; expected 'pt' or None.")
        before = Counter(self.prompts.truncated)
        rows = [self.context_ids(context, max_new_tokens) for context in contexts]
        for line in truncation_lines(self.prompts.truncated - before, self.prompts.limits):
            _log.warning("%s", line)
        lists: dict[str, Sequence[Sequence[int]]] = {
            "input_ids": [row.source for row in rows],
            "prefix_ids": [row.head for row in rows],
            "suffix_ids": [[*row.prompt, *row.tail] for row in rows],
        }
        if return_tensors is None:
            return BatchFeature(lists if labels is None else {**lists, "labels": labels})
        llm_pad, made = self.tokenizers.pad_id, {}
        made["input_ids"], made["attention_mask"] = pad(lists["input_ids"], self.tokenizers.encoder_pad_id)
        made["prefix_ids"], made["prefix_mask"] = pad(lists["prefix_ids"], llm_pad)
        made["suffix_ids"], made["suffix_mask"] = pad(lists["suffix_ids"], llm_pad)
        if labels is not None:
            made["labels"] = pad(labels, IGNORE)[0]
        return BatchFeature(made)


def _listed(what: str, value: Any, count: int | None = None) -> list[str]:
    """One text or several as a list; `count` of them, where that is given."""
    texts = list(value) if isinstance(value, list | tuple) else [value]
    for wrong in (each for each in texts if not isinstance(each, str)):
        raise DataError(f"{what} holds {type(wrong).__name__}; expected a text or a list of texts.")
    if count is not None and len(texts) != count:
        raise DataError(f"there are {len(texts)} of {what} for {count} texts; expected as many.")
    return texts


def _languages(language: str | Sequence[str] | None, count: int) -> list[str]:
    """A language for each of `count` texts: one for all of them, or one each; empty = not known."""
    if language is None or isinstance(language, str):
        return [language or ""] * count
    return _listed("language", language, count)
