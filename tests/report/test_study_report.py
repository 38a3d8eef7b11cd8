"""The report says what the files hold: numbers by hand, files, names, escapes."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_ds.evaluation.__main__ import main
from bridge_ds.evaluation.predictions import read_predictions
from bridge_ds.report.languages import GROUPS, find_language
from bridge_ds.report.statistics import holm, mcnemar_exact, method_test

from .studies import EVIL, LABELS, TASKS, rewrite, write_run, write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine runs; the report of them in `report/`. The sample that tries to break out is an example for sure."""
    root = tmp_path_factory.mktemp("study")
    runs = write_study(root)
    for seed in range(3):
        for fusion, place in (("last_layer", 0), ("transformer_softmax", 1)):
            rewrite(root / f"{fusion}-{seed}", "xnli", "ar", lambda row, place=place: _decided(row, place))
    assert main(["report", *map(str, runs), "--output", str(root / "report")]) == 0
    return root


def _decided(row: Any, place: int) -> Any:
    """The first sample: the transformer is right, the last layer wrong, both very sure."""
    if row.key != "xnli-0":
        return row
    scores = [-90.0] * 3
    scores[row.label if place else (row.label + 1) % 3] = -0.1
    return replace(row, scores=tuple(scores))


@pytest.fixture(scope="module")
def results(study: Path) -> dict[str, Any]:
    return json.loads((study / "report" / "report.json").read_text(encoding="utf-8"))


def _right(study: Path, run: str, task: str, language: str, system: str = "bridge") -> np.ndarray:
    found = read_predictions(study / run / "evaluation" / system, task, language)
    return np.array([prediction.correct() for prediction in found])


def test_files(study: Path, results: dict[str, Any]) -> None:
    names = {path.name for path in (study / "report").iterdir()}
    pictures = {f"{what}-{task}.png" for what in ("accuracy", "differences") for task in TASKS}
    assert names == pictures | {
        "layers-transformer_softmax.png", "tokens.png", "lengths.png", "report.html", "report.md", "report.json",
    }  # fmt: skip
    text = (study / "report" / "report.md").read_text(encoding="utf-8")
    assert all(f"({name})" in text for name in names if name.endswith(".png"))
    assert results["systems"] == ["LLM alone", "last_layer", "global_softmax", "transformer_softmax"]


def test_accuracies_and_groups_are_those_of_the_files(study: Path, results: dict[str, Any]) -> None:
    found = results["tasks"]["xnli"]
    by_language = {}
    for language in TASKS["xnli"]:
        shares = [_right(study, f"last_layer-{seed}", "xnli", language).mean() for seed in range(3)]
        estimate = found["accuracy"]["last_layer"][language]
        assert estimate["seeds"] == pytest.approx(shares) and estimate["value"] == pytest.approx(np.mean(shares))
        assert estimate["low"] < estimate["value"] < estimate["high"]
        by_language[language] = np.mean(shares)
    assert found["groups"] == {
        "English": ["en"],
        "high": ["ar"],
        "middle": ["ur", "th"],
        "low": ["sw"],
        "unknown": ["xx"],
        "all but English": ["ar", "ur", "th", "sw", "xx"],
        "all": list(TASKS["xnli"]),
    }
    for group, codes in found["groups"].items():
        expected = np.mean([by_language[code] for code in codes])
        assert found["macro"]["last_layer"][group]["value"] == pytest.approx(expected)
    assert results["tasks"]["testbed_news"]["groups"]["constructed"] == ["qaa"]


def test_tests_are_those_of_the_files_and_corrected_together(study: Path, results: dict[str, Any]) -> None:
    cells = [(s, t, code) for s in results["rivals"] for t in TASKS for code in TASKS[t]]
    assert results["families"] == {"checkpoints": 3 * len(cells), "methods": len(cells)} and len(cells) == 24
    raw, corrected = [], []
    for system, task, code in cells:
        test = results["tests"][system][task][code]
        for seed in test["seeds"]:
            ours, base = (_right(study, f"{name}-{seed['seed']}", task, code) for name in (system, "last_layer"))
            counts = int((ours & ~base).sum()), int((base & ~ours).sum())
            assert (seed["better"], seed["worse"]) == counts and seed["p"] == mcnemar_exact(*counts)
            raw.append(seed["p"])
            corrected.append(seed["holm"])
        assert (test["verdict"] != "undecided") == (test["method"]["holm"] < 0.05)
    assert corrected == pytest.approx(holm(raw))


def test_llm_alone_is_shown_and_not_tested(results: dict[str, Any]) -> None:
    assert results["tasks"]["mgsm"]["accuracy"]["LLM alone"]["en"]["value"] == 0
    assert results["tasks"]["mgsm"]["accuracy"]["LLM alone"]["en"]["high"] > 0.05  # 40 samples without one right
    assert "LLM alone" not in results["tests"]


def test_every_system_is_compared_with_the_llm_alone(study: Path, results: dict[str, Any]) -> None:
    assert list(results["advice"]) == ["last_layer", "global_softmax", "transformer_softmax"]
    found = results["advice"]["transformer_softmax"]
    assert list(found["languages"]) == ["en", "ar", "ur", "th", "sw", "xx", "qaa", "sin_Sinh"], "en is eng_Latn, too"
    assert found["languages"]["en"]["samples"] == 4 * 40 and found["languages"]["th"]["samples"] == 2 * 40
    llm = _right(study, "last_layer-0", "xnli", "sw", "llm").astype(float)
    gaps = np.array([_right(study, f"transformer_softmax-{seed}", "xnli", "sw") - llm for seed in range(3)])
    cell = found["tasks"]["xnli"]["sw"]
    assert cell["p"] == method_test(gaps) and cell["difference"] == cell["value"] == pytest.approx(gaps.mean())
    assert [of["holm"] for of in found["languages"].values()] == holm([of["p"] for of in found["languages"].values()])
    page = (study / "report" / "report.html").read_text(encoding="utf-8")
    assert "transformer_softmax against the LLM alone over 4 tasks" in page.replace("<wbr>", "")
    assert f"{100 * found['halves']['chosen']:.1f}" in page.partition("chosen by language")[2]


def test_traits(study: Path, results: dict[str, Any]) -> None:
    languages = results["tasks"]["xnli"]["languages"]
    rows = list(read_predictions(study / "last_layer-0" / "evaluation" / "bridge", "xnli", "sw"))
    tokens = sum(row.source_tokens for row in rows)
    assert languages["sw"]["per_word"] == pytest.approx(tokens / sum(len(row.source.split()) for row in rows))
    assert languages["th"]["per_word"] is None and languages["th"]["per_character"] > 0
    assert (
        languages["xx"]["unknown"] == pytest.approx(40 / languages["xx"]["tokens"]) and languages["sw"]["unknown"] == 0
    )
    lengths = results["tasks"]["xnli"]["lengths"]
    assert sum(part["samples"] for part in lengths["bins"]) == 6 * 40 and lengths["unit"] == "encoder tokens"
    assert [part["to"] for part in lengths["bins"]] == sorted(part["to"] for part in lengths["bins"])
    matrix = np.array(results["tasks"]["xnli"]["confusion"]["last_layer"]["sw"])
    assert matrix.sum() == pytest.approx(40)
    assert np.trace(matrix[:, :3]) / 40 == pytest.approx(
        results["tasks"]["xnli"]["accuracy"]["last_layer"]["sw"]["value"]
    )
    assert results["tasks"]["belebele"]["confusion"] == {} and results["tasks"]["mgsm"]["agreement"] == {}
    same = results["tasks"]["xnli"]["agreement"]["last_layer"]["same"]
    assert set(same) == {"acc, acc_norm_tokens", "acc, acc_mutual_info", "acc_norm_tokens, acc_mutual_info"} and all(
        0 < s <= 1 for s in same.values()
    )
    layers = results["layers"]
    assert layers["last_layer"]["constant"] and layers["global_softmax"]["constant"]
    assert not layers["transformer_softmax"]["constant"]
    assert sum(layers["transformer_softmax"]["languages"]["sw"]) == pytest.approx(1)


def test_examples_differ_as_they_say(results: dict[str, Any]) -> None:
    found = results["tasks"]["xnli"]["examples"]["transformer_softmax"]
    for key, wrong in (("lost", "system"), ("won", "baseline")):
        for example in found[key]:
            assert any(text != example["right"] for text in example[wrong])
    assert any(example["source"].startswith(EVIL) for example in found["won"])
    assert len({example["language"] for example in found["won"]}) == len(found["won"]) == 3


def test_the_papers_numbers_are_marked(study: Path) -> None:
    page = (study / "report" / "report.html").read_text(encoding="utf-8")
    for number in ("70.36", "71.50", "71.66", "75.86"):
        assert f"{number}<small>reported</small>" in page
    assert "reported, not measured" in page
    assert f"languages: {len(TASKS['xnli'])}" in page


def test_another_task_of_a_like_name_is_not_the_papers(tmp_path: Path) -> None:
    runs = write_study(tmp_path, seeds=(0,), samples=6, tasks={"xnli": ("en", "sw")})
    for run in runs:
        for index in run.glob("evaluation/*/index.json"):
            index.write_text(index.read_text().replace('"xnli"', '"afrixnli"'))
            (index.parent / "xnli").rename(index.parent / "afrixnli")
    assert main(["report", *map(str, runs), "--output", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| XNLI, average")]
    assert rows and all(row.count("not measured") == 2 for row in rows)


def test_the_same_runs_give_the_same_bytes(study: Path, tmp_path: Path) -> None:
    runs = [str(study / f"{fusion}-{seed}") for fusion in ("last_layer", "global_softmax", "transformer_softmax")
            for seed in range(3)]  # fmt: skip
    assert main(["report", *runs, "--output", str(tmp_path)]) == 0
    for name in ("report.json", "report.md", "report.html"):
        assert (tmp_path / name).read_bytes() == (study / "report" / name).read_bytes()


class _Checker(HTMLParser):
    """Tags that stand open, and what must hold of single ones."""

    VOID = frozenset({"meta", "link", "br", "wbr", "path", "line", "hr", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_accessible_and_loads_nothing(study: Path) -> None:
    page = (study / "report" / "report.html").read_text(encoding="utf-8")
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    tags = [tag for tag, _ in checker.seen]
    assert not {"script", "img", "link", "iframe", "object", "base"} & set(tags)
    assert tags.count("h1") == 1 and tags.count("caption") == tags.count("table") > 20
    for tag, attributes in checker.seen:
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert "src" not in attributes
        if tag == "a":
            assert (attributes["href"] or "").startswith(("#", "https://arxiv.org/abs/"))
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        if tag == "svg" and "overflow" not in attributes:
            assert attributes.get("aria-hidden") == "true" or attributes.get("aria-label")
    anchors = {attributes["id"] for _, attributes in checker.seen if attributes.get("id")}
    linked = [a["href"] for tag, a in checker.seen if tag == "a" and (a["href"] or "").startswith("#")]
    assert {link[1:] for link in linked} <= anchors  # type: ignore[index]
    assert EVIL not in page and "&lt;script&gt;document.title" in page
    assert 'dir="auto">&lt;script' in page
    assert """content="default-src 'none'; style""" in page


def test_markdown_keeps_its_rows_whatever_the_sources_hold(study: Path) -> None:
    text = (study / "report" / "report.md").read_text(encoding="utf-8")
    assert "<script" not in text and r"&lt;script\>document.title" in text
    width = None
    for line in text.splitlines():
        bars = line.replace(r"\|", "").count("|")
        if not line.startswith("|"):
            width = None
        else:
            assert width in (None, bars), line
            width = bars


def test_colours_can_be_read() -> None:
    """WCAG 2.2: text 4.5 : 1 on every ground that it stands on, marks 3 : 1, in both schemes."""
    import re
    from importlib import resources

    style = resources.files("bridge_ds.report").joinpath("templates/page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in style.split("prefers-color-scheme: dark")]
    assert len(schemes) == 2

    def light(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    def contrast(one: str, other: str) -> float:
        high, low = sorted((light(one), light(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for colours in schemes:
        for ground in ("ground", "card"):
            for ink in ("ink", "soft", "link", "good", "bad"):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
            for place in range(7):
                assert contrast(colours[f"s{place}"], colours[ground]) >= 3, (place, ground)
        assert contrast(colours["ink"], colours["heat-ink"]) >= 4.5


def test_one_run_one_seed_and_the_llm_as_baseline(tmp_path: Path) -> None:
    few = {"xnli": ("en", "sw"), "mgsm": ("th",)}
    run = write_run(tmp_path / "run", "transformer_softmax", 0, 30, few)
    assert main(["report", str(run), "--baseline", "LLM alone", "--output", str(tmp_path / "one")]) == 0
    results = json.loads((tmp_path / "one" / "report.json").read_text())
    assert results["rivals"] == ["transformer_softmax"] and results["families"]["methods"] == 0
    test = results["tests"]["transformer_softmax"]["xnli"]["sw"]
    assert test["method"] is None and test["verdict"] == "better"
    assert "There is one seed" in (tmp_path / "one" / "report.md").read_text()
    assert main(["report", str(run), "--baseline", "transformer_softmax", "--output", str(tmp_path / "two")]) == 0
    assert json.loads((tmp_path / "two" / "report.json").read_text())["rivals"] == []


def test_languages_by_any_code() -> None:
    groups = {"en": "English", "eng_Latn": "English", "si": "low", "sin_Sinh": "low", "ur": "middle", "pt-BR": "high"}
    for code, group in (groups | {"qac": "constructed", "nqo_Nkoo": "unknown"}).items():
        assert find_language(code).group == group, code
    assert find_language("si").resource_class == 1 and find_language("nqo_Nkoo").name == "N'Ko"
    assert find_language("cjk_Latn").name == "cjk_Latn"
    assert not find_language("tha_Thai").has_spaces
    assert {find_language(code).group for code in ("xx", "sw", "zh", "el", "qaa", "en")} == set(GROUPS)


def test_more_labels_than_a_table_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bridge_ds.report.render import render
    from bridge_ds.report.results import study_results
    from bridge_ds.report.study import read_study

    monkeypatch.setitem(LABELS, "sib200", tuple(map(str, range(51))))
    run = write_run(tmp_path / "run", "last_layer", 0, 4, {"sib200": ("en", "si")})
    results = study_results(read_study([str(run)]))
    assert results["tasks"]["sib200"]["confusion"] == {}
    assert "sib200: its 51 labels are too many for a table." in render(results, "markdown")


def test_languages_that_share_nearly_all_samples_are_drawn_together(tmp_path: Path) -> None:
    """Each language lacks one sample of its own: the interval of the average is as wide as where none does."""
    spans = []
    for lacks in (False, True):
        root = tmp_path / str(lacks)
        runs = write_study(root, seeds=(0,), samples=60, tasks={"xnli": TASKS["xnli"]})
        for run, system in ((run, system) for run in runs for system in ("bridge", "llm")):
            index = json.loads((run / "evaluation" / system / "index.json").read_text())
            folder = run / "evaluation" / system / "xnli"
            for language in TASKS["xnli"]:
                # What is right in one language is so in all.
                (folder / f"{language}.jsonl").write_bytes((folder / "en.jsonl").read_bytes())
            for number, language in enumerate(TASKS["xnli"]) if lacks else ():
                key = f"xnli-{number}"
                rewrite(run, "xnli", language, lambda row, key=key: row if row.key != key else None, system)
                index["tasks"]["xnli"]["samples"][language] = 59
            (run / "evaluation" / system / "index.json").write_text(json.dumps(index))
        assert main(["report", *map(str, runs), "--output", str(root / "report")]) == 0
        found = json.loads((root / "report" / "report.json").read_text(encoding="utf-8"))["tasks"]["xnli"][
            "differences"
        ]
        average = found["transformer_softmax"]["all"]
        spans.append(average["high"] - average["low"])
    assert spans[1] == pytest.approx(spans[0], rel=0.1)
