"""What a study shows beside accuracy: tokens, lengths, confusions, ways to read scores, layers, telling examples.

Plain values for report.json, as in `findings.py`. Shapes as in `study.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bridge_ds.evaluation.predictions import NORMALIZATIONS
from bridge_ds.report.languages import find_language
from bridge_ds.report.study import Questions, Study, StudyAnswers

__all__ = ["BINS", "agreement", "confusion", "examples", "layers", "lengths", "tokens"]

BINS = 4
"""Parts by source length."""
EXAMPLES = 3
"""Examples in each direction, for each task and system."""


def tokens(study: Study, task: str) -> dict[str, dict[str, Any]]:
    """By language: samples, characters, encoder tokens a word and a character, share of unknown tokens.

    The tokens that close a source are among them, as the encoder reads them too. Where a script does not part words
    `per_word` is none; where no tokens were written down all three are.
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
            "per_word": count / words if count and words and find_language(code).parts_words else None,
            "per_character": count / characters if count and characters else None,
            "unknown": unknown / count if count else None,
        }
    return found


def lengths(study: Study, task: str, scores: str) -> dict[str, Any]:
    """Accuracy in quarters of the samples by the length of their sources, the shortest first.

    The quarters are cut within each language, so that a language of long sources does not fill the last; accuracies
    are averaged over languages, the same ones for every quarter.

    Returns:
        `{"unit": "encoder tokens" or "characters", "bins": [{"from", "to", "samples"}], "accuracy": {system: [share or
        None]}}`; from and to are the shortest and longest source of any language in it.
    """
    place = NORMALIZATIONS.index(scores)
    has_tokens = all(study.questions[task, code].tokens_N.all() for code in study.languages(task))
    bins: list[dict[str, Any]] = [{"from": None, "to": None, "samples": 0} for _ in range(BINS)]
    found: dict[str, list[list[float]]] = {name: [[] for _ in range(BINS)] for name in study.systems}
    for code in study.languages(task):
        asked = study.questions[task, code]
        sizes = asked.tokens_N if has_tokens else np.array([len(source) for source in asked.sources])
        edges = np.quantile(sizes, np.arange(1, BINS) / BINS)
        part_N = np.searchsorted(edges, sizes, side="left")
        if len(set(part_N.tolist())) < BINS:  # too many of one length to be cut in four
            continue
        for number, part in enumerate(bins):
            inside = part_N == number
            low, high = int(sizes[inside].min()), int(sizes[inside].max())
            part["from"] = low if part["from"] is None else min(low, part["from"])
            part["to"] = high if part["to"] is None else max(high, part["to"])
            part["samples"] += int(inside.sum())
            for name, system in study.systems.items():
                found[name][number].append(float(system.answers[task, code].right_KRN[place][:, inside].mean()))
    accuracy = {name: [float(np.mean(part)) if part else None for part in parts] for name, parts in found.items()}
    return {"unit": "encoder tokens" if has_tokens else "characters", "bins": bins, "accuracy": accuracy}


def confusion(study: Study, task: str, scores: str) -> dict[str, dict[str, list[list[float]]]]:
    """`{system: {language: matrix}}`: samples of each label (row) that got each answer (column), mean over seeds.

    A last column counts answers that are none (a score was no number). Empty for tasks without labels of their own.
    """
    labels = len(study.tasks[task].labels)
    place = NORMALIZATIONS.index(scores)
    found: dict[str, dict[str, list[list[float]]]] = {}
    for name, system in study.systems.items() if labels else ():
        for code in study.languages(task):
            chosen_RN = system.answers[task, code].chosen_KRN[place]
            matrix = np.zeros((labels, labels + 1))
            asked_RN = np.broadcast_to(study.questions[task, code].labels_N, chosen_RN.shape)
            np.add.at(matrix, (asked_RN.ravel(), chosen_RN.ravel()), 1 / len(chosen_RN))
            found.setdefault(name, {})[code] = np.round(matrix, 6).tolist()
    return found


def agreement(study: Study, task: str) -> dict[str, dict[str, Any]]:
    """By system: accuracy by each way to read the scores, and how often two ways choose the same, over all languages.

    Returns:
        `{system: {"accuracy": {way: share}, "same": {"sum, mean": share, ...}}}`; mean over languages; only ways that
        every language's file allows. Empty for tasks in which nothing is chosen.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, system in study.systems.items():
        answers = [system.answers[task, code] for code in study.languages(task)]
        if study.tasks[task].kind == "number":
            continue
        ways = [way for way in NORMALIZATIONS if all(way in part.readable for part in answers)]
        rows = {way: NORMALIZATIONS.index(way) for way in ways}
        found[name] = {
            "accuracy": {way: float(np.mean([a.right_KRN[row].mean() for a in answers])) for way, row in rows.items()},
            "same": {
                f"{one}, {other}": float(
                    np.mean([(a.chosen_KRN[rows[one]] == a.chosen_KRN[rows[other]]).mean() for a in answers])
                )
                for number, one in enumerate(ways)
                for other in ways[number + 1 :]
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


def examples(study: Study, task: str, name: str, scores: str) -> dict[str, list[dict[str, Any]]]:
    """Samples on which a system and the baseline differ most: `lost` (the baseline was right) and `won`.

    First those where most seeds differ, then those with the widest gap between the two systems' margins (score of the
    right choice less that of the best wrong one); at most one of a language until every language had one.
    """
    place = NORMALIZATIONS.index(scores)
    rows: list[tuple[float, float, str, int]] = []
    for code in study.languages(task):
        base, ours = (study.systems[system].answers[task, code] for system in (study.baseline, name))
        gaps_N = (ours.right_KRN[place].astype(float) - base.right_KRN[place]).mean(axis=0)
        margins_N = ours.margins_RN.mean(axis=0) - base.margins_RN.mean(axis=0)
        rows += [(float(gaps_N[n]), float(margins_N[n]), code, int(n)) for n in np.flatnonzero(gaps_N)]
    found = {}
    for key, sign in (("lost", -1), ("won", 1)):
        ranked = sorted((row for row in rows if sign * row[0] > 0), key=lambda row: (-sign * row[0], -sign * row[1]))
        found[key] = [_example(study, task, name, row, place) for row in _spread(ranked)]
    return found


def _spread(ranked: Sequence[tuple[float, float, str, int]]) -> list[tuple[float, float, str, int]]:
    seen: set[str] = set()
    firsts = [row for row in ranked if not (row[2] in seen or seen.add(row[2]))]  # type: ignore[func-returns-value]
    return [*firsts, *(row for row in ranked if row not in firsts)][:EXAMPLES]


def _example(study: Study, task: str, name: str, row: tuple[float, float, str, int], place: int) -> dict[str, Any]:
    _, margin, code, n = row
    asked = study.questions[task, code]
    both = {system: study.systems[system].answers[task, code] for system in (study.baseline, name)}
    return {
        "language": code,
        "key": asked.keys[n],
        "source": asked.sources[n],
        "right": asked.answers[n],
        "baseline": [
            _text(both[study.baseline], asked, place, seed, n) for seed in range(_seeds(both[study.baseline]))
        ],
        "system": [_text(both[name], asked, place, seed, n) for seed in range(_seeds(both[name]))],
        "margin": margin,
    }


def _seeds(answers: StudyAnswers) -> int:
    return answers.exact_RN.shape[0]


def _text(answers: StudyAnswers, asked: Questions, place: int, seed: int, n: int) -> str:
    chosen = int(answers.chosen_KRN[place, seed, n])
    return asked.choices[n][chosen] if 0 <= chosen < len(asked.choices[n]) else answers.texts[seed][n]
