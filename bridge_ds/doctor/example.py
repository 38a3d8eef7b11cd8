"""One sample exactly as the LLM sees it, each soft vector beside the LLM token that it is nearest to.

Dimensions: M soft vectors, V vocabulary, H LLM width.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.doctor.load import LoadedRun
from bridge_ds.inference.generator import Generator

__all__ = ["SoftToken", "WorkedExample", "look", "nearest_tokens"]

_CHUNK = 16_384
"""Rows of the embedding table compared at a time."""


@dataclass(frozen=True)
class SoftToken:
    """One vector of the soft prompt."""

    encoder: str
    """The encoder token that it comes from, or which of a fixed number of vectors it is; `(end)` for the end vector."""
    nearest: str
    """The LLM token whose embedding points most nearly the same way."""
    cosine: float
    """With that embedding, -1 to 1."""
    size: float
    """Norm, as a multiple of the median token embedding's."""


@dataclass(frozen=True)
class WorkedExample:
    """What the LLM gets, in order, and what it does with it."""

    opening: str
    """What is before it: the opening token, or the beginning of a chat template; empty if there is neither."""
    soft: tuple[SoftToken, ...]
    """The soft prompt with its end vector."""
    prompt: str
    """What follows it: the text itself with data.augment_prompt, the end of a chat template."""
    target: str
    """What training asks for, the end token included where the run has one."""
    written: str
    """What the LLM writes, greedily."""

    def as_json(self) -> dict[str, Any]:
        """Every field by name."""
        return asdict(self)


@torch.no_grad()
def look(loaded: LoadedRun, row: TokenizedSample) -> WorkedExample:
    """Decode one sample."""
    model, of = loaded.model, loaded.tokenizers
    batch = collate([row], of.encoder_pad_id, of.pad_id).to(model.device)
    soft_MH = model.soft(batch).embeds_BKH[0].float()
    ids, cosines, usual = nearest_tokens(model, soft_MH)

    def decode(some: list[int]) -> str:
        return str(of.llm.decode(some))

    fixed = model.mapping.fixed_length
    tokens = [f"(latent {n})" for n in range(1, fixed + 1)] or of.encoder.convert_ids_to_tokens(row.source)
    names = [*tokens, "(end)"]
    soft = tuple(
        SoftToken(str(name), decode([id]), cosine, float(vector.norm()) / usual)
        for name, id, cosine, vector in zip(names, ids, cosines, soft_MH, strict=True)
    )
    generator = Generator(model, of)
    written = generator.greedy(generator.prefix(batch), len(row.target) + 4, keep_end=True)[0]
    opening = decode(model.head(batch)[0][0].tolist())
    return WorkedExample(opening, soft, decode(row.prompt), decode(row.target), decode(written))


def nearest_tokens(model: BridgeModel, vectors_MH: torch.Tensor) -> tuple[list[int], list[float], float]:
    """For each vector the id of the nearest token embedding and the cosine with it; and the embeddings' median norm."""
    best_M = vectors_MH.new_full((len(vectors_MH),), -2.0)
    id_M = torch.zeros(len(vectors_MH), dtype=torch.long, device=vectors_MH.device)
    norms = []
    unit_MH = vectors_MH / vectors_MH.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    for start in range(0, model.llm.vocab_size, _CHUNK):
        ids = torch.arange(start, min(start + _CHUNK, model.llm.vocab_size), device=vectors_MH.device)
        table_VH = model.llm.embed(ids[None])[0].float()
        norm_V = table_VH.norm(dim=-1)
        norms.append(norm_V)
        value_M, place_M = (unit_MH @ (table_VH / norm_V.clamp(min=1e-30)[:, None]).T).max(dim=-1)
        id_M = torch.where(value_M > best_M, place_M + start, id_M)
        best_M = torch.maximum(value_M, best_M)
    return id_M.tolist(), best_M.tolist(), float(torch.cat(norms).median())
