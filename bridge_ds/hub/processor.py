"""`BridgeProcessor`: texts and chats to a bridge's input, and what it wrote to text again; over both tokenizers."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, BatchFeature, ProcessorMixin

from bridge_ds.config.names import resolve
from bridge_ds.data.loading.collate import pad
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.data.text.chat import messages_of, render
from bridge_ds.data.text.prompting import Context, answers, context_ids, framed, parse
from bridge_ds.data.text.truncate import LOST, Limits
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.hub.bases import compare_tokenizers
from bridge_ds.hub.config import BridgeConfig, to_run
from bridge_ds.hub.inputs import languages_of, listed
from bridge_ds.hub.source import CONFIG, hub_options, open_source, renamed
from bridge_ds.llm.base import positions_of
from bridge_ds.llm.splice import IGNORE

__all__ = ["BridgeProcessor"]

_log = logging.getLogger(__name__)


class BridgeProcessor(ProcessorMixin):
    """Two tokenizers that share no ids: the encoder's for what is read, the LLM's for what is around it and written.

    `processor(texts)` gives `input_ids` and `attention_mask` (encoder), `prefix_ids` and `prefix_mask` (LLM, before the
    soft prompt), `suffix_ids` and `suffix_mask` (LLM, after it), each [B, its longest], int64, right-padded.
    """

    def __init__(
        self, config: BridgeConfig, tokenizers: Tokenizers, positions: int = 0, max_new_tokens: int = 128
    ) -> None:
        """Args:
        config: of the bridge.
        tokenizers: both.
        positions: places of the LLM; 0 = unknown.
        max_new_tokens: places that are kept free for an answer.

        Raises:
            ConfigError: the bridge was trained with a chat template, and the LLM's tokenizer has none.
        """
        self.config, self.tokenizers, self.positions, self.max_new_tokens = (
            config,
            tokenizers,
            positions,
            max_new_tokens,
        )
        self.max_source_tokens, self.max_prompt_tokens = config.max_source_tokens, config.max_prompt_tokens
        self._fixed_length: int = to_run(config).mapping.fixed_length
        self.tokenizer: Any = tokenizers.llm
        """The LLM's."""
        self.encoder_tokenizer: Any = tokenizers.encoder
        """The encoder's."""
        self.chat_template = getattr(tokenizers.llm, "chat_template", None)
        self.cut: Counter[str] = Counter()
        """Texts seen (`texts`), and how many of them were truncated: for the encoder (`source`), for the LLM
        (`prompt`)."""
        self._frame = tokenizers.frame

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
            ConfigError: nothing there, a tokenizer cannot be loaded or is not the one of the training.
        """
        hub = hub_options(options)
        options.pop("_from_auto", None)
        if options:
            raise ConfigError(
                f"BridgeProcessor.from_pretrained does not know {next(iter(options))!r}; expected revision, encoder, "
                "llm, encoder_revision, llm_revision, allow_base_mismatch, trust_remote_code or options of the hub."
            )
        source = renamed(
            open_source(os.fspath(pretrained_model_name_or_path), revision, hub),
            {"encoder": encoder, "llm": llm, "encoder_revision": encoder_revision, "llm_revision": llm_revision},
        )
        run = to_run(source.config, bool(trust_remote_code))
        model = run.model
        tokenizers = load_tokenizers(model, hub, run.data)
        if not allow_base_mismatch:
            compare_tokenizers(source.config, tokenizers, hub)
        llm_config = AutoConfig.from_pretrained(
            resolve(model.llm), revision=model.llm_revision, trust_remote_code=model.trust_remote_code, **hub
        )
        return cls(
            source.config, tokenizers, positions_of(llm_config), int(source.generation.get("max_new_tokens") or 128)
        )

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
            text: one text or several; the encoder reads it. One that is too long is cut as in training
                (`config.truncation_side`); a bridge trained with the LLM's chat template gets it here too.
            prompt: what the LLM reads beside the soft prompt, if the bridge was trained with `augment_prompt`; none =
                the text itself.
            text_target: right answers; adds `labels` [B, T], IGNORE (-100) on padding, for a loss.
            max_new_tokens: places to keep free for the answer (default: the longest target of the training).
            return_tensors: `pt`; None = lists of unequal length.
            language: of the texts, of all or of each, where the encoder is told it (NLLB, M2M-100, mBART): its tag or
                an ISO 639 code.

        Raises:
            DataError: not a text, other numbers of prompts, targets or languages than of texts, or a language that the
                encoder does not have.
        """
        texts = listed("text", text)
        prompts = [None] * len(texts) if prompt is None else listed("prompt", prompt, len(texts))
        contexts = [
            Context(each, prompt=shown, language=own)
            for each, shown, own in zip(texts, prompts, languages_of(language, len(texts)), strict=True)
        ]
        targets = None if text_target is None else listed("text_target", text_target, len(texts))
        labels = None if targets is None else answers(self.tokenizers, targets, self._frame.before_answer)
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
        """The LLM's chat template around the soft prompt, which takes the place of ONE user turn.

        Earlier turns and the question are one text for the encoder; a system message stays text for the LLM (that of
        the training where there is none). What the template writes are its control tokens; in messages they are text.

        Args:
            conversation: messages with `role` and `content`, or several such lists.
            add_generation_prompt: open the assistant's turn.
            continue_final_message: the last message is the beginning of the answer.
            tokenize: False = the rendered text, with two noncharacters around what the encoder will read.
            max_new_tokens: as for a text; likewise `return_tensors`.
            return_tensors: see `max_new_tokens`.
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
        try:
            system = self.config.system_prompt
            texts = [render(self.tokenizer, messages_of(chat), answering, system, **options) for chat in chats]
        except ValueError as error:
            raise ConfigError(
                f"the tokenizer of {self.config.llm!r} cannot render a chat ({' '.join(str(error).split())[:120]}); "
                "expected a chat template; give plain texts, or choose an instruction-tuned LLM."
            ) from None
        if not tokenize:
            return texts[0] if single else texts
        contexts = [
            dataclasses.replace(parse(text), language=own)
            for text, own in zip(texts, languages_of(language, len(texts)), strict=True)
        ]
        return self._features(contexts, None, max_new_tokens, return_tensors)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = True, *, chat: bool = False, **options: Any
    ) -> list[str]:
        """What was written, as text; the one space that training puts before an answer is taken off.

        Args:
            sequences: LLM ids.
            skip_special_tokens: as transformers.
            chat: written after a chat template (of a bridge trained with it: always), which has no such space.
            options: of the tokenizer.
        """
        found = self.tokenizer.batch_decode(sequences, skip_special_tokens=skip_special_tokens, **options)
        return [self.bare(text, chat) for text in found]

    def decode(self, token_ids: Any, skip_special_tokens: bool = True, *, chat: bool = False, **options: Any) -> str:
        """:meth:`batch_decode` of one answer."""
        return self.bare(self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens, **options), chat)

    def bare(self, text: str, chat: bool = False) -> str:
        """An answer without the space that training puts before it."""
        return text if chat or self.config.chat_template else self.tokenizers.answer(text)

    @property
    def model_input_names(self) -> list[str]:
        """Names of what a call gives."""
        return ["input_ids", "attention_mask", "prefix_ids", "prefix_mask", "suffix_ids", "suffix_mask"]

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> list[str]:  # type: ignore[override]
        """Write config.json, which names both tokenizers; where the model's own lies already, it is left as it is.

        Raises:
            ConfigError: a config.json of another bridge is there.
        """
        path = Path(save_directory) / CONFIG
        if path.is_file():
            there = json.loads(path.read_text(encoding="utf-8"))
            if there.get("base") != self.config.base:
                raise ConfigError(f"{path} is of another bridge; expected none; choose another folder.")
        else:
            self.config.save_pretrained(save_directory)
        return [str(path)]

    def to_dict(self) -> dict[str, Any]:
        """For printing."""
        return {"processor_class": type(self).__name__, **self.config.to_diff_dict()}

    def __repr__(self) -> str:
        return f"BridgeProcessor(encoder={self.config.encoder!r}, llm={self.config.llm!r})"

    def context_ids(
        self, context: Context, max_new_tokens: int | None = None
    ) -> tuple[list[int], list[int], list[int]]:
        """Ids before the soft prompt (LLM), of the text (encoder), after the soft prompt (LLM), counted in `cut`."""
        limits = Limits(
            self.max_source_tokens, self.max_prompt_tokens, self.positions, side=self.config.truncation_side,
            soft=self._fixed_length,
        )  # fmt: skip
        room = self.max_new_tokens if max_new_tokens is None else max_new_tokens
        if self.positions:
            room = min(room, self.positions // 2)
        context = framed(context, self._frame)
        if not context.language:
            context = dataclasses.replace(context, language=self.config.source_language)
        ids = context_ids(self.tokenizers, context, limits, room, prompt=self.config.augment_prompt)
        self.cut.update(texts=1, **{name: name in ids.cut for name in ("source", "prompt")})
        return ids.head, ids.source, [*ids.prompt, *ids.tail]

    def length(self, row: tuple[list[int], list[int], list[int]]) -> int:
        """Places of the LLM that a row of :meth:`context_ids` takes, the soft prompt's end vector included."""
        head, source, tail = row
        return len(head) + ((self._fixed_length or len(source)) + 1 if source else 0) + len(tail)

    def collate(
        self, rows: Sequence[tuple[list[int], list[int], list[int]]], labels: Sequence[list[int]] | None = None
    ) -> BatchFeature:
        """Rows of :meth:`context_ids` as one padded batch."""
        made: dict[str, torch.Tensor] = {}
        heads, sources, tails = zip(*rows, strict=True)
        by_llm, by_encoder = self.tokenizers.pad_id, self.tokenizers.encoder_pad_id
        made["input_ids"], made["attention_mask"] = pad(sources, by_encoder)
        made["prefix_ids"], made["prefix_mask"] = pad(heads, by_llm)
        made["suffix_ids"], made["suffix_mask"] = pad(tails, by_llm)
        if labels is not None:
            made["labels"] = pad(labels, IGNORE)[0]
        return BatchFeature(made)

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
        before = Counter(self.cut)
        rows = [self.context_ids(context, max_new_tokens) for context in contexts]
        for name, limit in (("source", self.max_source_tokens), ("prompt", self.max_prompt_tokens)):
            if lost := self.cut[name] - before[name]:
                _log.warning(
                    "%d of %d texts lost their %s: at most %d %s tokens fit.",
                    lost, len(rows), LOST[self.config.truncation_side], limit, name,
                )  # fmt: skip
        if return_tensors == "pt":
            return self.collate(rows, labels)
        heads, sources, tails = (list(part) for part in zip(*rows, strict=True))
        lists = {"input_ids": sources, "prefix_ids": heads, "suffix_ids": tails}
        return BatchFeature(lists | ({} if labels is None else {"labels": list(labels)}))
