"""What is probed: an encoder, or a run's encoder with its fusion and mapping. Sentences in, one vector a place out.

Dimensions: B batch, S encoder tokens, N sentences, D width of a place.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.data.loading.tokenize import check_vocabulary
from bridge_ds.data.text.languages import SourceLanguages, find_languages, source_ids
from bridge_ds.data.text.spiece import with_spiece
from bridge_ds.data.text.truncate import side_of, truncated
from bridge_ds.encoder.base import Encoder
from bridge_ds.encoder.frozen import load_encoder
from bridge_ds.encoder.pool import mean_state
from bridge_ds.encoder.retrieval import Floats
from bridge_ds.engine.setup import quiet_transformers
from bridge_ds.frozen.device_map import input_device
from bridge_ds.frozen.tokenizer import load_tokenizer
from bridge_ds.inference.load import load_trained, open_run
from bridge_ds.llm.positions import encoder_table

__all__ = ["FUSION", "MAPPING", "Reader", "encoder_reader", "run_reader"]

_log = logging.getLogger(__name__)
FUSION, MAPPING = "fusion", "mapping"
"""Places after the encoder's layers."""
_TOKENS = 4096
"""Most tokens of a forward pass, padding included."""


@dataclass(frozen=True)
class Reader:
    """Reads sentences as training and evaluation do, without a prompt around them."""

    name: str
    """Of the encoder, as it was given."""
    encoder: Encoder
    """Its states are the first places."""
    tokenizer: Any
    """The encoder's."""
    languages: SourceLanguages | None
    """Of an encoder with language tags."""
    limit: int
    """Most tokens of a sentence."""
    side: str = "right"
    """Where a longer one is truncated."""
    bridge: tuple[nn.Module, nn.Module] | None = None
    """Fusion and mapping of a run that has a soft prompt."""
    checkpoint: str = ""
    """Of the run."""

    @property
    def places(self) -> list[str]:
        """Names of the places where sentences are compared: layers, counted from 1 (0 = the embeddings), and more."""
        first = 0 if self.encoder.include_embeddings else 1
        layers = [str(first + number) for number in range(self.encoder.num_layers)]
        return [*layers, FUSION, MAPPING] if self.bridge else layers

    def ids(self, texts: Sequence[str], language: str) -> list[list[int]]:
        """Encoder ids of sentences, special tokens included, not truncated."""
        tags = [self.languages.tag_or_default(language)] * len(texts) if self.languages else None
        return source_ids(self.tokenizer, self.languages, texts, tags)

    def vectors(self, rows: Sequence[list[int]], done: Callable[[int], object] = lambda _: None) -> list[Floats]:
        """For each place [N, D]: the mean over a sentence's tokens, special ones too, as sentence encoders take it.

        Args:
            rows: of :meth:`ids`.
            done: called with the number of sentences of each batch.
        """
        cut = [self.cut(row) for row in rows]
        found: list[list[Floats]] = [[] for _ in self.places]
        order: list[int] = []
        for part in _batches(cut):
            for place, vectors in zip(found, self._means([cut[number] for number in part]), strict=True):
                place.append(vectors)
            order += part
            done(len(part))
        back = np.argsort(order)
        return [np.concatenate(place)[back] for place in found]

    def cut(self, row: list[int]) -> list[int]:
        """At most `limit` ids; a language tag and an end token are kept."""
        ends = (0, int(bool(row) and row[-1] in self.tokenizer.all_special_ids))
        if self.languages:
            before, after = self.languages.frames[self.languages.default]
            ends = (len(before), len(after))
        return truncated(row, self.limit, self.side, *ends)

    @torch.no_grad()
    def _means(self, rows: Sequence[list[int]]) -> Iterator[Floats]:
        device, longest = input_device(self.encoder.model), max(1, *map(len, rows))
        pad = self.tokenizer.pad_token_id or 0
        ids_BS = torch.tensor([row + [pad] * (longest - len(row)) for row in rows], device=device)
        mask_BS = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
        states = self.encoder(ids_BS, mask_BS)
        for state_BSD in states:
            yield _mean(state_BSD, mask_BS)
        if self.bridge:
            fusion, mapping = self.bridge
            fused_BSD = fusion(states, mask_BS)
            yield _mean(fused_BSD, mask_BS)
            soft, soft_mask = mapping(fused_BSD, mask_BS)
            yield _mean(soft[:, :-1], soft_mask[:, :-1])  # the end vector is the same for all


def encoder_reader(name: str, device: torch.device) -> Reader:
    """A reader of an encoder alone, in float32.

    Raises:
        ConfigError: there is no such encoder, or it cannot be used.
    """
    quiet_transformers()
    of = ModelConfig(encoder=name, dtype="float32")
    config = dataclasses.replace(Config(), model=of)
    tokenizer = with_spiece(load_tokenizer("model.encoder", name), name, None)
    encoder = load_encoder(of)
    encoder.to(device)
    check_vocabulary(tokenizer, encoder.vocab_size, "encoder")
    table = encoder_table(config, encoder.model.config)
    limit = min(config.data.max_source_tokens, table or config.data.max_source_tokens)
    return Reader(name, encoder, tokenizer, find_languages(tokenizer), limit)


def run_reader(run: Path, device: torch.device) -> Reader:
    """A reader of a run's newest checkpoint ; its LLM is loaded too.

    Raises:
        ConfigError: no run folder, or base models that cannot be loaded.
        CheckpointError: no valid checkpoint, or one of other base models.
    """
    config, checkpoint = open_run(run)
    model, tokenizers, _ = load_trained(run, config, device, checkpoint=checkpoint)
    return Reader(
        config.model.encoder, model.encoder, tokenizers.encoder, tokenizers.languages, config.data.max_source_tokens,
        side_of(config.data), (model.fusion, model.mapping) if model.makes_prompt else None, checkpoint.folder.name,
    )  # fmt: skip


def _batches(rows: Sequence[list[int]]) -> Iterator[list[int]]:
    """Numbers of rows of about equal length, the longest first."""
    part: list[int] = []
    for number in sorted(range(len(rows)), key=lambda number: -len(rows[number])):
        if part and len(rows[part[0]]) * (len(part) + 1) > _TOKENS:
            yield part
            part = []
        part.append(number)
    if part:
        yield part


def _mean(states_BSD: torch.Tensor, mask_BS: torch.Tensor) -> Floats:
    means: Floats = mean_state(states_BSD, mask_BS).cpu().double().numpy()
    return means
