"""The tables of README and docs are those of the rows that the studies wrote."""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from statistics import fmean

import pytest

from tools.bench import adapt_rows, language_rows, real_rows, study_adapt, testbed_rows
from tools.bench.testbed_rows import carried_over, read, spread

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TESTBED = read(ROOT / "tools" / "bench" / "testbed_study" / "results.csv")
REAL = read(ROOT / "tools" / "bench" / "real_study" / "results.csv")
RECIPE = read(ROOT / "tools" / "bench" / "real_study" / "recipe.csv")


def cells(text: str, first: str) -> list[str]:
    """The cells of the line of a Markdown table whose first cell begins with `first`, without it."""
    (found,) = re.findall(rf"^\| {re.escape(first)}[^|]*\|(.*)\|$", text, re.MULTILINE)
    return [cell.strip() for cell in found.split("|")]


@pytest.mark.parametrize("system", dict.fromkeys(row["system"] for row in TESTBED))
def test_the_testbed_page_shows_its_rows(system: str) -> None:
    rows = [row for row in TESTBED if row["system"] == system]
    page = (ROOT / "docs" / "testbed.md").read_text(encoding="utf-8")
    name, _, rest = system.partition(", ")
    lines = page[page.index(f"| `{name}`{', ' + rest if rest else ''}" + ("" if rest else " ")) :].splitlines()
    for line, task in zip(lines, ("inference", "news", "reviews"), strict=False):
        shown = [cell.strip() for cell in line.strip("|").split("|")][1:]
        assert shown[0] == task
        columns = ("English, LLM", "English", "unseen", "carried over")
        assert shown[2:] == [spread([row[f"{task} {column}"] for row in rows]) for column in columns]


@pytest.mark.parametrize("system", ["last_layer", "global_softmax", "transformer_softmax"])
def test_the_readme_shows_the_rows_of_the_studies(system: str) -> None:
    own = [row for row in TESTBED if row["system"] == system]
    table = README[README.index("| fusion | inference") :]
    assert cells(table[: table.index("\n\n")], f"`{system}`") == [
        spread([row[f"{task} unseen"] for row in own]) for task in ("inference", "news", "reviews")
    ]
    assert cells(README[README.index("| system | English") :], f"`{system}`") == shown(system)


def test_the_readme_shows_what_the_llm_alone_answers() -> None:
    assert cells(README[README.index("| system | English") :], "LLM alone") == shown("LLM alone")


def shown(system: str) -> list[str]:
    own = [row for row in REAL if row["system"] == system]
    five = [fmean(row[code] for code in real_rows.FIVE) for row in own]
    return [spread([row["en"] for row in own]), spread(five), spread([row["others"] for row in own])]


def test_the_readme_shows_the_rows_of_the_recipe() -> None:
    own = [row for row in RECIPE if row["system"] == "transformer_softmax"]
    five = [fmean(row[code] for code in real_rows.FIVE) for row in own]
    assert cells(README, "the recipe") == [spread([row["en"] for row in own]), spread(five), "-"]


def test_the_page_of_the_real_models_shows_its_rows() -> None:
    page = (ROOT / "docs" / "study_real.md").read_text(encoding="utf-8")
    assert real_rows.table(RECIPE) in page
    assert real_rows.table(REAL) in page
    assert real_rows.by_language(REAL) in page


def test_the_page_on_adapt_shows_its_rows() -> None:
    rows = read(ROOT / "tools" / "bench" / "adapt_study" / "testbed.csv")
    of = study_adapt.testbed(ROOT)
    page = (ROOT / "docs" / "adapt.md").read_text(encoding="utf-8")
    assert adapt_rows.table(rows, of.known, of.new) in page
    real = read(ROOT / "tools" / "bench" / "adapt_study" / "sib200.csv")
    assert adapt_rows.table(real, ("en", *study_adapt.OTHERS), study_adapt.REAL) in page


def test_rows_are_read_as_they_were_written(tmp_path: Path) -> None:
    testbed_rows.write(tmp_path / "rows.csv", TESTBED)
    assert read(tmp_path / "rows.csv") == TESTBED


def test_the_page_on_injection_shows_its_rows() -> None:
    page = (ROOT / "docs" / "injection.md").read_text(encoding="utf-8")
    for name in ("languages", "sib200"):
        assert language_rows.by_language(read(ROOT / "tools" / "bench" / "forms_study" / f"{name}.csv")) in page


def test_the_page_on_kernels_shows_the_last_rows_of_the_weighted_sums() -> None:
    page = (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8")
    with (ROOT / "tools" / "bench" / "bench_matrix.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    last = [row for row in rows if row["commit"] == rows[-1]["commit"]]
    shapes = dict.fromkeys((row["tokens"], row["threads"]) for row in last)
    assert len(shapes) == 4
    for tokens, threads in shapes:
        of = {(r["path"], r["memory"]): r for r in last if (r["tokens"], r["threads"]) == (tokens, threads)}
        others = [("torch", "own"), ("einsum", "own"), ("linear over a stack", "own"), ("einsum", "kept")]
        for name, what in (("forward", "forward"), ("both", "forward and backward")):
            base, *found = (float(of[way][f"{name}_ms"]) for way in (("torch", "kept"), *others))
            expected = [f"{base:.1f} ms", *(f"{each:.1f} ms ({each / base:.1f})" for each in found)]
            assert f"| {tokens}, {threads} | {what} | {' | '.join(expected)} |" in page


def test_the_page_on_training_shows_the_rows_of_the_extras() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    folder = ROOT / "tools" / "bench" / "extras_study"
    assert language_rows.by_language(read(folder / "languages.csv")) in page
    assert language_rows.differences(read(folder / "differences.csv")) in page


def test_the_readme_says_what_adapting_brought() -> None:
    rows = read(ROOT / "tools" / "bench" / "adapt_study" / "sib200.csv")

    def means(system: str) -> list[int]:
        codes = ("bo", "nqo_Nkoo", "sat_Olck", "taq_Tfng")
        return [round(fmean(row[f"sib200 {code}"] for row in rows if row["system"] == system)) for code in codes]

    (found,) = re.findall(r"from the majority class \((\d+) to (\d+) %\) to (\d+), (\d+), (\d+) and (\d+),", README)
    assert [int(each) for each in found] == [min(means("before")), max(means("before")), *means("pairs")]


def test_nothing_is_carried_over_where_english_has_gained_nothing():
    assert carried_over(0.8, 0.5, 0.2) == 50.0
    assert carried_over(0.8, 0.1, 0.2) < 0
    assert math.isnan(carried_over(0.2, 0.5, 0.2)) and math.isnan(carried_over(0.1, 0.5, 0.2))
