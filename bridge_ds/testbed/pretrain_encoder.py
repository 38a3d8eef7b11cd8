"""Pretrain the multilingual encoder of the testbed on parallel prompts, without labels.

It has two objectives at different depths, after what has been found in large encoders (middle layers neutral between
languages, the last one not):

- In the middle layers one classifier for all languages predicts a word's concept and its slot in the sentence, and
  words that pair up in parallel sentences get similar states.
- The last layer predicts the words of the sentence's own language, masked ones included.
"""

from __future__ import annotations

import random
from typing import Any

from .optimize import optimize
from .parallel import ParallelBatch, ParallelText

__all__ = ["pretrain_encoder"]

WIDTH, LAYERS, HEADS, FFN = 192, 6, 6, 384
MEANINGS, LANGUAGES_EACH = 24, 4
"""Meanings per step, and languages in which each is read. In the last of them words are masked."""
MIDDLE = (1, 2, 3, 4, 5)
"""Layers (counted from 1) that are trained to be neutral between languages."""
HIDDEN_SHARE, NAMED_SHARE = 0.3, 0.2
"""Shares of the words that are masked (in one sentence of each group), and of visible words that are predicted too."""
SHARPNESS = 16.0
"""Factor on the cosines of the concept classifier."""
WEIGHTS = {"concept": 1.0, "slot": 0.3, "pull": 12.0, "word": 1.0, "size": 0.3}
"""Weights of the losses. That of the pull grows from 0 to this: too early it keeps words from being separated."""


def _new_model(tokenizer: Any) -> Any:
    from transformers import MT5Config, MT5EncoderModel

    model = MT5EncoderModel(
        MT5Config(
            vocab_size=len(tokenizer),
            d_model=WIDTH,
            d_kv=WIDTH // HEADS,
            d_ff=FFN,
            num_layers=LAYERS,
            num_heads=HEADS,
            relative_attention_num_buckets=16,
            relative_attention_max_distance=32,
            dropout_rate=0.0,
        )
    )
    # Small embeddings: MT5's own initialization (variance 1) would need more steps than this run has.
    model.get_input_embeddings().weight.data.mul_(0.3)
    return model


def _pull(states_WKD: Any) -> Any:
    """Mean squared distance between the directions of a word's states in several languages and their mean.

    Directions, because a pull on the states themselves is minimized by making a few states huge or all of them tiny.
    """
    import torch

    directions_WKD = torch.nn.functional.normalize(states_WKD, dim=-1)
    return (directions_WKD - directions_WKD.mean(1, keepdim=True)).pow(2).sum(-1).mean()


def _size(states_LMD: Any) -> Any:
    """How far the states of the residual stream are from a root mean square of 1 (their mean squared logarithm).

    The last layer is normalized; without this the others grow to ten times its size, and dominate every mixture of
    layers.
    """
    return (states_LMD.pow(2).mean(-1) + 1e-6).log().div(2).pow(2).mean()


def _hide(batch: ParallelBatch, gap_id: int, draw: Any) -> tuple[Any, Any]:
    """Ids with some words masked in the last sentence of each group, and the mask of the words to predict."""
    import torch

    chance_NS = torch.rand(batch.ids_NS.shape, generator=draw)
    last_N1 = (torch.arange(len(batch.ids_NS)) % LANGUAGES_EACH == LANGUAGES_EACH - 1)[:, None]
    words_NS = batch.concepts_NS >= 0
    hidden_NS = words_NS & last_N1 & (chance_NS < HIDDEN_SHARE)
    named_NS = hidden_NS | (words_NS & (chance_NS > 1 - NAMED_SHARE))
    return batch.ids_NS.masked_fill(hidden_NS, gap_id), named_NS


def pretrain_encoder(tokenizer: Any, steps: int, seed: int) -> tuple[Any, list[dict[str, float]]]:
    """Train the encoder from nothing; returns it (float32, in eval mode) and its losses."""
    import torch
    from torch.nn import functional

    torch.manual_seed(seed)
    text = ParallelText(tokenizer, per_task=8000, seed=seed)
    rng, draw = random.Random(seed), torch.Generator().manual_seed(seed)
    model = _new_model(tokenizer)
    concept_head = torch.nn.Linear(WIDTH, len(text.concepts), bias=False)
    slot_head = torch.nn.Linear(WIDTH, len(text.slots))
    word_head = torch.nn.Linear(WIDTH, len(tokenizer))

    def loss_at(step: int) -> dict[str, Any]:
        batch = text.draw(rng, MEANINGS, LANGUAGES_EACH)
        ids_NS, named_NS = _hide(batch, tokenizer.unk_token_id, draw)
        states = model(input_ids=ids_NS, attention_mask=batch.mask_NS, output_hidden_states=True).hidden_states
        seen_NS = ids_NS != tokenizer.unk_token_id
        losses = dict.fromkeys(WEIGHTS, torch.zeros(()))
        losses["size"] = _size(torch.stack(states[1:-1])[:, batch.mask_NS.bool()])
        for layer in MIDDLE:
            tagged_MD = functional.normalize(states[layer][seen_NS & (batch.concepts_NS >= 0)], dim=-1)
            concepts_M = batch.concepts_NS[seen_NS & (batch.concepts_NS >= 0)]
            cosines_MC = tagged_MD @ functional.normalize(concept_head.weight, dim=-1).T
            losses["concept"] = losses["concept"] + functional.cross_entropy(SHARPNESS * cosines_MC, concepts_M)
            slotted_NS = seen_NS & (batch.slots_NS >= 0)
            slots = slot_head(WIDTH**0.5 * functional.normalize(states[layer][slotted_NS], dim=-1))
            losses["slot"] = losses["slot"] + functional.cross_entropy(slots, batch.slots_NS[slotted_NS])
            paired_WKD = states[layer].flatten(0, 1)[batch.pairs_WK[:, : LANGUAGES_EACH - 1]]
            losses["pull"] = losses["pull"] + _pull(paired_WKD)
        losses["word"] = functional.cross_entropy(word_head(states[-1][named_NS]), batch.ids_NS[named_NS])
        for name in ("concept", "slot", "pull"):
            losses[name] = losses[name] / len(MIDDLE)
        factors = WEIGHTS | {"pull": WEIGHTS["pull"] * step / steps}
        return {name: factors[name] * value for name, value in losses.items()}

    heads = (*concept_head.parameters(), *slot_head.parameters(), *word_head.parameters())
    history = optimize([*model.parameters(), *heads], loss_at, steps, peak_lr=2e-3, weight_decay=0.05, title="encoder")
    return model.eval(), history
