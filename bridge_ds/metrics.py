"""Names of the accuracies: those of lm-evaluation-harness where the definition is the same.

Used by evaluation.json, predictions, MLflow, the model card and the report. Files from before these names are read
through :func:`metric_name` and :func:`current_names`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge_ds.errors import DataError
from bridge_ds.typed import CLOSED, Count, Share, typed_object

__all__ = ["CHECKPOINT", "CHOICE_METRICS", "METRICS", "current_names", "metric_name", "read_results", "systems_of"]

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
CHECKPOINT = "checkpoint"
"""Key of evaluation.json beside the systems: name of the folder whose weights were scored."""
_OLD = {
    "likelihood": "acc", "sum": "acc", "exact": "exact_match", "mean": "acc_norm_tokens",
    "calibrated": "acc_mutual_info",
}  # fmt: skip


@dataclass(frozen=True)
class _Score:
    """One system in one language."""

    acc: Share | None = None
    exact_match: Share | None = None
    acc_norm_tokens: Share | None = None
    acc_mutual_info: Share | None = None
    likelihood: Share | None = None
    sum: Share | None = None
    exact: Share | None = None
    mean: Share | None = None
    calibrated: Share | None = None
    n: Count | None = None


@dataclass(frozen=True)
class _Results:
    """evaluation.json."""

    __pydantic_config__ = CLOSED
    bridge: dict[str, dict[str, _Score]] = field(default_factory=dict)
    finetuned: dict[str, dict[str, _Score]] = field(default_factory=dict)
    llm: dict[str, dict[str, _Score]] = field(default_factory=dict)
    chance: dict[str, Share | None] = field(default_factory=dict)
    checkpoint: str = ""


def read_results(run: Path) -> tuple[dict[str, Any], str]:
    """evaluation.json of a run folder under today's names; empty if there is none.

    Returns:
        the scores, and the name of the checkpoint that they are of; empty = an older version wrote them.

    Raises:
        DataError: it cannot be read, or holds something else than accuracies.
    """
    path = run / "evaluation.json"
    try:
        found = typed_object(path, _Results)
        return current_names(found), str(found.get(CHECKPOINT, ""))
    except FileNotFoundError:
        return {}, ""
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        why = str(error)
    raise DataError(f"{path} {why}; expected the accuracies of a run; score it again: bridge-ds evaluate --run {run}.")


def metric_name(name: str) -> str:
    """Today's name of a metric that is given by its name of today or before."""
    return _OLD.get(name, name)


def current_names(results: dict[str, Any]) -> dict[str, Any]:
    """The scores of evaluation.json, of whatever version, with today's names of metrics; those of today unchanged."""
    return {
        system: {
            task: {code: {metric_name(key): value for key, value in score.items()} for code, score in languages.items()}
            for task, languages in tasks.items()
        }
        if system != "chance"
        else tasks
        for system, tasks in results.items()
        if system != CHECKPOINT
    }


def systems_of(results: Mapping[str, Any]) -> tuple[list[str], str]:
    """The systems of evaluation.json's content, the LLM alone first; and the one that has answers to all: the LLM alone
    may be left out somewhere (`evaluation.llm_from`)."""
    systems = [name for name in ("llm", "bridge") if name in results]
    systems += [name for name in results if name not in (*systems, "chance")]
    return systems, max(systems, key=lambda name: sum(map(len, results[name].values())))
