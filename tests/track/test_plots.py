"""Plots are PNG files of a legible size, and a plot that fails stops nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.track.plots import PlotHook, plot_layer_weights, plot_loss

from .records import record, results


def _size(path: Path) -> tuple[int, int]:
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def test_a_finished_run_has_three_plots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.dumps(record(step)) for step in range(1, 21)] + [json.dumps({"step": 21, "loss": None})]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    hook = PlotHook(tmp_path)
    hook.on_evaluation(results())
    hook.on_end("finished")
    assert caplog.messages == []
    assert sorted(p.name for p in (tmp_path / "plots").iterdir()) == [
        "accuracy.png",
        "layer_weights.png",
        "loss.png",
    ]
    for path in (tmp_path / "plots").iterdir():
        width, height = _size(path)
        assert width == 1200 and 400 <= height <= 1300, path.name


@pytest.mark.parametrize("steps", [1, 1201])
def test_short_and_long_runs_can_be_drawn(tmp_path: Path, steps: int) -> None:
    records = [record(step, steps) for step in range(1, steps + 1)]
    plot_loss(records, tmp_path / "loss.png")
    without = (tmp_path / "loss.png").read_bytes()
    plot_loss([*records[:-1], records[-1] | {"validation_loss": 0.5}], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes() != without
    plot_layer_weights(records, tmp_path / "layers.png")
    assert _size(tmp_path / "loss.png")[0] == _size(tmp_path / "layers.png")[0] == 1200


@pytest.mark.parametrize(
    "content",
    [
        "",
        "rubbish\n",
        '{"step": 1, "loss": 1.0, "layer_weights": [0.5]}\n{"step": 2, "layer_weights": [1, 2]}\n',
    ],
)
def test_what_cannot_be_drawn_stops_nothing(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    hook = PlotHook(tmp_path)
    hook.on_end("finished")
    (tmp_path / "metrics.jsonl").write_text(content)
    hook.on_end("finished")
    hook.on_evaluation({"bridge": {"news": {}}})
    assert all(each.levelname == "WARNING" and "\n" not in each.getMessage() for each in caplog.records)
    assert len(caplog.records) >= (2 if content else 1)


def test_a_killed_run_draws_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(record(1)) + "\n")
    PlotHook(tmp_path).on_end("killed")
    assert not (tmp_path / "plots").exists()


def test_the_plot_has_what_the_llm_alone_was_left_out_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole, part = results(), results()
    for scores in part["llm"].values():
        scores.pop(next(reversed(scores)))
    for name, found in (("whole", whole), ("part", part)):
        hook = PlotHook(tmp_path / name)
        hook.on_evaluation(found)
    assert caplog.messages == []
    one, other = (tmp_path / name / "plots" / "accuracy.png" for name in ("whole", "part"))
    assert _size(one) == _size(other) and one.read_bytes() != other.read_bytes()
