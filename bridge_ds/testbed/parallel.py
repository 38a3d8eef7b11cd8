"""Batches of parallel prompts for the encoder: the same meanings in several languages, words paired by their slots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from .languages import LANGUAGES
from .tasks import TASKS, Meaning, meanings, source_words

__all__ = ["ParallelBatch", "ParallelText"]


@dataclass(frozen=True, slots=True)
class ParallelBatch:
    """N sentences of S positions; K languages per meaning, so that N = meanings x K. All tensors are int64."""

    ids_NS: Any
    mask_NS: Any
    """1 where there is a piece, 0 where there is padding."""
    concepts_NS: Any
    """The concept of each word, counted over all languages; -1 where there is none (padding, end of text)."""
    slots_NS: Any
    """The slot of each word; -1 where it has none that all languages share."""
    pairs_WK: Any
    """For each of W words that all languages share, its K flat positions in N x S, one per language."""


class ParallelText:
    """Prompts of the train split, drawn at random with their renderings in all languages."""

    def __init__(self, tokenizer: Any, per_task: int, seed: int, split: str = "train") -> None:
        self.meanings: list[Meaning] = [
            meaning for task in TASKS for meaning in islice(meanings(task, split, seed), per_task)
        ]
        self.pieces: dict[str, int] = tokenizer.get_vocab()
        self.eos, self.pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        self.concepts: dict[str, int] = {}
        self.slots: dict[str, int] = {}
        for meaning in self.meanings:
            for language in LANGUAGES:
                for word in source_words(meaning, language):
                    self.concepts.setdefault(word.concept, len(self.concepts))
                    if word.slot:
                        self.slots.setdefault(word.slot, len(self.slots))

    def batch(self, chosen: Sequence[tuple[Meaning, Sequence[str]]]) -> ParallelBatch:
        """The given meanings, each in as many languages as the others."""
        import torch

        sentences = [[source_words(meaning, language) for language in languages] for meaning, languages in chosen]
        length = 1 + max(len(words) for group in sentences for words in group)
        ids: list[list[int]] = []
        pairs: list[list[int]] = []
        concepts, slots = [], []
        for group in sentences:
            positions: dict[str, list[int]] = {}
            for words in group:
                for position, word in enumerate(words):
                    if word.slot:
                        positions.setdefault(word.slot, []).append(len(ids) * length + position)
                room = length - len(words)
                ids.append([self.pieces["▁" + word.text] for word in words] + [self.eos] + [self.pad] * (room - 1))
                concepts.append([self.concepts[word.concept] for word in words] + [-1] * room)
                slots.append([self.slots[word.slot] if word.slot else -1 for word in words] + [-1] * room)
            pairs += positions.values()
        ids_NS = torch.tensor(ids)
        return ParallelBatch(
            ids_NS, (ids_NS != self.pad).long(), torch.tensor(concepts), torch.tensor(slots), torch.tensor(pairs)
        )

    def draw(self, rng: random.Random, count: int, languages: int) -> ParallelBatch:
        """``count`` meanings at random, each in as many random languages."""
        return self.batch([(meaning, rng.sample(LANGUAGES, languages)) for meaning in rng.sample(self.meanings, count)])
