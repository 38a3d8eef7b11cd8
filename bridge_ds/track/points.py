"""Which numbers of a run become points in a tracker, and under which names. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bridge_ds.engine.hooks import StepRecord
from bridge_ds.metrics import current_names

__all__ = ["UNITS", "is_due", "numbers", "score_points"]

UNITS = {
    "loss": "nats a target token",
    "validation_loss": "nats a target token, on held-out samples",
    "validation_accuracy": "0 to 1, of their target tokens, the likeliest one is right",
    "validation_samples": "held-out samples, all ranks",
    "validation_tokens": "their target tokens",
    "validation_seconds": "s, beside the step's",
    "lr": "learning rate",
    "grad_norm": "global norm before clipping",
    "target_tokens": "LLM tokens with a loss in the step, all ranks",
    "source_tokens": "encoder tokens in the step, all ranks",
    "consumed": "samples since the start of the run",
    "seconds": "s, wall time of the step",
    "target_tokens_per_s": "tokens/s, all ranks",
    "source_tokens_per_s": "tokens/s, all ranks",
    "padding_share": "0 to 1, of all positions in source, prompt and target",
    "data_wait_share": "0 to 1, of the step's wall time, the slowest rank",
    "peak_memory_gib": "GiB, the fullest rank",
    "layer_weights_entropy": "nats",
    "layer_weight/NN": "0 to 1, of encoder layer NN",
    "bad_samples/KIND": "samples left out since the start of the run",
    "skipped_steps": "steps since the start of the run",
    "accuracy_percent/TASK/LANGUAGE/SYSTEM_METRIC": "%",
}
"""Units of the metrics; shown in the description of each run."""


def is_due(record: StepRecord, every: int, total: int) -> bool:
    """Whether a step is logged: by its record alone, so that all attempts agree."""
    step = record["step"]
    return step == 1 or step == total or step % max(1, every) == 0 or "validation_loss" in record


def numbers(record: StepRecord) -> dict[str, float]:
    """The single numbers of a record under the names of the metrics; without nulls, texts and per-rank lists."""
    found = {}
    for key, value in record.items():
        if key in ("step", "time"):
            continue
        if key == "layer_weights" and value:
            width = max(2, len(str(len(value))))
            named = {f"layer_weight/{layer:0{width}}": weight for layer, weight in enumerate(value, start=1)}
        elif isinstance(value, dict):
            named = {f"{key}/{name}": item for name, item in value.items()}
        else:
            named = {key: value}
        found.update({k: float(v) for k, v in named.items() if isinstance(v, int | float) and not isinstance(v, bool)})
    return found


def score_points(results: Mapping[str, Any]) -> dict[str, float]:
    """The content of evaluation.json as metrics, in percent."""
    found = {}
    for system, tasks in current_names(dict(results)).items():
        if system == "chance":
            continue
        for task, languages in tasks.items():
            for language, score in languages.items():
                for measure in ("acc", "exact_match"):
                    found[f"accuracy_percent/{task}/{language}/{system}_{measure}"] = 100 * score[measure]
    return found
