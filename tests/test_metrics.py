"""Metric names of today, and files with the names of before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from bridge_ds.evaluation.predictions import Prediction, read_index, read_predictions
from bridge_ds.metrics import CHOICE_METRICS, METRICS, current_names, metric_name
from bridge_ds.report.render import write_report
from bridge_ds.report.results import study_results
from bridge_ds.report.study import read_study
from bridge_ds.track.tracker import score_points
from tests.report.studies import write_run

OLD = {"likelihood": 0.75, "exact": 0.5, "n": 8, "mean": 0.25, "calibrated": 0.125}
NEW = {"acc": 0.75, "exact_match": 0.5, "n": 8, "acc_norm_tokens": 0.25, "acc_mutual_info": 0.125}


def test_the_names_are_those_of_lm_eval_where_the_definition_is() -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics")
    from lm_eval.api.registry import get_metric

    assert metrics and all(get_metric(name) for name in ("acc", "exact_match", "acc_mutual_info"))
    assert {*CHOICE_METRICS, "exact_match"} == set(METRICS)


def test_an_old_evaluation_json_has_the_same_numbers() -> None:
    def results(score: dict[str, float]) -> dict[str, object]:
        return {"bridge": {"xnli": {"sw": score}}, "llm": {"xnli": {"sw": score}}, "chance": {"xnli": 1 / 3}}

    assert current_names(results(OLD)) == results(NEW) == current_names(results(NEW))
    assert score_points(results(OLD)) == score_points(results(NEW))
    assert score_points(results(OLD))["accuracy_percent/xnli/sw/bridge_acc"] == 75
    assert current_names({}) == {} and metric_name("sum") == "acc"


def test_each_metric_by_hand() -> None:
    row = Prediction("k", "s", label=1, scores=(-4.0, -5.0, -6.0), tokens=(2, 4, 2), null=(-3.0, -5.0, -8.0))
    assert [row.chosen(metric) for metric in CHOICE_METRICS] == [0, 1, 2]
    assert [row.correct(metric) for metric in METRICS] == [False, False, True, False]


def test_old_predictions_give_the_same_report(tmp_path: Path) -> None:
    new = write_run(tmp_path / "new" / "run", "transformer_softmax", 0, 20, {"xnli": ("en", "sw"), "mgsm": ("en",)})
    old = shutil.copytree(new, tmp_path / "old" / "run")
    for path in old.rglob("*.jsonl"):
        path.write_text(path.read_text(encoding="utf-8").replace('"exact_match": ', '"exact": '), encoding="utf-8")
    for path in old.rglob("index.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    assert read_index(old / "evaluation" / "bridge") == read_index(new / "evaluation" / "bridge")
    found = list(read_predictions(old / "evaluation" / "bridge", "mgsm", "en"))
    assert found == list(read_predictions(new / "evaluation" / "bridge", "mgsm", "en")) and found[0].exact_match
    for run in (old, new):
        results = study_results(read_study([str(run)], "LLM alone"), "acc_norm_tokens")
        write_report(run.parent / "out", results)
    for name in ("report.json", "report.html", "report.md"):
        assert (tmp_path / "old" / "out" / name).read_bytes() == (tmp_path / "new" / "out" / name).read_bytes()
