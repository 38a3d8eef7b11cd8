"""Whether a class of LLM computes rows that are joined end to end as it does each alone: seen on a tiny copy of it."""

from __future__ import annotations

import copy
from typing import Any

import torch

from bridge_ds.compat.transformers import masks_known
from bridge_ds.data.loading.layout import PackedRows
from bridge_ds.llm.tiny_copy import LIMITS, VOCABULARY, tiny_copy
from bridge_ds.llm.trim import last_layer, trimmed

__all__ = ["packs_and_trims"]

_TOLERANCE = 1e-4
"""Largest difference of logits that is rounding, in standard deviations of the logits."""
_LENGTHS = 12, 9
_WINDOW = 5
"""Keys that a layer with a sliding window or chunks sees: fewer than a row has."""
_TABLE = 16
"""Positions of a table: enough for each row, and not for a sequence (GPT-Neo's causal mask is a table too)."""


def packs_and_trims(kind: Any, config: Any) -> tuple[bool, bool]:
    """Whether the class computes joined rows exactly, and its last layer at some of their positions exactly.

    Args:
        kind: class of the model.
        config: the config that the class takes.
    """
    config = copy.deepcopy(config)
    text = config.get_text_config()
    settings = dict.fromkeys(("sliding_window", "attention_chunk_size"), _WINDOW) | dict.fromkeys(LIMITS, _TABLE)
    for name, value in settings.items():
        if isinstance(getattr(text, name, None), int):
            setattr(text, name, value)
    try:
        return _observe(tiny_copy(kind, config))
    except Exception:  # whatever a class raises that cannot do it
        return False, False


@torch.no_grad()
def _observe(model: Any) -> tuple[bool, bool]:
    draw = torch.Generator().manual_seed(1)
    first, second = (
        model.get_input_embeddings()(torch.randint(8, VOCABULARY - 8, (1, length), generator=draw))
        for length in _LENGTHS
    )
    alone = [model(inputs_embeds=row.clone(), use_cache=False).logits[0] for row in (first, second)]
    scale = float(alone[0].std())
    # Both orders as two sequences, with a position of padding each.
    none = torch.zeros_like(first[:, :1])
    embeds_BXH = torch.cat([torch.cat([first, second, none], 1), torch.cat([second, first, none], 1)])
    spans = [torch.arange(length) for length in _LENGTHS]
    ids = torch.stack([torch.cat([*spans, torch.zeros(1).long()]), torch.cat([*spans[::-1], torch.zeros(1).long()])])
    expected = torch.stack([torch.cat(alone), torch.cat(alone[::-1])])
    wanted_BQ = torch.tensor([[3, 11, 14], [8, 8, 20]])
    packed = PackedRows(ids, wanted_BQ, torch.tensor([1, 0, 2, 3, 5]))
    length = embeds_BXH.shape[1]
    places_N = (wanted_BQ + torch.tensor([[0], [length]])).flatten()[packed.asked_N]

    def run() -> torch.Tensor:
        with masks_known(padded=False, packed=True):
            logits: torch.Tensor = model(inputs_embeds=embeds_BXH.clone(), position_ids=ids, use_cache=False).logits
        return logits

    def same(found: torch.Tensor, wanted: torch.Tensor) -> bool:
        return float((found - wanted).abs().max()) <= _TOLERANCE * scale

    whole = run()
    if not same(whole[:, :-1], expected):
        return False, False
    layer = last_layer(model)
    if layer is None:
        return True, False
    with trimmed(layer, packed, places_N) as done:
        short = run()
    exact = same(short.flatten(0, 1)[places_N], whole.flatten(0, 1)[places_N])
    return True, done[0] and exact
