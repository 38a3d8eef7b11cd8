"""Which tokens of the LLM stand for the same characters as each token of the encoder. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.text.spiece import SentencePieceTokenizer
from bridge_ds.errors import ConfigError

__all__ = ["Covered", "covered", "overlaps"]


class Covered(NamedTuple):
    """A text, as both tokenizers read it."""

    source: list[int]
    """Encoder ids, special tokens included."""
    same: list[list[int]]
    """For each of them the LLM ids that share a character with it. Special tokens before the text have its first LLM
    id, those after it its last one; a token of white space alone may have none."""
    last: int
    """LLM id with which the text ends, `data.separator` included, as before an answer."""


def covered(tokenizers: Tokenizers, texts: Sequence[str], languages: Sequence[object], limit: int) -> list[Covered]:
    """Those of the texts of which both tokenizers say where their tokens stand.

    Left out are texts of more than `limit` encoder tokens, and those whose ids are not special tokens around the ids of
    the text alone (an encoder that writes the text anew).

    Raises:
        ConfigError: a tokenizer cannot say where its tokens stand.
        DataError: a language that the encoder does not know.
    """
    found = []
    own, llm = _placed("model.encoder", tokenizers.encoder, texts), _placed("model.llm", tokenizers.llm, texts)
    ids, ends = tokenizers.sources(texts, languages), tokenizers.prompts(texts)
    for source, (inner, places), (words, spans), end in zip(ids, own, llm, ends, strict=True):
        before = _find(source, inner)
        if before is None or not inner or not words or not end or len(source) > limit:
            continue
        same = [[words[n] for n in overlap] for overlap in overlaps(places, spans)]
        after = len(source) - before - len(inner)
        found.append(Covered(source, [[words[0]]] * before + same + [[words[-1]]] * after, end[-1]))
    return found


def overlaps(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> list[list[int]]:
    """For each span [start, end) the numbers of those of `others` that share a character with it; both in order of
    their starts."""
    found, first = [], 0
    for start, end in spans:
        while first < len(others) and others[first][1] <= start:
            first += 1
        here, at = [], first
        while at < len(others) and others[at][0] < end:
            if max(start, others[at][0]) < min(end, others[at][1]):
                here.append(at)
            at += 1
        found.append(here)
    return found


def _placed(what: str, tokenizer: Any, texts: Sequence[str]) -> list[tuple[list[int], list[tuple[int, int]]]]:
    """Ids of each text without special tokens, and the characters that each stands for."""
    if isinstance(tokenizer, SentencePieceTokenizer):
        return tokenizer.placed(texts)
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"the tokenizer of {what} ({type(tokenizer).__name__}) does not say which characters a token stands for, "
            "which mapping.init=embeddings needs; expected one with a tokenizer.json; set mapping.init=random."
        )
    found = tokenizer(list(texts), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(zip(found["input_ids"], found["offset_mapping"], strict=True))


def _find(ids: Sequence[int], inner: Sequence[int]) -> int | None:
    """Where `inner` stands in `ids`; None = nowhere."""
    for at in range(len(ids) - len(inner) + 1):
        if list(ids[at : at + len(inner)]) == list(inner):
            return at
    return None
