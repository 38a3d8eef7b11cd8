"""How accurate each system of a study is, how sure that is, and whether it differs from the baseline.

Everything here is plain values for report.json: shares from 0 to 1, p-values, counts. Shapes as in `study.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ds.evaluation.predictions import NORMALIZATIONS
from bridge_ds.report.languages import GROUPS, find_language
from bridge_ds.report.statistics import (
    holm,
    interval,
    mcnemar_exact,
    method_test,
    resampled_means,
    seed_errors,
    two_errors,
    unseen_share,
)
from bridge_ds.report.study import Study

__all__ = ["ALPHA", "DRAWS", "accuracies", "compare_all", "compare_averages"]

DRAWS = 2000
"""Bootstrap draws."""
ALPHA = 0.05
"""A corrected p-value below it is a finding."""
Floats = NDArray[np.float64]


def accuracies(study: Study, task: str, scores: str) -> dict[str, Any]:
    """Accuracy of every system in every language of a task and in groups of languages, and differences.

    Args:
        scores: one of NORMALIZATIONS.

    Returns:
        `{"accuracy": {system: {language: E}}, "exact": {system: {language: share}}, "groups": {group: [language]},
        "macro": {system: {group: E}}, "differences": {system: {language or group: E}}}` where E is
        `{"value", "low", "high", "seeds": [a value a seed]}`; differences are the system's accuracy less that of the
        baseline, with a `"p"` that no correction was made to.
    """
    cells = _Cells(study, task, scores)
    groups = _groups(study.languages(task))
    found: dict[str, Any] = {"groups": groups, "accuracy": {}, "exact": {}, "macro": {}, "differences": {}}
    for name, system in study.systems.items():
        found["accuracy"][name] = {code: cells.estimate(name, [code]) for code in cells.languages}
        found["macro"][name] = {group: cells.estimate(name, codes) for group, codes in groups.items()}
        found["exact"][name] = {
            code: float(system.answers[task, code].exact_RN.mean()) for code in study.languages(task)
        }
    for name in study.rivals:
        sets = {code: [code] for code in cells.languages} | groups
        found["differences"][name] = {key: cells.difference(name, codes) for key, codes in sets.items()}
    return found


def compare_averages(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The systems' differences from the baseline averaged over a task's languages, English left out where it can be.

    A family of its own: Holm's correction over all tasks and systems. The p-values weigh the samples' error (the
    variance of the bootstrap) and the seeds', see :func:`~bridge_ds.report.statistics.two_errors`.

    Args:
        tasks: name -> what :func:`accuracies` gave.

    Returns:
        `{system: {task: {"group", "p", "holm"}}}`.
    """
    found: dict[str, Any] = {}
    for task, values in tasks.items():
        group = "all but English" if "all but English" in values["groups"] else "all"
        for name, differences in values["differences"].items():
            found.setdefault(name, {})[task] = {"group": group, "p": differences[group]["p"]}
    family = [test for by_task in found.values() for test in by_task.values()]
    for test, corrected in zip(family, holm([test["p"] for test in family]), strict=True):
        test["holm"] = corrected
    return found


class _Cells:
    """Right answers by system and language of one task, with the bootstrap draws that all estimates share."""

    def __init__(self, study: Study, task: str, scores: str) -> None:
        self.task, self.baseline, self.languages = task, study.baseline, study.languages(task)
        place = NORMALIZATIONS.index(scores)
        self.right = {
            (name, code): system.answers[task, code].right_KRN[place].astype(float)
            for name, system in study.systems.items()
            for code in self.languages
        }
        # Languages of a parallel benchmark ask the same samples; those are drawn together. A generator for each
        # set of samples: a language more or less does not change the draws of the others.
        blocks: dict[tuple[str, ...], list[str]] = {}
        for code in self.languages:
            blocks.setdefault(tuple(sorted(study.questions[task, code].keys)), []).append(code)
        self.draws: dict[tuple[str, str], Floats] = {}
        for keys, codes in blocks.items():
            order = {code: np.argsort(study.questions[task, code].keys) for code in codes}
            columns = [(name, code) for name in study.systems for code in codes]
            means = [self.right[column].mean(axis=0)[order[column[1]]] for column in columns]
            generator = np.random.default_rng(zlib.crc32("\n".join([task, *keys]).encode()))
            found = resampled_means(np.stack(means, axis=1), DRAWS, generator)
            self.draws |= {column: found[:, number] for number, column in enumerate(columns)}

    def estimate(self, name: str, codes: Sequence[str]) -> dict[str, Any]:
        """Accuracy of a system, averaged over languages."""
        by_seed = np.mean([self.right[name, code].mean(axis=1) for code in codes], axis=0)
        means = np.mean([self.draws[name, code] for code in codes], axis=0)
        low, high = self._interval(means, by_seed, (0.0, 1.0))
        rare = unseen_share(min(self.right[name, code].shape[1] for code in codes))
        if all(self.right[name, code].all() for code in codes):
            low = 1 - rare
        elif not any(self.right[name, code].any() for code in codes):
            high = rare
        return _estimate(by_seed, low, high)

    def difference(self, name: str, codes: Sequence[str]) -> dict[str, Any]:
        """Accuracy of a system less that of the baseline, seed by seed and averaged over languages."""
        pairs = [self.right[name, code] - self.right[self.baseline, code] for code in codes]
        by_seed = np.mean([pair.mean(axis=1) for pair in pairs], axis=0)
        means = np.mean([self.draws[name, code] - self.draws[self.baseline, code] for code in codes], axis=0)
        low, high = self._interval(means, by_seed, (-1.0, 1.0))
        seeds = len(by_seed)
        of_seeds = float(np.var(by_seed, ddof=1)) / seeds if seeds > 1 else 0.0
        p = two_errors(float(by_seed.mean()), float(np.var(means)), of_seeds, seeds)
        # So many samples can at most say so much, however alike their differences are.
        p = max(p, mcnemar_exact(0, min(pair.shape[1] for pair in pairs)))
        if not any(pair.any() for pair in pairs):
            rare = unseen_share(min(pair.shape[1] for pair in pairs))
            low, high = -rare, rare
        return _estimate(by_seed, low, high) | {"p": p}

    def _interval(self, means: Floats, by_seed: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
        errors = seed_errors(by_seed, DRAWS, np.random.default_rng(len(by_seed)))
        return interval(means, errors, bounds)


def _estimate(by_seed: Floats, low: float, high: float) -> dict[str, Any]:
    return {"value": float(by_seed.mean()), "low": low, "high": high, "seeds": [float(value) for value in by_seed]}


def _groups(languages: Sequence[str]) -> dict[str, list[str]]:
    of = {code: find_language(code).group for code in languages}
    groups = {group: [code for code in languages if of[code] == group] for group in GROUPS}
    groups = {group: codes for group, codes in groups.items() if codes}
    others = [code for code in languages if of[code] != "English"]
    if 0 < len(others) < len(languages):
        groups["all but English"] = others
    return groups | {"all": list(languages)}


def compare_all(study: Study, scores: str) -> dict[str, Any]:
    """Every trained system against the baseline in every task and language, corrected for how many tests these are.

    Two families, each with Holm's correction over all tasks, languages and systems of the report:

    - *checkpoints*: McNemar's exact test for each seed on the answers of two checkpoints of that seed (one p-value a
      seed; the family has that many more). It says whether these two checkpoints differ on such samples, and nothing
      of training again.
    - *methods*, where there are several seeds: :func:`~bridge_ds.report.statistics.method_test`, one p-value for
      all seeds. Seeds never count as more samples.

    Returns:
        `{"families": {"checkpoints": tests, "methods": tests}, "tests": {system: {task: {language: T}}}}` with T
        `{"seeds": [{"seed", "better", "worse", "p", "holm"}], "method": {"p", "holm"} or None, "verdict"}`; the verdict
        (`better`, `worse`, `undecided`) is that of the methods, with one seed that of the checkpoints.
    """
    place = NORMALIZATIONS.index(scores)
    found: dict[str, Any] = {}
    checkpoints: list[dict[str, Any]] = []
    methods: list[dict[str, Any]] = []
    for name in study.rivals:
        for task in study.tasks:
            for code in study.languages(task):
                one, other = (study.systems[system].answers[task, code] for system in (study.baseline, name))
                differences = other.right_KRN[place].astype(float) - one.right_KRN[place]
                cell = _test(differences, study.systems[name].seeds)
                checkpoints += cell["seeds"]
                methods += [cell["method"]] if cell["method"] else []
                found.setdefault(name, {}).setdefault(task, {})[code] = cell
    for family in (checkpoints, methods):
        for test, corrected in zip(family, holm([test["p"] for test in family]), strict=True):
            test["holm"] = corrected
    for systems in found.values():
        for cell in (cell for languages in systems.values() for cell in languages.values()):
            deciding = cell["method"] or cell["seeds"][0]
            better = cell.pop("mean") > 0
            cell["verdict"] = ("better" if better else "worse") if deciding["holm"] < ALPHA else "undecided"
    return {"families": {"checkpoints": len(checkpoints), "methods": len(methods)}, "tests": found}


def _test(differences_RN: Floats, seeds: Sequence[int]) -> dict[str, Any]:
    counts = [(int((row > 0).sum()), int((row < 0).sum())) for row in differences_RN]
    tests = [
        {"seed": seed, "better": better, "worse": worse, "p": mcnemar_exact(worse, better)}
        for seed, (better, worse) in zip(seeds, counts, strict=True)
    ]
    several = min(differences_RN.shape) > 1
    method = {"p": method_test(differences_RN)} if several else None
    return {"seeds": tests, "method": method, "mean": float(differences_RN.mean())}
