"""The advice by language: counts and p-values by hand, families, halves, the file that an evaluation leaves."""

from __future__ import annotations

import dataclasses
import itertools
import json
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction, Scored, ScoredTask
from bridge_ds.inference.choice import CHOICE, Measured, read_choice
from bridge_ds.report.choose import Paired, advise, after_scoring, crossfitted
from bridge_ds.report.statistics import unseen_share
from bridge_ds.tasks.flores import find_variety

Counts = tuple[int, int, int, int]
"""Samples that both have right, only the bridge, only the LLM alone, neither."""
MEASURED = Measured("step-00000003", {"bridge.safetensors": "0"}, {"llm": "1"}, {"bos": "never"})


def rights(counts: Counts) -> tuple[list[bool], list[bool]]:
    kinds = [(True, True), (True, False), (False, True), (False, False)]
    rows = [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    return [bridge for bridge, _ in rows], [llm for _, llm in rows]


def paired(counts: Counts, keys: Sequence[str] = ()) -> Paired:
    bridge, llm = (np.array([found], dtype=float) for found in rights(counts))
    return Paired(keys or [str(n) for n in range(sum(counts))], bridge, llm)


def write(run: Path, cells: dict[tuple[str, str], Counts], odd: Sequence[tuple[str, str]] = ()) -> dict[str, object]:
    """Predictions of a scored run; those in `odd` were scored with other settings. Returns its evaluation.json."""
    for place, system in enumerate(("bridge", "llm")):
        tasks: dict[str, ScoredTask] = {}
        for (task, code), counts in cells.items():
            rows = [
                Prediction(key=str(n), source=f"text {n}", label=0, answer="a", scores=(-1.0, -2.0 if right else 0.0))
                for n, right in enumerate(rights(counts)[place])
            ]
            path = run / "evaluation" / system / task / f"{code}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(row.line() + "\n" for row in rows), encoding="utf-8")
            of = tasks.setdefault(task, ScoredTask("labels", ("a", "b"), 0.5, {}))
            of.samples[code] = len(rows)
            of.identities[code] = f"{system}, other settings" if (task, code) in odd else system
        index = Scored(system, system, 0, "step-00000003" if system == "bridge" else "", tasks)  # type: ignore[arg-type]
        (run / "evaluation" / system / "index.json").write_text(json.dumps(dataclasses.asdict(index)), encoding="utf-8")
    (task, code), *_ = cells
    return {"bridge": {task: {code: {}}}, "llm": {task: {code: {}}}, "chance": {task: 0.5}}


def test_one_task_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells: dict[tuple[str, str], Counts] = {
        ("news", "si"): (5, 12, 1, 12),
        ("news", "en"): (10, 0, 10, 10),
        ("news", "ta"): (4, 3, 2, 21),
        ("news", "xx"): (6, 0, 0, 4),
    }
    after_scoring(tmp_path, write(tmp_path, cells))
    assert not (tmp_path / CHOICE).exists()
    said = capsys.readouterr().out
    assert "bridge better: si +36.7 (" in said and "LLM alone better: en -33.3 (" in said
    assert "undecided: ta +3.3 (" in said and said.count("xx +0.0 (") == 1
    after_scoring(tmp_path, write(tmp_path, cells), lambda: MEASURED)
    found = read_choice(tmp_path / CHOICE)
    assert found.measured == MEASURED and found.metric == "acc" and list(found.tasks) == ["news"]
    assert {code: of.verdict for code, of in found.languages.items()} == {
        "si": "bridge", "en": "llm", "ta": "undecided", "xx": "undecided",
    }  # fmt: skip
    si, en, ta, xx = found.languages.values()
    assert (si.bridge, si.llm, si.samples, si.bridge_only, si.llm_only) == (17 / 30, 6 / 30, 30, 12, 1)
    assert si.p == pytest.approx(2 * (1 + 13) / 2**13) and si.holm == pytest.approx(3 * si.p)
    assert en.p == pytest.approx(2 / 2**10) and en.holm == pytest.approx(4 * en.p) and ta.p == ta.holm == 1
    assert si.difference == pytest.approx(11 / 30) and 0 < si.low < si.difference < si.high and en.high < 0
    assert (xx.low, xx.high) == (-unseen_share(10), unseen_share(10)) and xx.p == 1
    assert found.tasks["news"] == found.languages
    ways = [found.way(code) for code in ("en", "eng_Latn", "en-GB", "si", "ta", "de", "")]
    assert ways == ["llm"] * 3 + ["bridge"] * 4


def test_tasks_are_taken_together_and_a_contradiction_is_undecided() -> None:
    cells = {
        ("news", "si"): paired((0, 5, 0, 5)),
        ("topics", "sin_Sinh"): paired((0, 4, 0, 6)),
        ("topics", "sin_Latn"): paired((0, 0, 5, 5)),
        ("news", "sw"): paired((0, 30, 0, 0)),
        ("topics", "swh_Latn"): paired((0, 0, 12, 0)),
    }
    tasks, languages = advise(cells)
    assert list(languages) == ["si", "sin_Latn", "sw"] and list(tasks) == ["news", "topics"]
    si = languages["si"]
    assert (si.samples, si.bridge_only, si.p) == (20, 9, pytest.approx(2 / 2**9)) and si.verdict == "bridge"
    # Neither task alone is enough: 2 / 2^5, and of five cells.
    assert tasks["news"]["si"].verdict == tasks["topics"]["sin_Sinh"].verdict == "undecided"
    assert tasks["news"]["sw"].verdict == "bridge" and tasks["topics"]["swh_Latn"].verdict == "llm"
    assert languages["sw"].holm < 0.05 and languages["sw"].difference > 0 and languages["sw"].verdict == "undecided"


def test_two_codes_of_one_task_are_two_languages() -> None:
    cells = {("news", "hi"): paired((0, 30, 0, 0)), ("news", "hi-romanized"): paired((0, 0, 30, 0))}
    cells |= {("news", "pt-BR"): paired((0, 9, 0, 0)), ("news", "pt-PT"): paired((0, 0, 9, 0))}
    _, languages = advise(cells)
    assert {code: of.verdict for code, of in languages.items()} == {
        "hi": "bridge", "hi-romanized": "llm", "pt-BR": "bridge", "pt-PT": "llm",
    }  # fmt: skip
    # All samples are alike: what was not seen may be there.
    of = languages["hi"]
    assert (of.low, of.high) == (1 - unseen_share(30), 1) and languages["pt-PT"].high == unseen_share(9) - 1


def test_languages_do_not_depend_on_the_order_of_the_cells() -> None:
    cells = [("a", "pt-BR"), ("b", "pt-PT"), ("b", "pt-BR")]
    for order in itertools.permutations(cells):
        _, languages = advise({cell: paired((0, 9, 0, 1)) for cell in order})
        assert {code: of.samples for code, of in languages.items()} == {"pt-BR": 20, "pt-PT": 10}, order


def test_what_is_chosen_on_one_half_is_scored_on_the_other() -> None:
    """One half of the samples says that the LLM alone is better, the other that the bridge is."""
    numbers = map(str, itertools.count())
    halves: tuple[list[str], list[str]] = ([], [])
    while min(map(len, halves)) < 10:
        key = next(numbers)
        halves[zlib.crc32(key.encode()) % 2].append(key)
    keys = halves[0][:10] + halves[1][:10]
    assert crossfitted({("news", "si"): paired((0, 10, 10, 0), keys)}) == {"bridge": 0.5, "llm": 0.5, "chosen": 0.0}
    found = crossfitted({("news", "si"): paired((0, 0, 20, 0), keys), ("news", "ta"): paired((0, 20, 0, 0), keys)})
    assert found == {"bridge": 0.5, "llm": 0.5, "chosen": 1.0}


def test_only_what_was_scored_alike_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cells: dict[tuple[str, str], Counts] = dict.fromkeys((("news", "si"), ("news", "ta"), ("old", "si")), (0, 9, 0, 1))
    results = write(tmp_path, cells, odd=[("old", "si")])
    after_scoring(tmp_path, results, lambda: MEASURED)
    assert {task: list(codes) for task, codes in read_choice(tmp_path / CHOICE).tasks.items()} == {"news": ["si", "ta"]}
    capsys.readouterr()
    after_scoring(tmp_path, {name: results[name] for name in ("bridge", "chance")})  # the LLM alone was not scored
    assert capsys.readouterr().out == ""
    path = tmp_path / "evaluation" / "llm" / "news" / "si.jsonl"
    path.write_text(path.read_text().replace("text 3", "another"))
    with pytest.raises(DataError, match="not scored on the same samples of news in si"):
        after_scoring(tmp_path, results)
    # Of an earlier evaluation that was killed: left out.
    after_scoring(tmp_path, {system: {"news": {"ta": {}}} for system in ("bridge", "llm")})
    assert "ta +90.0" in (said := capsys.readouterr().out) and "si +" not in said
    (tmp_path / CHOICE).write_text((tmp_path / CHOICE).read_text().replace('"bridge"', '"both"'))
    with pytest.raises(DataError, match=r"choice.json has languages.si.verdict 'both'; expected 'bridge', 'llm'"):
        read_choice(tmp_path / CHOICE)


def test_a_language_is_found_by_any_code() -> None:
    known = ["si", "zh", "zho_Hant", "taq_Latn", "taq_Tfng", "ary_Arab", "qaa"]
    expected = {
        "sin": "si", "sin_Sinh": "si", "si-LK": "si", "sin_Latn": None, "zh-CN": "zh", "zh_TW": "zho_Hant", "tw": None,
        "taq": None, "taq_Tfng": "taq_Tfng", "ary": "ary_Arab", "qaa": "qaa", "xx": None, "": None,
    }  # fmt: skip
    assert {code: find_variety(code, known) for code in expected} == expected
