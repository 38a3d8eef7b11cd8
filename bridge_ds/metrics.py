"""Names of the accuracies: those of lm-evaluation-harness where the definition is the same.

Used by evaluation.json, predictions, MLflow, the model card and the report. Files from before these names are read
through :func:`metric_name` and :func:`current_names`.
"""

from __future__ import annotations

from typing import Any

__all__ = ["CHOICE_METRICS", "METRICS", "current_names", "metric_name"]

METRICS: dict[str, str] = {
    "acc": "the choice with the highest log-probability is right; for a number: the number is right",
    "exact_match": "greedy decoding writes exactly the right answer; for a number: the number is right",
    "acc_norm_tokens": "the choice with the highest log-probability per LLM token is right",
    "acc_mutual_info": "the choice whose log-probability rises most over that after the empty prompt is right",
}
"""Name -> what it counts, as a share of samples (0 to 1).

`acc_norm_tokens` is not lm-evaluation-harness's `acc_norm`, which divides by characters (`acc_bytes`: by bytes): it
divides by the LLM's tokens, the end token included. `acc_mutual_info` is log p(choice | prompt) - log p(choice | empty
prompt) as there, but the empty prompt is the task's prompt with its fields left empty (PMI_DC of Holtzman et al. 2021,
arXiv 2104.08315), where the harness leaves the whole context empty.
"""
CHOICE_METRICS = ("acc", "acc_norm_tokens", "acc_mutual_info")
"""Ways to pick an answer by the log-probabilities of the choices."""
_OLD = {
    "likelihood": "acc", "sum": "acc", "exact": "exact_match", "mean": "acc_norm_tokens",
    "calibrated": "acc_mutual_info",
}  # fmt: skip


def metric_name(name: str) -> str:
    """Today's name of a metric that is given by its name of today or before."""
    return _OLD.get(name, name)


def current_names(results: dict[str, Any]) -> dict[str, Any]:
    """The content of evaluation.json, of whatever version, with today's names of metrics; a file of today unchanged."""
    return {
        system: {
            task: {code: {metric_name(key): value for key, value in score.items()} for code, score in languages.items()}
            for task, languages in tasks.items()
        }
        if system != "chance"
        else tasks
        for system, tasks in results.items()
    }
