"""In which languages the bridge is better than the LLM alone, in which worse, in which that is not known.

The two answer the same samples, so the tests are paired: McNemar's exact test for one checkpoint, the test of methods
for several seeds. Holm's correction is over the languages. No accuracy of "the better of the two" is computed on the
samples that decide which one is better: it would be tuned on them. :func:`crossfitted` decides on one half of them and
scores the other.

Shapes: R seeds, N samples.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bridge_ds.checkpoint.layout import trained_files
from bridge_ds.config.schema import Config
from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import read_index, read_predictions
from bridge_ds.inference.choice import BRIDGE, CHOICE, LLM, ChoiceTable, Comparison, Measured, write_choice
from bridge_ds.partial import writing
from bridge_ds.report.statistics import (
    ALPHA,
    DRAWS,
    holm,
    interval,
    mcnemar_exact,
    method_test,
    resampled_means,
    seed_errors,
    unseen_share,
)
from bridge_ds.report.study import Study
from bridge_ds.tasks.flores import find_variety

__all__ = [
    "Paired",
    "advice_lines",
    "advise",
    "after_scoring",
    "chosen",
    "crossfitted",
    "measured_if_chosen",
    "scored_cells",
    "study_advice",
]

METRIC = "acc"
"""By which a sample counts as right in choice.json."""
UNDECIDED = "undecided"
_WIDTH = 110
"""Longest line, in characters."""


@dataclass(frozen=True)
class Paired:
    """Which samples of one task in one language each of the two has right."""

    keys: Sequence[str]
    """Of the samples."""
    bridge_RN: NDArray[np.float64]
    llm_RN: NDArray[np.float64]
    """R may be 1 for any number of the bridge's seeds."""

    @property
    def gaps_RN(self) -> NDArray[np.float64]:
        """1 = only the bridge is right, -1 = only the LLM alone."""
        return self.bridge_RN - self.llm_RN

    def part(self, chosen_N: NDArray[np.bool_]) -> Paired:
        """Some of the samples."""
        keys = [key for key, chosen in zip(self.keys, chosen_N, strict=True) if chosen]
        return Paired(keys, self.bridge_RN[:, chosen_N], self.llm_RN[:, chosen_N])


Cells = Mapping[tuple[str, str], Paired]
"""By task and language."""


def after_scoring(run: Path, results: Mapping[str, Any], measured: Callable[[], Measured] | None = None) -> None:
    """Print the advice on a run whose bridge and LLM alone have just been scored, and write choice.json.

    Args:
        run: run folder, which holds the predictions.
        results: of this scoring, the content of evaluation.json.
        measured: gives what was scored; None = choice.json is not written.

    Raises:
        DataError: predictions that cannot be read, or of other samples.
        LaunchError: choice.json cannot be written.
    """
    cells = scored_cells(run, results)
    if not cells:
        return
    tasks, languages = advise(cells)
    print("\n" + advice_lines(tasks, languages))
    if measured is not None:
        with writing(run / CHOICE):
            write_choice(run, ChoiceTable(measured(), METRIC, languages, tasks))
        print(f"written: {run / CHOICE}, which generate and serve follow with --choose")


def measured_if_chosen(config: Config, checkpoint: Path, base: Mapping[str, str]) -> Callable[[], Measured] | None:
    """`measured` of :func:`after_scoring`: None without evaluation.choose.

    Args:
        config: of the scoring.
        checkpoint: the step folder that was scored.
        base: hashes of the base models, as in its manifest.
    """
    if not config.evaluation.choose:
        return None
    return partial(Measured.of, checkpoint.name, trained_files(checkpoint), base, config.data)


def scored_cells(run: Path, results: Mapping[str, Any]) -> dict[tuple[str, str], Paired]:
    """What the bridge and the LLM alone answered, languages that were scored before with the same checkpoint and
    settings included; empty if the LLM alone was not scored. Arguments and errors as of :func:`after_scoring`."""
    if not {BRIDGE, LLM} <= set(results):
        return {}
    folders = {name: run / "evaluation" / name for name in (BRIDGE, LLM)}
    found = {name: read_index(folder).tasks for name, folder in folders.items()}
    now = {
        name: next(tasks[task].identities[code] for task, codes in results[name].items() for code in codes)
        for name, tasks in found.items()
    }
    cells = {}
    for task, code in ((task, code) for task, of in found[BRIDGE].items() for code in of.samples):
        if task in found[LLM] and all(found[name][task].identities.get(code) == now[name] for name in found):
            paired = _paired(folders, task, code)
            if paired is not None:
                cells[task, code] = paired
            elif code in results[BRIDGE].get(task, {}):
                raise DataError(
                    f"the bridge and the LLM alone were not scored on the same samples of {task} in {code}; expected "
                    "the same; score both again with bridge-ds evaluate."
                )
    return cells


def _paired(folders: Mapping[str, Path], task: str, code: str) -> Paired | None:
    """None if the two were scored on other samples, as an evaluation leaves them that was killed between the two."""
    bridge, llm = (
        {p.key: (p.source, p.correct(METRIC)) for p in read_predictions(folder, task, code)}
        for folder in folders.values()
    )
    if {key: source for key, (source, _) in bridge.items()} != {key: source for key, (source, _) in llm.items()}:
        return None
    right = [np.array([[answers[key][1] for key in bridge]], dtype=float) for answers in (bridge, llm)]
    return Paired(list(bridge), *right)


def study_advice(study: Study, metric: str) -> dict[str, Any]:
    """The comparison of every trained system of a report with the LLM alone; empty if that was not scored.

    Returns:
        `{system: {"languages": {code: Comparison}, "tasks": {task: {code: Comparison}}, "halves": crossfitted()}}`, the
        difference of a comparison also as `value`.
    """
    found: dict[str, Any] = {}
    for name, own in study.alone.items():
        system, alone = study.systems[name], study.systems[own]
        cells = {
            cell: Paired(asked.keys, *(of.answers[cell].right[metric].astype(float) for of in (system, alone)))
            for cell, asked in study.questions.items()
        }
        tasks, languages = advise(cells)
        found[name] = {
            "languages": _values(languages),
            "tasks": {task: _values(codes) for task, codes in tasks.items()},
            "halves": crossfitted(cells),
        }
    return found


def _values(languages: Mapping[str, Comparison]) -> dict[str, dict[str, Any]]:
    return {code: asdict(of) | {"value": of.difference} for code, of in languages.items()}


def advise(cells: Cells) -> tuple[dict[str, dict[str, Comparison]], dict[str, Comparison]]:
    """By task and language, and by language over its tasks.

    Two families of tests, each with Holm's correction: of all tasks and languages, and of the languages. A language is
    undecided, too, where one of its tasks is decided the other way.

    Args:
        cells: with one language under several codes in different tasks (`si`, `sin_Sinh`), it is one language.
    """
    groups = _groups(cells)
    names: dict[str, list[tuple[str, str]]] = {}
    for cell in cells:
        names.setdefault(groups[cell[1]], []).append(cell)
    single = dict(zip(cells, _compared([(" ".join(cell), [cells[cell]]) for cell in cells]), strict=True))
    whole = dict(zip(names, _compared([(name, [cells[c] for c in own]) for name, own in names.items()]), strict=True))
    for name, own in names.items():
        if {BRIDGE: LLM, LLM: BRIDGE}.get(whole[name]["verdict"]) in {single[cell]["verdict"] for cell in own}:
            whole[name]["verdict"] = UNDECIDED
    tasks: dict[str, dict[str, Comparison]] = {}
    for (task, code), values in single.items():
        tasks.setdefault(task, {})[code] = Comparison(**values)
    return tasks, {name: Comparison(**values) for name, values in whole.items()}


def _groups(cells: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Code -> name of its language. What one task has apart is not one language, whatever the order of the cells."""
    tasks: dict[str, set[str]] = {}
    for task, code in cells:
        tasks.setdefault(code, set()).add(task)
    members: dict[str, list[str]] = {}
    found = {}
    for code in sorted(tasks, key=lambda code: -len(tasks[code])):
        name = find_variety(code, members)
        if name is None or any(tasks[code] & tasks[other] for other in members[name]):
            name = code
        members.setdefault(name, []).append(code)
        found[code] = name
    return found


def _compared(families: Sequence[tuple[str, Sequence[Paired]]]) -> list[dict[str, Any]]:
    """Values of Comparison for each name and its samples, corrected together."""
    found = []
    for name, parts in families:
        gaps_RN = np.concatenate([part.gaps_RN for part in parts], axis=1)
        by_seed = gaps_RN.mean(axis=1)
        better, worse = ((sign * gaps_RN > 0).sum(axis=1) for sign in (1, -1))
        found.append(
            {
                "bridge": float(np.concatenate([part.bridge_RN for part in parts], axis=1).mean()),
                "llm": float(np.concatenate([part.llm_RN for part in parts], axis=1).mean()),
                "difference": float(by_seed.mean()),
                **dict(zip(("low", "high"), _interval(name, gaps_RN), strict=True)),
                "samples": gaps_RN.shape[1],
                "bridge_only": float(better.mean()),
                "llm_only": float(worse.mean()),
                "p": method_test(gaps_RN) if min(gaps_RN.shape) > 1 else mcnemar_exact(int(worse[0]), int(better[0])),
            }
        )
    for values, corrected in zip(found, holm([values["p"] for values in found]), strict=True):
        better = BRIDGE if values["difference"] > 0 else LLM
        values |= {"holm": corrected, "verdict": better if corrected < ALPHA else UNDECIDED}
    return found


def _interval(name: str, gaps_RN: NDArray[np.float64]) -> tuple[float, float]:
    if (gap := float(gaps_RN.flat[0])) in (-1, 0, 1) and (gaps_RN == gap).all():
        rare = unseen_share(gaps_RN.shape[1])
        return max(-1.0, gap - rare), min(1.0, gap + rare)
    generator = np.random.default_rng(zlib.crc32(name.encode()))
    means_B = resampled_means(gaps_RN.mean(axis=0)[:, None], DRAWS, generator)[:, 0]
    return interval(means_B, seed_errors(gaps_RN.mean(axis=1), DRAWS, generator), (-1.0, 1.0))


def crossfitted(cells: Cells) -> dict[str, float]:
    """Accuracy averaged over tasks and languages: of the bridge, of the LLM alone, and of the one that is chosen by
    language (:func:`chosen`)."""
    return {
        BRIDGE: float(np.mean([paired.bridge_RN.mean() for paired in cells.values()])),
        LLM: float(np.mean([paired.llm_RN.mean() for paired in cells.values()])),
        "chosen": float(np.mean(list(chosen(cells).values()))),
    }


def chosen(cells: Cells) -> dict[tuple[str, str], float]:
    """Accuracy in each task and language of the bridge or the LLM alone, chosen by language: each half of the samples
    is answered as the other half decides (parallel samples stay together).

    Source: two-fold cross-fitting, as of Chernozhukov et al. 2018 (arXiv 1608.00060).
    """
    halves = {cell: np.array([zlib.crc32(key.encode()) % 2 for key in paired.keys]) for cell, paired in cells.items()}
    right: dict[tuple[str, str], float] = dict.fromkeys(cells, 0.0)
    for half in (0, 1):
        decided = advise({c: cells[c].part(halves[c] != half) for c in cells if (halves[c] != half).any()})[1]
        for cell, paired in cells.items():
            name = find_variety(cell[1], decided)
            rows_RN = paired.llm_RN if name and decided[name].verdict == LLM else paired.bridge_RN
            right[cell] += float(rows_RN[:, halves[cell] == half].mean(axis=0).sum()) / len(paired.keys)
    return right


def advice_lines(tasks: Iterable[str], languages: Mapping[str, Comparison]) -> str:
    """For the terminal: which languages are better, worse, undecided, over tasks."""
    lines = [
        f"Bridge minus LLM alone, points of {METRIC} with 95 % intervals (McNemar's exact test, Holm over languages):",
        f"  tasks: {', '.join(tasks)}",
    ]
    for verdict, what in ((BRIDGE, "bridge better"), (LLM, "LLM alone better"), (UNDECIDED, UNDECIDED)):
        texts = [
            f"{code} {100 * of.difference:+.1f} ({100 * of.low:+.1f} to {100 * of.high:+.1f})"
            for code, of in languages.items()
            if of.verdict == verdict
        ]
        line = f"  {what}: "
        for text in texts:
            if len(line) + len(text) > _WIDTH:
                lines.append(line.rstrip())
                line = " " * 4
            line += f"{text}; " if text is not texts[-1] else text
        lines += [line] if texts else []
    return "\n".join(lines)
