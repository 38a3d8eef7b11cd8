"""All numbers of a report as one JSON value: accuracies with intervals, tests against the baseline, analyses.

Plain values: shares from 0 to 1, p-values, counts. Shapes as in `study.py`.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ds import __version__
from bridge_ds.errors import DataError
from bridge_ds.report import analysis
from bridge_ds.report.choose import study_advice
from bridge_ds.report.languages import GROUPS, find_language
from bridge_ds.report.statistics import (
    ALPHA,
    DRAWS,
    LEVEL,
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

__all__ = ["FORMAT", "study_results"]

FORMAT = 2
"""Of report.json."""
REPORTED: tuple[dict[str, Any], ...] = (
    {
        "task": "xnli",
        "group": "all",
        "what": "XNLI, average of its 15 languages",
        "values": {"last_layer": 0.7036, "transformer_softmax": 0.7150},
    },
    {
        "task": "sinhala_news",
        "group": "si",
        "what": "Sinhala news",
        "values": {"last_layer": 0.7166, "transformer_softmax": 0.7586},
    },
)
"""What arXiv 2508.09091 reports, with its own models; `task` is our task's name."""
Floats = NDArray[np.float64]


def study_results(study: Study, metric: str = "acc") -> dict[str, Any]:
    """The content of report.json.

    Args:
        metric: which choice counts as the answer, one of CHOICE_METRICS.

    Raises:
        DataError: a file lacks what the metric needs.
    """
    for name, system in study.systems.items():
        for (task, code), answers in system.answers.items():
            if metric not in answers.chosen:
                raise DataError(
                    f"the predictions of {name} for {task} in {code} do not hold what {metric} needs; found "
                    f"{', '.join(answers.chosen)}; choose one of these with --metric, or score the runs again."
                )
    tasks = {task: _task(study, task, metric) for task in study.tasks}
    return {
        "format": FORMAT,
        "version": __version__,
        "metric": metric,
        "level": LEVEL,
        "draws": DRAWS,
        "alpha": ALPHA,
        "baseline": study.baseline,
        "systems": list(study.systems),
        "rivals": study.rivals,
        "seeds": study.systems[(study.rivals or [study.baseline])[0]].seeds,
        "compared": [
            {
                "system": system.name,
                "seed": run.index.seed if run.index.system == "bridge" else None,
                "checkpoint": run.index.checkpoint,
                "run": run.folder.name,
            }
            for system in study.systems.values()
            for run in system.runs
        ],
        "slugs": _slugs([*study.systems, *study.tasks]),
        "tasks": tasks,
        **_compare_languages(study, metric),
        "averages": _compare_averages(tasks),
        "advice": study_advice(study, metric),
        "layers": analysis.layers(study),
        "reported": list(REPORTED),
    }


def _slugs(names: Sequence[str]) -> dict[str, str]:
    """Unique names for files and anchors: letters, digits and a few signs."""
    found: dict[str, str] = {}
    for name in names:
        slug = re.sub(r"[^A-Za-z0-9_]+", "-", name).strip("-") or "system"
        numbered = (f"{slug}-{number}" for number in itertools.count(2))
        found[name] = next(s for s in itertools.chain([slug], numbered) if s not in found.values())
    return found


def _task(study: Study, task: str, metric: str) -> dict[str, Any]:
    scored = study.tasks[task]
    languages = {}
    for code, counted in analysis.tokens(study, task).items():
        known = find_language(code)
        languages[code] = {"name": known.name, "group": known.group, "class": known.resource_class} | counted
    return {
        "kind": scored.kind,
        "labels": list(scored.labels),
        "chance": scored.chance,
        "languages": languages,
        **_accuracies(study, task, metric),
        "lengths": analysis.lengths(study, task, metric),
        "confusion": analysis.confusion(study, task, metric),
        "agreement": analysis.agreement(study, task),
        "examples": {name: analysis.examples(study, task, name, metric) for name in study.rivals},
    }


def _accuracies(study: Study, task: str, metric: str) -> dict[str, Any]:
    """Accuracy of every system in every language and group of languages of a task, and differences.

    Returns:
        `{"accuracy": {system: {language: E}}, "exact_match": {system: {language: share}}, "groups": {group:
        [language]}, "macro": {system: {group: E}}, "differences": {system: {language or group: E}}}` where E is
        `{"value", "low", "high", "seeds": [one value per seed]}`; differences are the system's accuracy minus the
        baseline's, with an uncorrected `"p"`.
    """
    draws = _TaskDraws(study, task, metric)
    languages = {code: [code] for code in study.languages(task)}
    groups = _groups(study.languages(task))
    return {
        "groups": groups,
        "accuracy": {n: {c: draws.estimate(n, codes) for c, codes in languages.items()} for n in study.systems},
        "exact_match": {
            name: {code: float(system.answers[task, code].right["exact_match"].mean()) for code in languages}
            for name, system in study.systems.items()
        },
        "macro": {n: {g: draws.estimate(n, codes) for g, codes in groups.items()} for n in study.systems},
        "differences": {
            n: {key: draws.difference(n, codes) for key, codes in (languages | groups).items()} for n in study.rivals
        },
    }


class _TaskDraws:
    """Right answers by system and language of one task, with the bootstrap draws that all estimates share."""

    def __init__(self, study: Study, task: str, metric: str) -> None:
        self.baseline, languages = study.baseline, study.languages(task)
        self.right = {
            (name, code): system.answers[task, code].right[metric].astype(float)
            for name, system in study.systems.items()
            for code in languages
        }
        # Languages of a parallel benchmark have the same samples; those are drawn together. One generator for each
        # set of languages that share samples: adding or removing others does not change their draws.
        self.draws: dict[tuple[str, str], Floats] = {}
        for codes in _sharing({code: set(study.questions[task, code].keys) for code in languages}):
            self._draw(study, task, codes)

    def _draw(self, study: Study, task: str, codes: Sequence[str]) -> None:
        own = {code: study.questions[task, code].keys for code in codes}
        keys = sorted(set().union(*own.values()))
        place = {key: number for number, key in enumerate(keys)}
        places = {code: [place[key] for key in own[code]] for code in codes}
        columns = [(name, code) for name in study.systems for code in codes]
        means_NC = np.zeros((len(keys), len(columns)))
        held_NC = np.zeros(means_NC.shape, dtype=bool)
        for number, column in enumerate(columns):
            means_NC[places[column[1]], number] = self.right[column].mean(axis=0)
            held_NC[places[column[1]], number] = True
        generator = np.random.default_rng(zlib.crc32("\n".join([task, *keys]).encode()))
        found = resampled_means(means_NC, DRAWS, generator, None if held_NC.all() else held_NC)
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
        return {"value": float(by_seed.mean()), "low": low, "high": high, "seeds": by_seed.tolist()}

    def difference(self, name: str, codes: Sequence[str]) -> dict[str, Any]:
        """Accuracy of a system minus that of the baseline, seed by seed and averaged over languages."""
        pairs = [self.right[name, code] - self.right[self.baseline, code] for code in codes]
        by_seed = np.mean([pair.mean(axis=1) for pair in pairs], axis=0)
        means = np.mean([self.draws[name, code] - self.draws[self.baseline, code] for code in codes], axis=0)
        low, high = self._interval(means, by_seed, (-1.0, 1.0))
        seeds, fewest = len(by_seed), min(pair.shape[1] for pair in pairs)
        of_seeds = float(np.var(by_seed, ddof=1)) / seeds if seeds > 1 else 0.0
        p = two_errors(float(by_seed.mean()), float(np.var(means)), of_seeds, seeds)
        # The number of samples limits the p-value, however alike their differences are.
        p = max(p, mcnemar_exact(0, fewest))
        for gap in (-1.0, 0.0, 1.0):
            if all((pair == gap).all() for pair in pairs):
                low, high = max(-1.0, gap - unseen_share(fewest)), min(1.0, gap + unseen_share(fewest))
        return {"value": float(by_seed.mean()), "low": low, "high": high, "seeds": by_seed.tolist(), "p": p}

    def _interval(self, means: Floats, by_seed: Floats, bounds: tuple[float, float]) -> tuple[float, float]:
        return interval(means, seed_errors(by_seed, DRAWS, np.random.default_rng(len(by_seed))), bounds)


def _sharing(keys: Mapping[str, set[str]]) -> list[list[str]]:
    """Languages by the samples that they share, directly or through others, in the order given."""
    blocks: list[tuple[list[str], set[str]]] = []
    for code, own in keys.items():
        joined = [block for block in blocks if not own.isdisjoint(block[1])]
        blocks = [block for block in blocks if block not in joined]
        codes = [c for block in joined for c in block[0]]
        blocks.append(([*codes, code], own.union(*(block[1] for block in joined))))
    return [codes for codes, _ in blocks]


def _groups(languages: Sequence[str]) -> dict[str, list[str]]:
    of = {code: find_language(code).group for code in languages}
    groups = {group: [code for code in languages if of[code] == group] for group in GROUPS}
    groups = {group: codes for group, codes in groups.items() if codes}
    others = [code for code in languages if of[code] != "English"]
    if 0 < len(others) < len(languages):
        groups["all but English"] = others
    return groups | {"all": list(languages)}


def _compare_averages(tasks: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The systems' differences from the baseline averaged over a task's languages, without English where possible.

    A family of its own: Holm's correction over all tasks and systems.

    Returns:
        `{system: {task: {"group", "p", "holm"}}}`.
    """
    found: dict[str, Any] = {}
    for task, values in tasks.items():
        group = "all but English" if "all but English" in values["groups"] else "all"
        for name, differences in values["differences"].items():
            found.setdefault(name, {})[task] = {"group": group, "p": differences[group]["p"]}
    _correct([test for by_task in found.values() for test in by_task.values()])
    return found


def _compare_languages(study: Study, metric: str) -> dict[str, Any]:
    """Every trained system against the baseline in every task and language, corrected for multiple tests.

    Two families, each with Holm's correction over all tasks, languages and systems of the report:

    - *checkpoints*: McNemar's exact test for each seed on the answers of two checkpoints of that seed (one p-value per
      seed). It says whether these two checkpoints differ on such samples, and nothing about training again.
    - *methods*, where there are several seeds: :func:`~bridge_ds.report.statistics.method_test`, one p-value for
      all seeds. Seeds never count as more samples.

    Returns:
        `{"families": {"checkpoints": tests, "methods": tests}, "tests": {system: {task: {language: T}}}}` with T
        `{"seeds": [{"seed", "better", "worse", "p", "holm"}], "method": {"p", "holm"} or None, "verdict"}`; the verdict
        (`better`, `worse`, `undecided`) is by the test of methods, with one seed by that of checkpoints.
    """
    found: dict[str, Any] = {name: {task: {} for task in study.tasks} for name in study.rivals}
    means: list[tuple[dict[str, Any], float]] = []
    for name, task in itertools.product(study.rivals, study.tasks):
        for code in study.languages(task):
            base, ours = (study.systems[s].answers[task, code].right[metric] for s in (study.baseline, name))
            differences_RN = ours.astype(float) - base
            seeds = []
            for seed, row in zip(study.systems[name].seeds, differences_RN, strict=True):
                better, worse = int((row > 0).sum()), int((row < 0).sum())
                seeds.append({"seed": seed, "better": better, "worse": worse, "p": mcnemar_exact(worse, better)})
            method = {"p": method_test(differences_RN)} if min(differences_RN.shape) > 1 else None
            test: dict[str, Any] = {"seeds": seeds, "method": method}
            found[name][task][code] = test
            means.append((test, float(differences_RN.mean())))
    checkpoints = [seed for test, _ in means for seed in test["seeds"]]
    methods = [test["method"] for test, _ in means if test["method"]]
    _correct(checkpoints)
    _correct(methods)
    for test, mean in means:
        deciding = test["method"] or test["seeds"][0]
        test["verdict"] = ("better" if mean > 0 else "worse") if deciding["holm"] < ALPHA else "undecided"
    return {"families": {"checkpoints": len(checkpoints), "methods": len(methods)}, "tests": found}


def _correct(tests: Sequence[dict[str, Any]]) -> None:
    for test, corrected in zip(tests, holm([test["p"] for test in tests]), strict=True):
        test["holm"] = corrected
