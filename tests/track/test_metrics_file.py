"""metrics.jsonl survives kills, resumes and numbers that are not finite."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from bridge_ds.errors import DataError
from bridge_ds.track.metrics_file import MetricsLog, read_metrics

from .records import record


def _write(path: Path, steps: range, start: int) -> None:
    log = MetricsLog(path)
    log.on_start(step=start, total_steps=20)
    for step in steps:
        log.on_step(record(step))
    log.on_end("finished")


def test_each_line_is_on_disk_when_its_step_ends(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "run" / "metrics.jsonl")
    log.on_start(step=0, total_steps=2)
    for step in (1, 2):
        log.on_step(record(step))
        assert [line["step"] for line in read_metrics(log.path)] == list(range(1, step + 1))
    line = read_metrics(log.path)[0]
    assert {key: line[key] for key in record(1)} == record(1)
    assert line["time"] > 1e9


@pytest.mark.parametrize("resumed_at", [0, 3, 5, 9])
def test_resume_drops_the_steps_to_be_done_again(tmp_path: Path, resumed_at: int) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 6), start=0)
    kept = min(5, resumed_at)
    _write(path, range(resumed_at + 1, 12), start=resumed_at)
    assert [r["step"] for r in read_metrics(path)] == [*range(1, kept + 1), *range(resumed_at + 1, 12)]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("torn", ['{"step": 4, "lo', '{"step": 4}', "\x00\x00"])
def test_a_torn_last_line_is_no_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, range(1, 4), start=0)
    with path.open("a") as file:
        file.write(torn)
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3]
    _write(path, range(4, 6), start=4)
    assert [r["step"] for r in read_metrics(path)] == [1, 2, 3, 4, 5]


def test_numbers_that_are_not_finite_and_tensors_are_plain_json(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.on_start(step=0, total_steps=1)
    odd = {"step": 1, "loss": math.nan, "grad_norm": math.inf, "layer_weights": torch.tensor([0.5, math.nan])}
    log.on_step(odd)
    line = json.loads(log.path.read_text(), parse_constant=pytest.fail)
    assert (line["loss"], line["grad_norm"], line["layer_weights"]) == (None, None, [0.5, None])


def test_damage_inside_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with pytest.raises(DataError, match="absent"):
        read_metrics(path)
    path.write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(DataError, match="line 2 is 'rubbish'"):
        read_metrics(path)
