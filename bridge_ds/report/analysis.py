"""What a report shows beside accuracy: tokens, lengths, confusion, metrics, layers, examples.

Plain values for report.json. Shapes as in `study.py`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge_ds.metrics import CHOICE_METRICS
from bridge_ds.report.cells import Questions, StudyAnswers
from bridge_ds.report.languages import find_language
from bridge_ds.report.study import Study

__all__ = ["BINS", "agreement", "confusion", "examples", "layers", "lengths", "tokens"]

BINS = 4
"""Bins of source length."""
_LABELS = 50
"""Most labels of a confusion matrix: 10,000 would fill the memory and no page."""
EXAMPLES = 3
"""Examples in each direction, for each task and system."""


def tokens(study: Study, task: str) -> dict[str, dict[str, Any]]:
    """By language: samples, encoder tokens, tokens per word and per character, share of unknown tokens.

    Special tokens of a source are counted, as the encoder reads them too. `per_word` is none where the script has no
    spaces between words; all three ratios are none where the files have no token counts.
    """
    found = {}
    for code in study.languages(task):
        asked = study.questions[task, code]
        count, unknown = int(asked.tokens_N.sum()), int(asked.unknown_N.sum())
        characters = sum(map(len, asked.sources))
        words = sum(len(source.split()) for source in asked.sources)
        found[code] = {
            "samples": len(asked.keys),
            "tokens": count,
            "per_word": count / words if count and words and find_language(code).has_spaces else None,
            "per_character": count / characters if count and characters else None,
            "unknown": unknown / count if count else None,
        }
    return found


def lengths(study: Study, task: str, metric: str) -> dict[str, Any]:
    """Accuracy in quarters of the samples by the length of their sources, the shortest first.

    The quarters are taken within each language, so that a language of long sources does not fill the last; accuracies
    are averaged over languages, the same ones for every quarter.

    Returns:
        `{"unit": "encoder tokens" or "characters", "bins": [{"from", "to", "samples"}], "accuracy": {system: [share or
        None]}}`; from and to are the shortest and longest source of any language in it.
    """
    has_tokens = all(study.questions[task, code].tokens_N.all() for code in study.languages(task))
    bins: list[dict[str, Any]] = [{"from": None, "to": None, "samples": 0} for _ in range(BINS)]
    found: dict[str, list[list[float]]] = {name: [[] for _ in range(BINS)] for name in study.systems}
    for code in study.languages(task):
        asked = study.questions[task, code]
        sizes = asked.tokens_N if has_tokens else np.array([len(source) for source in asked.sources])
        edges = np.quantile(sizes, np.arange(1, BINS) / BINS)
        bin_N = np.searchsorted(edges, sizes, side="left")
        if len(set(bin_N.tolist())) < BINS:  # too many sources of one length
            continue
        for number, part in enumerate(bins):
            inside = bin_N == number
            low, high = int(sizes[inside].min()), int(sizes[inside].max())
            part["from"] = low if part["from"] is None else min(low, part["from"])
            part["to"] = high if part["to"] is None else max(high, part["to"])
            part["samples"] += int(inside.sum())
            for name, system in study.systems.items():
                found[name][number].append(float(system.answers[task, code].right[metric][:, inside].mean()))
    accuracy = {name: [float(np.mean(part)) if part else None for part in parts] for name, parts in found.items()}
    return {"unit": "encoder tokens" if has_tokens else "characters", "bins": bins, "accuracy": accuracy}


def confusion(study: Study, task: str, metric: str) -> dict[str, dict[str, list[list[float]]]]:
    """`{system: {language: matrix}}`: samples of each label (row) that got each answer (column), mean over seeds.

    The last column counts samples without an answer (a score was NaN). Empty for tasks without labels of their own, or
    with more than 50.
    """
    labels = len(study.tasks[task].labels)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name, system in study.systems.items() if 0 < labels <= _LABELS else ():
        for code in study.languages(task):
            chosen_RN = system.answers[task, code].chosen[metric]
            matrix = np.zeros((labels, labels + 1))
            asked_RN = np.broadcast_to(study.questions[task, code].labels_N, chosen_RN.shape)
            np.add.at(matrix, (asked_RN.ravel(), chosen_RN.ravel()), 1 / len(chosen_RN))
            found.setdefault(name, {})[code] = np.round(matrix, 6).tolist()
    return found


def agreement(study: Study, task: str) -> dict[str, dict[str, Any]]:
    """By system: accuracy by each of CHOICE_METRICS, and how often two of them choose the same, mean over languages.

    Returns:
        `{system: {"accuracy": {metric: share}, "same": {"acc, acc_norm_tokens": share, ...}}}`; only metrics that
        every language's file allows. Empty for tasks in which nothing is chosen.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, system in study.systems.items() if study.tasks[task].kind != "number" else ():
        answers = [system.answers[task, code] for code in study.languages(task)]
        metrics = [metric for metric in CHOICE_METRICS if all(metric in part.chosen for part in answers)]
        found[name] = {
            "accuracy": {metric: float(np.mean([a.right[metric].mean() for a in answers])) for metric in metrics},
            "same": {
                f"{one}, {other}": float(np.mean([(a.chosen[one] == a.chosen[other]).mean() for a in answers]))
                for one, other in itertools.combinations(metrics, 2)
            },
        }
    return found


def layers(study: Study) -> dict[str, dict[str, Any]]:
    """By fusion: mean weight of each encoder layer in each language, over seeds and the tasks that have the language.

    Returns:
        `{system: {"languages": {code: [L]}, "constant": whether all languages have the same}}`.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, system in study.systems.items():
        rows: dict[str, list[list[float]]] = {}
        for run in system.runs:
            for task in study.tasks:
                for code, weights in run.index.tasks[task].layer_weights.items():
                    if weights and np.isfinite(weights).all():
                        rows.setdefault(code, []).append(weights)
        if not rows or len({len(weights) for group in rows.values() for weights in group}) != 1:
            continue
        means = {code: np.mean(group, axis=0) for code, group in rows.items()}
        first = next(iter(means.values()))
        constant = all(np.allclose(weights, first, atol=1e-3) for weights in means.values())
        found[name] = {"languages": {code: m.tolist() for code, m in means.items()}, "constant": constant}
    return found


def examples(study: Study, task: str, name: str, metric: str) -> dict[str, list[dict[str, Any]]]:
    """Samples on which a system and the baseline differ most: `lost` (the baseline was right) and `won`.

    First those where most seeds differ, then those with the widest gap between the two systems' margins (score of the
    right choice minus that of the best wrong one); each language once before any twice.
    """
    rows: list[tuple[float, float, str, int]] = []
    for code in study.languages(task):
        base, ours = (study.systems[system].answers[task, code] for system in (study.baseline, name))
        gaps_N = (ours.right[metric].astype(float) - base.right[metric]).mean(axis=0)
        margins_N = ours.margins_RN.mean(axis=0) - base.margins_RN.mean(axis=0)
        rows += [(float(gaps_N[n]), float(margins_N[n]), code, int(n)) for n in np.flatnonzero(gaps_N)]
    found = {}
    for key, sign in (("lost", -1), ("won", 1)):
        ranked = sorted((row for row in rows if sign * row[0] > 0), key=lambda row: (-sign * row[0], -sign * row[1]))
        firsts: dict[str, tuple[float, float, str, int]] = {}
        for row in ranked:
            firsts.setdefault(row[2], row)
        chosen = [*firsts.values(), *(row for row in ranked if row != firsts[row[2]])][:EXAMPLES]
        found[key] = [_example(study, task, name, code, n, metric) | {"margin": m} for _, m, code, n in chosen]
    return found


def _example(study: Study, task: str, name: str, code: str, n: int, metric: str) -> dict[str, Any]:
    asked = study.questions[task, code]
    base, ours = (study.systems[system].answers[task, code] for system in (study.baseline, name))
    return {
        "language": code,
        "key": asked.keys[n],
        "source": asked.sources[n],
        "right": asked.answers[n],
        "baseline": _texts(base, asked, n, metric),
        "system": _texts(ours, asked, n, metric),
    }


def _texts(answers: StudyAnswers, asked: Questions, n: int, metric: str) -> Sequence[str]:
    """The answer of each seed: the text of the chosen choice, or what was generated."""
    choices = asked.choices[n]
    chosen_R = answers.chosen[metric][:, n]
    return [choices[c] if 0 <= c < len(choices) else texts[n] for c, texts in zip(chosen_R, answers.texts, strict=True)]
