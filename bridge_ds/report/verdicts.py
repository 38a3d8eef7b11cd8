"""What the tests of a report say, and what the paper reports."""

from __future__ import annotations

from typing import Any

from bridge_ds.report.blocks import Block, Cell, Chart, Folded, Legend, Picture, Section, TableBlock, Text
from bridge_ds.report.write import (
    axis,
    count,
    language_cell,
    mark,
    p_value,
    percent,
    points,
    scale_of,
    verdict_cell,
)

__all__ = ["reported_section", "tests_section"]

_BESIDE = (
    " Beside it: in how many seeds McNemar's test on two checkpoints, so corrected, says better (+) or worse (\u2212)."
)


def tests_section(results: dict[str, Any]) -> Section:
    """Differences from the baseline by language, with the verdicts and every test behind them."""
    families, several = results["families"], len(results["seeds"]) > 1
    rivals = results["rivals"]
    if not rivals:
        return Section("tests", "Differences from the baseline", [Text("There is no other trained system.")])
    deciding = "methods" if several else "checkpoints"
    what = (
        "The verdict is on the methods: would new seeds and new samples show a difference again?"
        if several
        else "The verdict is on these checkpoints, by McNemar's exact test."
    )
    blocks: list[Block] = [
        Text(
            f"{what} It says better or worse where the p-value, after Holm's correction for all "
            f"{count(families[deciding], 'test')} of this report, is below {results['alpha']}."
            f"{_BESIDE if several else ''}"
        ),
        Legend(results["systems"]),
    ]
    for task, found in results["tasks"].items():
        differences = found["differences"]
        scale = scale_of(differences[s][code] for s in rivals for code in found["languages"])
        rows = []
        for code, known in found["languages"].items():
            marks = [mark(results["systems"].index(s), s, differences[s][code]) for s in rivals]
            row = [language_cell(code, known), Cell(chart=Chart(tuple(marks), scale, guide=0.0))]
            for system in rivals:
                row += [
                    points(differences[system][code]),
                    verdict_cell(results["tests"][system][task][code], results["alpha"]),
                ]
            rows.append(row)
        columns = ["language", axis(scale, "points"), *(name for s in rivals for name in (s, "verdict"))]
        caption = f"{task}: accuracy less that of {results['baseline']}, in points with 95 % intervals, and the tests."
        blocks += [
            TableBlock(caption, columns, rows),
            Picture(
                f"differences-{results['slugs'][task]}.png",
                f"Differences from {results['baseline']} on {task}, as in the table above",
            ),
            Folded(f"{task}: McNemar's test for each seed", [_mcnemar(results, task, system) for system in rivals]),
        ]
    return Section("tests", "Differences from the baseline", blocks)


def _mcnemar(results: dict[str, Any], task: str, system: str) -> TableBlock:
    languages = results["tasks"][task]["languages"]
    rows = []
    for code, test in results["tests"][system][task].items():
        cells = [
            Cell(f"{seed['better']} : {seed['worse']}", f"p {p_value(seed['p'])}, Holm {p_value(seed['holm'])}")
            for seed in test["seeds"]
        ]
        rows.append([language_cell(code, languages[code]), *cells])
    seeds = [f"seed {test}" for test in results["seeds"]]
    caption = (
        f"{system} against {results['baseline']} on {task}: samples that only the first got right : only the second; "
        f"exact p-value, and corrected for {results['families']['checkpoints']} such tests."
    )
    return TableBlock(caption, ["language", *seeds], rows)


def reported_section(results: dict[str, Any]) -> Section:
    """The paper's numbers beside those measured here."""
    rows = []
    for entry in results["reported"]:
        measured = next((task for task in results["tasks"] if entry["task"] in task), None)
        for system, value in entry["values"].items():
            ours: list[Cell] = [Cell("not measured"), Cell("not measured")]
            found = results["tasks"].get(measured, {})
            if system in found.get("accuracy", {}) and (
                entry["group"] in found["groups"] or entry["group"] in found["languages"]
            ):
                sets = found["groups"].get(entry["group"], [entry["group"]])
                where = "macro" if entry["group"] in found["groups"] else "accuracy"
                exact = sum(found["exact"][system][code] for code in sets) / len(sets)
                ours = [percent(found[where][system][entry["group"]]), percent(exact)]
            rows.append([Cell(entry["what"]), system, Cell(f"{100 * value:.2f}", "reported"), *ours])
    return Section(
        "reported",
        "Reported elsewhere",
        [
            Text(
                "The column reported is copied from arXiv 2508.09091 and was not measured here: other models, data and "
                "training. It stands here for orientation; no test is made with it.",
                "note",
            ),
            TableBlock(
                "Accuracy in %: reported by the paper, and measured in this report.",
                ["benchmark", "system", "reported, not measured", "measured here", "measured here, written out"],
                rows,
            ),
        ],
    )
