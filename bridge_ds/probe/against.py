"""How well a probe orders languages as trained bridges do: rank correlations over languages.

Shapes: N languages, B draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ds.errors import ConfigError
from bridge_ds.metrics import read_results
from bridge_ds.probe.measure import LanguageProbe
from bridge_ds.probe.reader import FUSION, MAPPING
from bridge_ds.report.languages import find_language
from bridge_ds.report.statistics import LEVEL
from bridge_ds.tasks.flores import find_variety

__all__ = ["compared", "lines", "scored", "spearman"]

Floats = NDArray[np.float64]
_LEAST = 5
_METRIC = "acc"
_DRAWS = 10_000


def scored(runs: Sequence[Path], task: str, data: str, codes: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The task, and by language the mean accuracy (`acc`) of the runs' bridges, English left out.

    Args:
        runs: run folders with an evaluation.json.
        task: which; empty = `data` if the runs have it, else their only one.
        data: what is probed.
        codes: languages that are probed; they may be the task's other names of its languages (`sin_Sinh`, `si`).

    Raises:
        ConfigError: a run has no accuracy on the task, or fewer than five languages are in common.
        DataError: an evaluation.json cannot be read.
    """
    found = {run: read_results(run)[0].get("bridge", {}) for run in runs}
    first = found[runs[0]]
    task = task or (data if data in first else next(iter(first)) if len(first) == 1 else "")
    for run, tasks in found.items():
        if task not in tasks:
            raise ConfigError(
                f"--against {run} has accuracies on {', '.join(tasks) or 'no task'}; expected {task or 'one'}; name "
                "one with --task, or score the run: bridge-ds evaluate."
            )
    named = {code: find_variety(code, first[task]) or code for code in codes}
    accuracy = {
        code: fmean(tasks[task][name][_METRIC] for tasks in found.values())
        for code, name in named.items()
        if find_language(code).group != "English"
        and all(tasks[task].get(name, {}).get(_METRIC) is not None for tasks in found.values())
    }
    if len(accuracy) < _LEAST:
        raise ConfigError(
            f"--against: probe and accuracies have {len(accuracy)} languages in common, English aside; expected "
            f"{_LEAST} or more; probe the languages that were scored."
        )
    return task, accuracy


def compared(found: Sequence[LanguageProbe], runs: Sequence[Path], task: str, data: str) -> dict[str, Any]:
    """Spearman's rank correlation of each measurement with the runs' mean accuracy (`acc`), English left out.

    Args:
        found: the probe.
        runs: see :func:`scored`; likewise the others.
        task: see `runs`.
        data: see `runs`.

    Returns:
        runs, task, metric, `languages` (codes of the probe), and `of`: measurement -> rho, low, high.

    Raises:
        ConfigError: as :func:`scored`; likewise DataError.
    """
    task, accuracy = scored(runs, task, data, [of.code for of in found])
    common = [of for of in found if of.code in accuracy]
    right_N = np.array([accuracy[of.code] for of in common])
    measured = {
        "retrieval, best layer": [of.best for of in common],
        "retrieval, last layer": [of.last for of in common],
        "retrieval, mean of layers": [of.mean for of in common],
        "letters lost": [of.lost_letters for of in common],
        "unknown tokens": [of.unknown_tokens for of in common],
        "tokens for an English token": [of.tokens_per_english_token for of in common],
    }
    for place in (FUSION, MAPPING):
        if all(place in of.retrieval for of in common):
            measured[f"retrieval, {place}"] = [of.retrieval[place].both for of in common]
    of_each: dict[str, Any] = {}
    for name, values in measured.items():
        rho, low, high = spearman(np.array(values), right_N)
        of_each[name] = {"rho": rho, "low": low, "high": high}
    head = {"runs": [str(run) for run in runs], "task": task, "metric": _METRIC}
    return {**head, "languages": [of.code for of in common], "of": of_each}


def spearman(first_N: Floats, second_N: Floats, seed: int = 0) -> tuple[float | None, float | None, float | None]:
    """Rank correlation, and its 95 % percentile interval by bootstrap over the N pairs; None = one is constant.

    Draws in which one is constant are left out.

    Source: Spearman 1904 (American Journal of Psychology 15); Efron 1979 (Annals of Statistics 7).
    """
    from scipy.stats import rankdata

    def rho(first_BN: Floats, second_BN: Floats) -> Floats:
        ranks = [rankdata(each, axis=1) - (each.shape[1] + 1) / 2 for each in (first_BN, second_BN)]
        size_B = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
        with np.errstate(invalid="ignore"):
            found: Floats = np.clip((ranks[0] * ranks[1]).sum(1) / size_B, -1, 1)
        return found[size_B > 0]

    whole = rho(first_N[None], second_N[None])
    if not len(whole):
        return None, None, None
    drawn_BN = np.random.default_rng(seed).integers(len(first_N), size=(_DRAWS, len(first_N)))
    tails = 50 * (1 - LEVEL), 50 * (1 + LEVEL)
    low, high = np.percentile(rho(first_N[drawn_BN], second_N[drawn_BN]), tails)
    return float(whole[0]), float(low), float(high)


def lines(against: Mapping[str, Any]) -> list[str]:
    """For the terminal."""
    count = len(against["languages"])
    runs = "one run" if len(against["runs"]) == 1 else f"mean of {len(against['runs'])} runs"
    found = [
        f"Spearman's rank correlation with the bridge's accuracy ({against['metric']}) on {against['task']}, {runs},",
        f"over {count} languages without English; 95 % interval by bootstrap over languages:",
    ]
    for name, of in against["of"].items():
        value = "the same everywhere" if of["rho"] is None else f"{of['rho']:5.2f} [{of['low']:.2f}, {of['high']:.2f}]"
        found.append(f"  {name:<28} {value}")
    return found
