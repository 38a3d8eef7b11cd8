"""Pretrain the English language model of the testbed, on English alone.

Its text is the three tasks, prompt and label, and bare sentences. A little noise on its input embeddings (after
NEFTune, arXiv 2310.05914) keeps it from depending on exact vectors, so that it accepts soft prompts more easily.
"""

from __future__ import annotations

from itertools import islice
from typing import Any

from .languages import ENGLISH
from .optimize import optimize
from .render import render
from .tasks import meanings

__all__ = ["pretrain_llm"]

HIDDEN, LAYERS, HEADS, FFN = 128, 4, 4, 384
BATCH = 64
"""Rows per step."""
ROWS = {"inference": 40_000, "news": 20_000, "reviews": 20_000}
"""Rows of each task to draw from. Inference needs most: it is the only task that relates words to one another."""
BARE_EVERY = 10
"""Of one row in this many, the first sentence without prompt or label is one more row."""
NOISE = 0.5
"""Largest noise on the embeddings of a row, as a share of their root mean square."""
PROMPT_WEIGHT = 0.3
"""Weight of the loss on prompts and bare sentences; the loss on labels weighs 1."""


def _new_model(tokenizer: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=FFN,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=HIDDEN**-0.5,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _corpus(tokenizer: Any, seed: int) -> list[tuple[list[int], int]]:
    """Sequences of ids, each with the position where its label begins (past its end if there is none)."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    found = [meaning for task, count in ROWS.items() for meaning in islice(meanings(task, "train", seed), count)]
    rows = [meaning.in_language(ENGLISH) for meaning in found]
    sources = tokenizer([row.source for row in rows], add_special_tokens=False).input_ids
    targets = tokenizer([row.target for row in rows], add_special_tokens=False).input_ids
    corpus = [([bos, *source, *target, eos], 1 + len(source)) for source, target in zip(sources, targets, strict=True)]
    bare = [" ".join(word.text for word in render(meaning.clauses[0], ENGLISH)) for meaning in found[::BARE_EVERY]]
    corpus += [([bos, *ids, eos], 2 + len(ids)) for ids in tokenizer(bare, add_special_tokens=False).input_ids]
    return corpus


def pretrain_llm(tokenizer: Any, steps: int, seed: int) -> tuple[Any, list[dict[str, float]]]:
    """Train the language model from nothing; returns it (float32, in eval mode) and its losses."""
    import torch

    torch.manual_seed(seed)
    model = _new_model(tokenizer)
    embeddings = model.get_input_embeddings()
    corpus = _corpus(tokenizer, seed)
    draw = torch.Generator().manual_seed(seed)

    def loss_at(step: int) -> dict[str, Any]:
        rows = [corpus[i] for i in torch.randint(len(corpus), (BATCH,), generator=draw).tolist()]
        length = max(len(ids) for ids, _ in rows)
        ids_BX = torch.tensor([ids + [tokenizer.pad_token_id] * (length - len(ids)) for ids, _ in rows])
        positions_BX = torch.arange(1, length)[None]
        starts_B1, ends_B1 = (
            torch.tensor(column)[:, None] for column in zip(*((start, len(ids)) for ids, start in rows), strict=True)
        )
        embeds_BXH = embeddings(ids_BX)
        spread_B11 = NOISE * torch.rand(BATCH, 1, 1, generator=draw) * embeds_BXH.detach().pow(2).mean().sqrt()
        embeds_BXH = embeds_BXH + spread_B11 * torch.randn(embeds_BXH.shape, generator=draw)
        logits_BXV = model(inputs_embeds=embeds_BXH).logits[:, :-1]
        losses_BX = torch.nn.functional.cross_entropy(logits_BXV.transpose(1, 2), ids_BX[:, 1:], reduction="none")
        prompt_BX = positions_BX < torch.minimum(starts_B1, ends_B1)
        label_BX = (positions_BX >= starts_B1) & (positions_BX < ends_B1)
        return {"label": losses_BX[label_BX].mean(), "prompt": PROMPT_WEIGHT * losses_BX[prompt_BX].mean()}

    history = optimize(list(model.parameters()), loss_at, steps, peak_lr=2e-3, weight_decay=0.05, title="llm")
    return model.eval(), history
