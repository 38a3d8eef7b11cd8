"""`bridge-ds sync` sends all that a run folder has, however the run ended, and each score at its checkpoint's step."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from bridge_ds.config.load import save_config
from bridge_ds.config.schema import Config, TrackConfig, TrainConfig
from bridge_ds.entry import exit_status
from bridge_ds.track import trackers
from bridge_ds.track.metrics_file import MetricsLog
from bridge_ds.track.sync import main as sync

from .records import record, results

STEPS = 12
SCORE = "accuracy_percent/news/qaa/bridge_acc"
pytestmark = pytest.mark.usefixtures("no_server_in_environment", "no_fsync")


class Run:
    """A run folder whose training has ended, in MLflow."""

    def __init__(self, folder: Path, status: str) -> None:
        self.folder = folder
        self.config = Config(track=TrackConfig(every=5), train=TrainConfig(steps=STEPS))
        folder.mkdir(parents=True)
        save_config(self.config, folder / "config.yaml")
        self.attempt(status)

    def attempt(self, status: str, scored: dict[str, Any] | None = None) -> None:
        """Train it; an empty status is SIGKILL."""
        log = MetricsLog(self.folder / "metrics.jsonl")
        (feed,) = trackers.feeds(self.folder, self.config, {}, close_seconds=60)
        for hook in (log, feed):
            hook.on_start(step=0, total_steps=STEPS)
            for step in range(1, STEPS + 1):
                hook.on_step(record(step, STEPS))
            if scored is not None:
                hook.on_evaluation(scored)
            hook.on_end(status or "killed")
        if not status:
            feed._tracker.state.status = ""
            feed._tracker.save()
            self.client.update_run(self.run_id, status="RUNNING")

    def score(self, checkpoint: str, **more: Any) -> None:
        (self.folder / "evaluation.json").write_text(json.dumps(results() | {"checkpoint": checkpoint} | more))

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(f"sqlite:///{self.folder.parent / 'mlflow.db'}")

    @property
    def run_id(self) -> str:
        found: str = json.loads((self.folder / "mlflow.json").read_text())["run_id"]
        return found

    @property
    def status(self) -> str:
        found: str = self.client.get_run(self.run_id).info.status
        return found

    @property
    def files(self) -> list[str]:
        return [each.path for each in self.client.list_artifacts(self.run_id)]

    def points(self, name: str = SCORE) -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(self.run_id, name)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs beside one database, whose first use takes seconds."""
    return tmp_path_factory.mktemp("sync")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_KILLED_SECONDS", 60.0)


@pytest.mark.parametrize(("status", "shown"), [("killed", "KILLED"), ("", "RUNNING"), ("finished", "FINISHED")])
def test_scores_by_hand_arrive_once_at_the_step_of_their_checkpoint(place: Path, status: str, shown: str) -> None:
    run = Run(place / f"by-hand-{status}", status)
    assert run.points() == []
    run.score("step-00000010")
    for _ in range(2):
        assert sync([str(run.folder)]) == 0
        assert run.points() == [(10, 75.0)] and run.files == ["config.yaml", "evaluation.json"]
    assert run.status == shown
    # The same accuracy at another checkpoint is another point, below and above the last one too.
    for checkpoint in ("step-00000012", "step-00000005", "step-00000012", "step-00000005"):
        run.score(checkpoint)
        assert sync([str(run.folder)]) == 0
    assert sorted(run.points()) == [(5, 75.0), (10, 75.0), (12, 75.0)]


def test_the_end_of_training_is_the_step_where_no_checkpoint_is_named(place: Path) -> None:
    run = Run(place / "older", "finished")
    for name in ("", "mine"):
        run.score(name)
        assert sync([str(run.folder)]) == 0
        assert run.points() == [(STEPS, 75.0)]


def test_any_name_of_a_language_is_taken(place: Path) -> None:
    run = Run(place / "names", "killed")
    accuracies = {"N'Ko": 0.25, "N’Ko": 0.5, "Chinese (Simplified)": 0.75, "සිංහල": 1.0, "en": 0.0}
    languages = {code: {"acc": accuracy, "n": 4} for code, accuracy in accuracies.items()}
    run.attempt("finished", {"bridge": {"news": languages}, "chance": {"news": 0.2}})
    found = run.client.get_run(run.run_id).data.metrics
    assert sorted(value for name, value in found.items() if name.startswith("accuracy")) == [0, 25, 50, 75, 100]
    assert found["accuracy_percent/news/en/bridge_acc"] == 0 and run.files == ["config.yaml"]


def test_files_arrive_where_scores_are_refused_and_the_message_says_which(
    place: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(place / "refused", "killed")
    with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as database:
        database.execute(
            "CREATE TRIGGER refused BEFORE INSERT ON metrics WHEN NEW.key LIKE 'accuracy%' "
            "BEGIN SELECT RAISE(ABORT, 'no accuracies today'); END"
        )
    caplog.clear()
    try:
        run.attempt("finished", results())
        said = f"accuracies of MLflow run {run.run_id} cannot be written to sqlite:///{place}/mlflow.db ("
        (line,) = caplog.messages
        assert line.startswith(f"MLflow: {said}") and line.endswith(f"bridge-ds sync {run.folder}")
        assert "files of" not in line and "not sent" not in line
        assert run.files == ["config.yaml"] and run.points() == [] and run.status == "FINISHED"
        run.score("")
        assert exit_status(lambda: sync([str(run.folder)])) == 2
        error = capsys.readouterr().err
        assert said in error and "Traceback" not in error and "evaluation.json" in run.files
    finally:
        with contextlib.closing(sqlite3.connect(place / "mlflow.db")) as database:
            database.execute("DROP TRIGGER refused")
    assert sync([str(run.folder)]) == 0
    assert run.points() == [(STEPS, 75.0)]


def test_scores_arrive_where_files_are_refused(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(place / "no-files", "killed")
    folder = place / "mlartifacts" / run.run_id
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file, and no folder")
    caplog.clear()
    run.attempt("finished", results())
    (line,) = caplog.messages
    assert line.startswith(f"MLflow: files of MLflow run {run.run_id} cannot be written to ") and "accurac" not in line
    assert run.points() == [(STEPS, 75.0)] and run.status == "FINISHED"
    folder.unlink()
    assert sync([str(run.folder)]) == 0 and run.files == ["config.yaml"]


def test_files_arrive_where_evaluation_json_is_damaged(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(place / "damaged", "finished")
    run.score("", bridge=5)
    assert exit_status(lambda: sync([str(run.folder)])) == 2
    error = capsys.readouterr().err
    assert f"{run.folder}/evaluation.json has bridge 5; expected " in error and "cannot be written" not in error
    assert run.files == ["config.yaml", "evaluation.json"]
