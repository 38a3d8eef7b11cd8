"""Measure the two models: the accuracy of the language model alone, and how well each layer of the encoder aligns."""

from __future__ import annotations

from typing import Any

from .languages import LANGUAGES
from .parallel import ParallelText
from .tasks import LABELS, examples

__all__ = ["alignment_by_layer", "label_accuracy"]


def label_accuracy(model: Any, tokenizer: Any, task: str, language: str, count: int) -> float:
    """Share of ``count`` test prompts whose right label is the likeliest (its log-probabilities summed, with EOS)."""
    import torch

    rows = examples(task, language, "test", count)
    labels = [
        [*ids, tokenizer.eos_token_id] for ids in tokenizer(list(LABELS[task]), add_special_tokens=False).input_ids
    ]
    right = 0
    for start in range(0, count, 50):
        batch = rows[start : start + 50]
        sources = tokenizer([row.source for row in batch], add_special_tokens=False).input_ids
        pairs = [([tokenizer.bos_token_id, *source], label) for source in sources for label in labels]
        length = max(len(source) + len(label) for source, label in pairs)
        ids_BX = torch.tensor(
            [source + label + [tokenizer.pad_token_id] * (length - len(source) - len(label)) for source, label in pairs]
        )
        with torch.no_grad():
            logs_BXV = model(input_ids=ids_BX).logits.float().log_softmax(-1)
        scores_B = torch.stack(
            [
                logs_BXV[row, len(source) - 1 : len(source) - 1 + len(label)]
                .gather(-1, torch.tensor(label)[:, None])
                .sum()
                for row, (source, label) in enumerate(pairs)
            ]
        )
        guesses_B = scores_B.view(len(batch), len(labels)).argmax(-1)
        right += sum(int(guess) == row.label for guess, row in zip(guesses_B, batch, strict=True))
    return right / count


def alignment_by_layer(model: Any, tokenizer: Any, count: int = 60) -> dict[str, list[float]]:
    """How alike parallel test prompts are, layer by layer (the first entry is the embeddings).

    ``retrieval`` is the share of prompts in constructed languages whose nearest English prompt (cosine of the
    centered mean states) has the same meaning, among ``count`` prompts of each task. ``between_languages`` is the
    share of the spread of words' directions that lies between languages (0 if they agree, 0.83 if six have
    nothing in common). ``rms`` is the size of the states.
    """
    import torch

    text = ParallelText(tokenizer, count, seed=1, split="test")
    batch = text.batch([(meaning, LANGUAGES) for meaning in text.meanings])
    with torch.no_grad():
        layers = model(input_ids=batch.ids_NS, attention_mask=batch.mask_NS, output_hidden_states=True).hidden_states
    found: dict[str, list[float]] = {"retrieval": [], "between_languages": [], "rms": []}
    mask_NS1 = batch.mask_NS[..., None]
    for states_NSD in layers:
        means_ND = (states_NSD * mask_NS1).sum(1) / mask_NS1.sum(1)
        means_ND = torch.nn.functional.normalize(means_ND - means_ND.mean(0), dim=-1)
        means_MKD = means_ND.view(len(text.meanings), len(LANGUAGES), -1)
        nearest_MK = (means_MKD[:, 1:] @ means_MKD[:, 0].T).argmax(-1)
        right = (nearest_MK == torch.arange(len(text.meanings))[:, None]).float().mean()
        directions_WKD = torch.nn.functional.normalize(states_NSD.flatten(0, 1)[batch.pairs_WK], dim=-1)
        between = (directions_WKD - directions_WKD.mean(1, keepdim=True)).pow(2).mean()
        total = (directions_WKD - directions_WKD.mean((0, 1))).pow(2).mean()
        found["retrieval"].append(round(float(right), 3))
        found["between_languages"].append(round(float(between / total), 3))
        found["rms"].append(round(float(states_NSD[batch.mask_NS.bool()].pow(2).mean().sqrt()), 2))
    return found
