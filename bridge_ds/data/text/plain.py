"""What a person wrote never becomes a control token. For any tokenizer.

A control token (`</s>`, `<|im_end|>`, `<extra_id_0>`) that a text spells out is read as these characters; only
what a tokenizer puts around a text by itself, and what a chat template writes, is one. transformers'
`split_special_tokens` does this for byte-level BPE alone: a Unigram or word-level vocabulary (T5, XLM-R) holds `</s>`
as an ordinary piece and finds it anyway.

Most texts hold none, and keep the ids that the tokenizer gives. The others are tokenized by a copy of it in which every
control token is spelled with a noncharacter in front, so that no text can hold one and a template still can.
"""

from __future__ import annotations

import functools
import json
import re
import weakref
from collections.abc import Sequence
from typing import Any

__all__ = ["BREAK", "NONCHARACTERS", "control_tokens", "frame", "guarded", "ids_after", "template_ids", "text_ids"]

BREAK = "\ufdd2"
"""Put inside a control token that a user wrote in a chat, until the template has been rendered."""
_GUARD = "\ufdd3"
"""Put before a control token in the vocabulary of the copy."""
NONCHARACTERS = re.compile("[\ufdd0-\ufdd5]")
"""Those of Unicode that mark something here (see also :mod:`bridge_ds.data.text.chat`); no text holds them."""
_SENTINEL = re.compile(r"<extra_id_\d+>")
"""T5's sentinels; some tokenizers do not call them special."""
_MARKUP = re.compile(r"<\S+>|\[\S+\]")
"""The form of an added token that controls a model, unlike a word or white space."""


def control_tokens(tokenizer: Any) -> dict[str, int]:
    """Name and id of each token that a text must not hold.

    All special ones, what the chat template writes (as transformers' own `sanitize_control_tokens` counts them), T5's
    sentinels, and added tokens that look like markup (DeepSeek's `<\uff5cUser\uff5c>` is not special). Words and white
    space that somebody has added are text. So are tags that the model's own vocabulary holds and that are not special
    (Gemma's `<h1>`): it has read them in texts.
    """
    added = tokenizer.added_tokens_decoder
    own = _own_vocabulary(tokenizer)
    template = _template_tokens(tokenizer)
    found = {
        token.content: number
        for number, token in added.items()
        if token.special
        or token.content in template
        or _SENTINEL.fullmatch(token.content)
        or (token.content not in own and _MARKUP.fullmatch(token.content))
    }
    special = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    # LangBridge adds white space as special tokens, for its encoder to read it.
    return {str(name): number for name, number in {**dict(special), **found}.items() if name.strip()}


def text_ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Ids of texts, not truncated.

    Args:
        tokenizer: of transformers, or :class:`bridge_ds.data.text.spiece.SentencePieceTokenizer`.
        texts: as people wrote them.
        special: with the special tokens that the tokenizer adds.
    """
    # verbose=False: texts are truncated and counted elsewhere; no warning "longer than the maximum length" is needed.
    rows: list[list[int]] = tokenizer(list(texts), add_special_tokens=special, verbose=False)["input_ids"]
    if getattr(tokenizer, "reads_text", False):
        return rows
    return _control(tokenizer).fixed(list(texts), rows, special)


def ids_after(tokenizer: Any, character: str, texts: Sequence[str]) -> list[list[int]]:
    """Ids of texts that follow a character directly: without the space that SentencePiece puts before each text.

    A text that shares a token with the character gets the ids that it has alone.

    Args:
        tokenizer: as of :func:`text_ids`.
        character: the last one before the text; empty = none.
        texts: as people wrote them.
    """
    (before,) = text_ids(tokenizer, [character], special=False)
    alone = text_ids(tokenizer, texts, special=False)
    both = text_ids(tokenizer, [character + text for text in texts], special=False)
    return [row[len(before) :] if row[: len(before)] == before else own for row, own in zip(both, alone, strict=True)]


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Special ids that a tokenizer puts before and after a text, as it is now (a language tag may change)."""
    bare: list[int] = tokenizer(["a"], add_special_tokens=False)["input_ids"][0]
    framed: list[int] = tokenizer(["a"], add_special_tokens=True)["input_ids"][0]
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    raise AssertionError(f"{framed} does not hold {bare}")


def template_ids(tokenizer: Any, text: str) -> list[int]:
    """LLM ids of a part of a rendered chat template; control tokens in :func:`guarded` text stay text."""
    if not text:
        return []
    if BREAK in text:
        return _control(tokenizer).template(text)
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def guarded(tokenizer: Any, content: str) -> str:
    """A message for a chat template, with :data:`BREAK` inside each control token that it holds."""
    return _control(tokenizer).broken(NONCHARACTERS.sub("", content))


class _Control:
    """The control tokens of one tokenizer."""

    def __init__(self, tokenizer: Any) -> None:
        self._of = weakref.ref(tokenizer)
        self.names = control_tokens(tokenizer)
        unknown = tokenizer.unk_token_id
        marks = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}
        # An unknown character rightly gives <unk>.
        self.ids = frozenset(self.names.values()) - ({unknown} - marks)
        longest_first = sorted(self.names, key=len, reverse=True)
        self.pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._anywhere = re.compile(f"(?=({self.pattern.pattern}))")

    def fixed(self, texts: list[str], rows: list[list[int]], special: bool) -> list[list[int]]:
        """The rows; those that hold a control token are tokenized again."""
        before, after = frame(self._tokenizer) if special else ([], [])
        found = []
        for text, row in zip(texts, rows, strict=True):
            # Both are checked: some tokenizers take an end token in the text for their own, and some normalize
            # characters (fullwidth ones) until they are a control token.
            inner = row[len(before) : len(row) - len(after)]
            if self.pattern.search(text) or not self.ids.isdisjoint(inner):
                row = [*before, *self._plain(text), *after]
            found.append(row)
        return found

    def template(self, text: str) -> list[int]:
        """See :func:`template_ids`."""
        if self._twin is not None:
            written = self.pattern.sub(lambda match: _GUARD + match[0], text.replace(_GUARD, ""))
            return list(self._twin.encode(written.replace(BREAK, ""), add_special_tokens=False).ids)
        ids: list[int] = []
        for position, part in enumerate(re.split(f"({self.pattern.pattern})", text)):
            plain = part.replace(BREAK, "")
            ids += [self.names[part]] if position % 2 else self._plain(plain) if plain else []
        return ids

    def broken(self, text: str) -> str:
        """With BREAK after the first character of each control token."""
        breaks = {match.start() + 1 for match in self._anywhere.finditer(text)}
        return "".join(BREAK + character if at in breaks else character for at, character in enumerate(text))

    def _plain(self, text: str) -> list[int]:
        if self._twin is not None:
            return list(self._twin.encode(text.replace(_GUARD, "\ufdd4"), add_special_tokens=False).ids)
        tokenizer = self._tokenizer
        ids: list[int] = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)[
            "input_ids"
        ]
        if self.ids.isdisjoint(ids):
            return ids
        parts = tokenizer(self.broken(text).split(BREAK), add_special_tokens=False, verbose=False)["input_ids"]
        return [number for part in parts for number in part]

    @property
    def _tokenizer(self) -> Any:
        tokenizer = self._of()
        assert tokenizer is not None
        return tokenizer

    @functools.cached_property
    def _twin(self) -> Any:
        """The backend (package `tokenizers`) with guarded control tokens; None where the tokenizer has no backend."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        import tokenizers

        values = json.loads(backend.to_str())
        values |= {"post_processor": None, "truncation": None, "padding": None}
        model = values["model"]
        vocabulary = model.get("vocab", {})
        if isinstance(vocabulary, dict):
            model["vocab"] = {self._guard(name): number for name, number in vocabulary.items()}
        else:
            model["vocab"] = [[self._guard(name), score] for name, score in vocabulary]
        if model.get("unk_token"):
            model["unk_token"] = self._guard(model["unk_token"])
        for token in values["added_tokens"]:
            if token["content"] in self.names:
                token |= {"content": _GUARD + token["content"], "normalized": False}
        try:
            copy = tokenizers.Tokenizer.from_str(json.dumps(values))
        except Exception:  # the edited vocabulary does not fit the model: the package raises nothing narrower
            return None
        named = all(copy.token_to_id(_GUARD + name) == number for name, number in self.names.items())
        return copy if named else None

    def _guard(self, name: str) -> str:
        return _GUARD + name if name in self.names else name


_known: weakref.WeakKeyDictionary[Any, _Control] = weakref.WeakKeyDictionary()


def _control(tokenizer: Any) -> _Control:
    found = _known.get(tokenizer)
    if found is None:
        found = _known[tokenizer] = _Control(tokenizer)
    return found


def _own_vocabulary(tokenizer: Any) -> frozenset[str]:
    """Names in the model's own vocabulary, without what was added to it; empty where that is unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return frozenset() if backend is None else frozenset(backend.get_vocab(with_added_tokens=False))


def _template_tokens(tokenizer: Any) -> frozenset[str]:
    """Added tokens that the chat template writes; words and white space in it are none."""
    template = getattr(tokenizer, "chat_template", None)
    if not template:
        return frozenset()
    texts = template.values() if isinstance(template, dict) else [template]
    contents = (token.content for token in tokenizer.added_tokens_decoder.values())
    signs = (name for name in contents if re.search(r"[^\w\s]", name))
    return frozenset(name for name in signs if any(name in text for text in texts))
