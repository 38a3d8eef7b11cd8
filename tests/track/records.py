"""Records as the engine makes them."""

from __future__ import annotations

import math
from typing import Any


def record(step: int, total: int = 20, layers: int = 4) -> dict[str, Any]:
    """The numbers of one step."""
    raw = [math.exp(step / total * math.sin(layer)) for layer in range(layers)]
    weights = [value / sum(raw) for value in raw]
    return {
        "step": step,
        "loss": 2.0 / step,
        "lr": 1e-4,
        "grad_norm": 0.5,
        "target_tokens": 100,
        "source_tokens": 400,
        "ids_hash": f"{step:08x}",
        "consumed": 8 * step,
        "seconds": 0.5,
        "target_tokens_per_s": 200.0,
        "source_tokens_per_s": 800.0,
        "padding_share": 0.1,
        "data_wait_share": 0.01,
        "peak_memory_gib": 1.25,
        "peak_memory_gib_by_rank": [1.25, 1.0],
        "layer_weights": weights,
        "layer_weights_entropy": -sum(weight * math.log(weight) for weight in weights),
        "skipped_steps": 0,
        "skipped": False,
        "truncated": {"source": 1, "prompt": 0, "target": 0},
    }


def results() -> dict[str, Any]:
    """What evaluation.json holds, for two tasks and three languages."""
    languages = ("en", "qaa", "qab")

    def system(accuracy: float) -> dict[str, Any]:
        score = {"acc": accuracy, "exact_match": accuracy / 2, "n": 100}
        return {task: {language: dict(score) for language in languages} for task in ("news", "reviews")}

    return {"bridge": system(0.75), "llm": system(0.25), "chance": {"news": 0.2, "reviews": 0.2}}
