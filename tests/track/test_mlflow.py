"""MLflow gets the whole run once, over kills and resumes; a dead server costs a line."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.config.load import flatten, save_config
from bridge_ds.config.schema import Config, TrackConfig, TrainConfig
from bridge_ds.entry import exit_status
from bridge_ds.track import trackers
from bridge_ds.track.metrics_file import MetricsLog
from bridge_ds.track.mlflow import tracking_uri
from bridge_ds.track.sync import main, sync
from bridge_ds.track.tracker import is_due, numbers

from .records import record, results


def _config(uri: str = "", every: int = 5, steps: int = 12) -> Config:
    return Config(track=TrackConfig(uri=uri, every=every), train=TrainConfig(steps=steps))


def _attempt(folder: Path, config: Config, start: int, last: int, status: str, **facts: Any) -> None:
    log = MetricsLog(folder / "metrics.jsonl")
    (tracker,) = trackers.feeds(folder, config, facts, close_seconds=60)
    for hook in (log, tracker):
        hook.on_start(step=start, total_steps=config.train.steps)
    for step in range(start + 1, last + 1):
        log.on_step(record(step, config.train.steps))
        tracker.on_step(record(step, config.train.steps))
    if status == "finished":
        tracker.on_evaluation(results())
    log.on_end(status)
    tracker.on_end(status)


def test_one_run_over_a_kill_and_a_resume(
    tmp_path: Path, no_server_in_environment: None, no_fsync: None, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    folder = tmp_path / "runs" / "first"
    (folder / "plots").mkdir(parents=True)
    (folder / "plots" / "loss.png").write_bytes(b"\x89PNG")
    (folder / "evaluation.json").write_text(json.dumps(results()))
    config = _config()
    save_config(config, folder / "config.yaml")
    monkeypatch.setattr(trackers, "_KILLED_SECONDS", 60.0)  # the first migrations of this database
    _attempt(folder, config, 0, 7, "killed", world_size=2)
    killed = json.loads((folder / "mlflow.json").read_text())
    assert (killed["logged_step"], killed["attempts"], killed["status"]) == (5, 1, "killed")

    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}"
    assert killed["uri"] == uri
    client = MlflowClient(uri)
    run = client.get_run(killed["run_id"])
    assert run.info.status == "KILLED"
    # The grace time belongs to the checkpoint: scores and files wait for the next start or a sync.
    assert not any(name.startswith("accuracy") for name in run.data.metrics) and not client.list_artifacts(
        run.info.run_id
    )

    # As if the kill had come between MLflow's commit and our note: the store must be believed, not the file.
    (folder / "mlflow.json").write_text(json.dumps({**killed, "logged_step": 1}))
    # The checkpoint was at step 3: steps 4 to 7 are done again, with another world and another learning rate.
    again = replace(config, train=replace(config.train, lr=1e-3))
    _attempt(folder, again, 3, 12, "finished", world_size=4)

    run = client.get_run(killed["run_id"])
    assert run.info.status == "FINISHED"
    assert len(client.search_runs([run.info.experiment_id])) == 1
    for name in ("loss", "layer_weight/04", "target_tokens_per_s"):
        assert [p.step for p in client.get_metric_history(run.info.run_id, name)] == [1, 5, 10, 12], name
    assert run.data.metrics["loss"] == pytest.approx(2.0 / 12)
    assert run.data.metrics["accuracy_percent/news/qaa/bridge_acc"] == 75.0
    assert run.data.params == {key: str(value) for key, value in flatten(config).items()}
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("attempt.")}
    assert tags == {
        "attempt.1.world_size": "2",
        "attempt.1.start_step": "0",
        "attempt.2.world_size": "4",
        "attempt.2.start_step": "3",
        "attempt.2.param.train.lr": "0.001",
    }
    assert "tokens/s" in run.data.tags["mlflow.note.content"]
    assert sorted(f.path for f in client.list_artifacts(run.info.run_id)) == [
        "config.yaml",
        "evaluation.json",
        "plots",
    ]
    assert (tmp_path / "runs" / "mlartifacts" / run.info.run_id / "artifacts" / "plots" / "loss.png").is_file()
    said = caplog.messages
    assert len(said) == 2 and "is killed at" in said[0] and "is finished at" in said[1]


def _refused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_dead_server_costs_a_line_and_a_later_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://user:secret@127.0.0.1:{_refused_port()}")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = _config()
    log = MetricsLog(tmp_path / "metrics.jsonl")
    (tracker,) = trackers.feeds(tmp_path, config, {"world_size": 1}, close_seconds=5)
    for hook in (log, tracker):
        hook.on_start(step=0, total_steps=12)
    slowest = 0.0
    for step in range(1, 13):
        log.on_step(record(step))
        began = time.monotonic()
        tracker.on_step(record(step))
        slowest = max(slowest, time.monotonic() - began)
        if step == 6:
            _wait_for(lambda: caplog.records)
    assert slowest < 0.5
    began = time.monotonic()
    tracker.on_end("finished")
    assert time.monotonic() - began < 6
    said = caplog.messages
    assert [line.split(" ")[0] for line in said] == ["MLflow", "MLflow:"]
    assert {each.levelname for each in caplog.records} == {"WARNING"}
    assert "not sent: steps 1 to 12, the files and the status" in said[1]
    assert "secret" not in "".join(said) + (tmp_path / "mlflow.json").read_text()

    # Still dead: the later sync says so in one sentence.
    save_config(config, tmp_path / "config.yaml")
    assert exit_status(lambda: main([str(tmp_path)])) == 2
    assert "expected a store that answers" in capsys.readouterr().err


def _wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "nothing within 20 s"
        time.sleep(0.02)


def test_a_silent_server_is_left_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = threading.Event()
    monkeypatch.setattr("bridge_ds.track.mlflow.MlflowRun.open", lambda self, facts: stuck.wait(30))
    (tracker,) = trackers.feeds(tmp_path, _config("http://127.0.0.1:9"), {}, close_seconds=0.2)
    tracker.on_start(step=0, total_steps=12)
    tracker.on_step(record(1))
    began = time.monotonic()
    tracker.on_end("failed")
    assert time.monotonic() - began < 2
    stuck.set()
    assert len(caplog.messages) == 1 and "no answer in time" in caplog.messages[0]
    assert json.loads((tmp_path / "mlflow.json").read_text())["status"] == "failed"


def test_where_a_run_is_sent(tmp_path: Path) -> None:
    server = {"MLFLOW_TRACKING_URI": "http://server:5000"}
    assert tracking_uri(TrackConfig(uri="http://mine"), tmp_path / "run", server) == "http://mine"
    assert tracking_uri(TrackConfig(), tmp_path / "run", server) == "http://server:5000"
    assert tracking_uri(TrackConfig(), tmp_path / "run", {}) == f"sqlite:///{tmp_path}/mlflow.db"
    assert tracking_uri(TrackConfig(uri="none"), tmp_path / "run", server) is None


def test_steps_that_are_trained_anew_are_a_new_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    state = {"run_id": "abc", "uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "bridge_ds", "logged_step": 10}
    config = _config("")
    config = replace(config, track=replace(config.track, experiment="bridge_ds"))
    for after, kept in ((5, 0), (None, 10), (10, 10)):
        (folder / "mlflow.json").write_text(json.dumps(state))
        (feed,) = trackers.feeds(folder, config, again_after=after)
        found = feed._tracker.state
        assert (found.logged_step, found.run_id) == (kept, "abc" if kept else ""), after
        # A start after this one, which has no server, is no longer such a one.
        (feed,) = trackers.feeds(folder, config)
        assert feed._tracker.state == found, after
    # The same file by another path is the same store.
    (tmp_path / "link").symlink_to(tmp_path)
    (feed,) = trackers.feeds(tmp_path / "link" / "run", config)
    assert feed._tracker.state.run_id == "abc"


def test_sync_goes_to_the_server_of_the_run_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    seen: list[str] = []
    monkeypatch.setattr(
        "bridge_ds.track.sync.make_trackers", lambda folder, config: seen.append(config.track.uri) or []
    )
    for uri, named, expected in (
        ("http://server:5000", "", "http://server:5000"),
        ("http://server:5000", "http://other", "http://other"),
        ("sqlite:////nowhere/at/all/mlflow.db", "", ""),
    ):
        (tmp_path / "mlflow.json").write_text(json.dumps({"uri": uri, "run_id": "abc"}))
        config = _config(named)
        sync(tmp_path, config)
        assert seen[-1] == expected


def test_none_does_nothing(tmp_path: Path) -> None:
    assert trackers.feeds(tmp_path, _config("none")) == []
    assert list(tmp_path.iterdir()) == []


def test_points_are_single_finite_numbers() -> None:
    found = numbers({**record(1), "grad_norm": None})
    assert found["layer_weight/01"] == record(1)["layer_weights"][0] and found["truncated/source"] == 1
    assert not {"step", "ids_hash", "grad_norm", "skipped", "peak_memory_gib_by_rank"} & set(found)


def test_every_validation_is_a_point_whatever_track_every_is() -> None:
    validated = record(7) | {"validation_loss": 0.5, "validation_accuracy": 0.25, "validation_samples": 9}
    assert is_due(validated, 5, 12) and not is_due(record(7), 5, 12) and is_due(record(10), 5, 12)
    found = numbers(validated)
    assert (found["validation_loss"], found["validation_accuracy"], found["validation_samples"]) == (0.5, 0.25, 9.0)
