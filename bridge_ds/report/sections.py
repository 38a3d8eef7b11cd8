"""The first half of a report: what was found, what was compared, accuracies, tests, and what the paper reports."""

from __future__ import annotations

from typing import Any

from bridge_ds.report.blocks import (
    Block,
    Cell,
    Chart,
    Folded,
    Items,
    Legend,
    Picture,
    Section,
    TableBlock,
    Text,
)
from bridge_ds.report.languages import GROUPS
from bridge_ds.report.verdicts import reported_section, tests_section
from bridge_ds.report.write import (
    axis,
    count,
    language_cell,
    mark,
    p_value,
    percent,
    points,
    scale_of,
)

__all__ = ["first_sections"]

_WHOLE = (0.0, 100.0)


def first_sections(results: dict[str, Any]) -> list[Section]:
    """From the summary to the tests."""
    parts = (_summary, _compared, _averages, _accuracy, tests_section, reported_section)
    return [part(results) for part in parts]


def _summary(results: dict[str, Any]) -> Section:
    blocks: list[Block] = []
    rows = []
    scale = scale_of(results["tasks"][t]["differences"][s][_main(results, t)] for s, t in _pairs(results))
    for system, task in _pairs(results):
        verdicts = [test["verdict"] for test in results["tests"][system][task].values()]
        found = results["tasks"][task]["differences"][system][_main(results, task)]
        chart = Chart((mark(results["systems"].index(system), system, found),), scale, guide=0.0)
        counts = [verdicts.count(verdict) for verdict in ("better", "worse", "undecided")]
        tones = ("good" if counts[0] else "", "bad" if counts[1] else "", "")
        test = results["averages"][system][task]
        tone = "" if test["holm"] >= results["alpha"] else "good" if found["value"] > 0 else "bad"
        tallies = [Cell(p_value(test["holm"]), tone=tone)]
        tallies += [Cell(str(n), tone=tone) for n, tone in zip(counts, tones, strict=True)]
        rows.append([Cell(system, task), Cell(chart=chart), points(found), *tallies])
    if rows:
        heads = ("difference", "p", "better", "worse", "undecided")
        columns = [Cell("system and task"), axis(scale, "points"), *map(Cell, heads)]
        caption = (
            f"Accuracy less that of {results['baseline']} in percentage points, averaged over all languages but "
            "English where there are others; p after Holm's correction; in how many languages the tests find it "
            "better or worse."
        )
        blocks.append(TableBlock(caption, columns, rows))
    else:
        blocks.append(Text("Only one trained system was given, so nothing is compared."))
    return Section("short", "In short", [*_warnings(results), *blocks])


def _warnings(results: dict[str, Any]) -> list[Block]:
    found: list[Block] = []
    if len(results["seeds"]) == 1:
        found.append(
            Text(
                "There is one seed: the tests compare single checkpoints. Training again with another seed may well "
                "turn a difference round; intervals hold the samples' chance only.",
                "warning",
            )
        )
    elif len(results["seeds"]) < 5:
        found.append(
            Text(
                f"There are {len(results['seeds'])} seeds: so few tell little of how much training again would "
                "change, and the intervals are accordingly wide.",
                "warning",
            )
        )
    groups = {known["group"] for task in results["tasks"].values() for known in task["languages"].values()}
    if "constructed" in groups:
        found.append(
            Text(
                "The constructed languages are made up and the models small: these results show that the machinery "
                "works, and nothing of how well it serves any real language.",
                "warning",
            )
        )
    return found


def _main(results: dict[str, Any], task: str) -> str:
    return "all but English" if "all but English" in results["tasks"][task]["groups"] else "all"


def _pairs(results: dict[str, Any]) -> list[tuple[str, str]]:
    return [(system, task) for system in results["rivals"] for task in results["tasks"]]


def _compared(results: dict[str, Any]) -> Section:
    rows: list[list[Cell | str]] = []
    for system in results["systems"]:
        runs = [run for run in results["compared"] if run["system"] == system]
        seeds, checkpoints = ([run[key] for run in runs] for key in ("seed", "checkpoint"))
        rows.append(
            [
                Cell(system, "baseline" if system == results["baseline"] else ""),
                "–" if seeds == [None] else ", ".join(map(str, seeds)),
                ", ".join(dict.fromkeys(checkpoints)) or "–",
                Cell(", ".join(run["run"] for run in runs), is_data=True),
            ]
        )
    tasks: list[list[Cell | str]] = [
        [
            Cell(task),
            found["kind"],
            ", ".join(found["labels"]) or "–",
            f"{100 * found['chance']:.1f}",
            str(len(found["languages"])),
            _range([known["samples"] for known in found["languages"].values()]),
        ]
        for task, found in results["tasks"].items()
    ]
    return Section(
        "compared",
        "What was compared",
        [
            TableBlock(
                "Systems, their seeds and the checkpoints that were scored.",
                ["system", "seeds", "checkpoints", "runs"],
                rows,
            ),
            TableBlock(
                "Tasks. Every system answered the same samples; chance is the accuracy of guessing, in %.",
                ["task", "kind", "labels", "chance", "languages", "samples a language"],
                tasks,
            ),
        ],
    )


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def _averages(results: dict[str, Any]) -> Section:
    blocks: list[Block] = [Legend(results["systems"])]
    for task, found in results["tasks"].items():
        rows = [
            [Cell(group, count(len(codes), "language")), _dots(results, found["macro"], group, found["chance"])]
            + [percent(found["macro"][system][group]) for system in results["systems"]]
            for group, codes in found["groups"].items()
            # A group that holds the same languages as the one before it says nothing new.
            if codes not in list(found["groups"].values())[: list(found["groups"]).index(group)]
        ]
        caption = f"{task}: accuracy in % averaged over languages, each counting the same, with 95 % intervals."
        blocks.append(TableBlock(caption, ["group", axis(_WHOLE, "accuracy"), *results["systems"]], rows))
    present = {group for found in results["tasks"].values() for group in found["groups"]}
    blocks.append(Items([f"{group}: {what}" for group, what in GROUPS.items() if group in present]))
    blocks.append(
        Text(
            "Classes are those of Joshi et al. 2020 (arXiv 2004.09095), grouped as by Üstün et al. 2024 (arXiv "
            "2402.07827).",
        )
    )
    return Section("averages", "Averages by group", blocks)


def _dots(results: dict[str, Any], estimates: dict[str, Any], key: str, chance: float) -> Cell:
    marks = [mark(place, system, estimates[system][key]) for place, system in enumerate(results["systems"])]
    return Cell(chart=Chart(tuple(marks), _WHOLE, guide=100 * chance))


def _accuracy(results: dict[str, Any]) -> Section:
    how = {
        "sum": "the choice with the highest log-probability",
        "mean": "the choice with the highest log-probability a token",
        "calibrated": "the choice that gained most log-probability over a null source",
    }
    blocks: list[Block] = [
        Text(
            f"What counts as the answer: {how[results['scores']]}; for tasks that ask for a number, whether the number "
            "written is right. The dashed line is chance."
        ),
        Legend(results["systems"]),
    ]
    for task, found in results["tasks"].items():
        rows = [
            [
                language_cell(code, known),
                _dots(results, found["accuracy"], code, found["chance"]),
                Cell(str(known["samples"])),
            ]
            + [percent(found["accuracy"][system][code]) for system in results["systems"]]
            for code, known in found["languages"].items()
        ]
        caption = f"{task}: accuracy in % by language, with 95 % intervals."
        columns: list[Cell | str] = ["language", axis(_WHOLE, "accuracy"), "samples", *results["systems"]]
        exact = [
            [language_cell(code, known), *(percent(found["exact"][system][code]) for system in results["systems"])]
            for code, known in found["languages"].items()
        ]
        blocks += [
            TableBlock(caption, columns, rows),
            Picture(
                f"accuracy-{results['slugs'][task]}.png",
                f"Accuracy by language on {task}; the numbers are in the table above",
            ),
            Folded(
                f"{task}: answers written out",
                [
                    TableBlock(
                        f"{task}: share of samples in % for which greedy decoding writes exactly the right answer, as "
                        "the paper scores.",
                        ["language", *results["systems"]],
                        exact,
                    )
                ],
            ),
        ]
    return Section("accuracy", "Accuracy by language", blocks)
