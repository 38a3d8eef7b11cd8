"""The sqlite file that runs share: whole or not there after a kill at any moment; odd letters in its path; what was
deleted in MLflow."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.store.tracking import sqlalchemy_store
from sqlalchemy.engine import Engine
from sqlalchemy.event import listen

from bridge_ds.config.load import save_config
from bridge_ds.config.schema import Config, TrackConfig, TrainConfig
from bridge_ds.disk import write_text
from bridge_ds.entry import exit_status
from bridge_ds.track.metrics_file import MetricsLog
from bridge_ds.track.mlflow import tracking_uri
from bridge_ds.track.mlflow_database import prepare, sqlite_path, sqlite_uri
from bridge_ds.track.sync import main as sync
from bridge_ds.track.tracker import without_password
from bridge_ds.track.trackers import feeds

from .records import record

assert sqlalchemy_store
ODD = ["a%b", "a%20b", "100%25", "a?b", "a?mode=memory&x", "a#b", "a b", "é%3F", "x@y", "a'b\"c", "a;b&c=d", "a:b"]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def forked(work: Callable[[], object]) -> int:
    """Do something in another process; its pid. It ends with status 0 or 1."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        sys.stderr.flush()
        os._exit(status)


def killed(work: Callable[[], object], until: Callable[[], bool]) -> bool:
    """Kill it by SIGKILL as soon as `until` holds; whether it came to its end before."""
    pid, end = forked(work), time.monotonic() + 60
    while not until():
        if os.waitpid(pid, os.WNOHANG)[0]:
            return True
        assert time.monotonic() < end
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) != -signal.SIGKILL


def grown(folder: Path, size: int) -> Callable[[], bool]:
    """Whether the file under the work has that many bytes."""

    def holds() -> bool:
        sizes = []
        for path in folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size if ".db" in path.name and "-journal" not in path.name else 0)
        return max(sizes, default=-1) >= size

    return holds


def plain(path: Path) -> None:
    """What MLflow does by itself; not flushed to disk each time, which takes seven seconds."""
    listen(Engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    MlflowClient(sqlite_uri(path)).search_experiments()


def usable(path: Path) -> None:
    """MLflow takes a run into it, and so does the next start."""
    client = MlflowClient(sqlite_uri(path))
    number = len(client.search_experiments())
    run = client.create_run(client.create_experiment(f"x{number}", artifact_location=str(path.parent)))
    client.log_metric(run.info.run_id, "loss", 1.0)
    assert client.get_run(run.info.run_id).data.metrics == {"loss": 1.0}


def test_a_start_that_is_killed_while_it_makes_the_database_leaves_none(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    uri = sqlite_uri(path)
    for size in (1, 150_000):
        assert not killed(lambda: prepare(uri), grown(tmp_path, size)), size
        assert not path.exists(), size
    # The last moments: all is made and has no name yet; it has its name, and the other one too.
    for name in ("fsync", "unlink"):

        def work(name: str = name) -> None:
            real = getattr(os, name)

            def last(*arguments: object, **options: object) -> object:
                if name == "fsync" or path.exists():
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **options)

            setattr(os, name, last)
            prepare(uri)

        pid = forked(work)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        assert path.exists() == (name == "unlink")
    assert prepare(uri) == ""
    usable(path)
    path.unlink()
    assert prepare(uri) == ""  # for the second name of the first one is taken away now
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"], "what kills have left is gone"


def test_starts_at_once_make_one_database(tmp_path: Path) -> None:
    uri = sqlite_uri(tmp_path / "mlflow.db")
    pids = [forked(lambda: prepare(uri)) for _ in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0, 0]
    assert [each.name for each in tmp_path.iterdir()] == ["mlflow.db"]
    usable(tmp_path / "mlflow.db")


@pytest.mark.parametrize("size", [0, 60_000, 200_000])
def test_a_database_that_a_plain_client_left_half_made_is_made_anew(tmp_path: Path, size: int) -> None:
    """As older versions of this left it, and as mlflow ui does."""
    path = tmp_path / "mlflow.db"
    assert not killed(lambda: plain(path), grown(tmp_path, size))
    assert path.exists()
    os.utime(path, (time.time() - 100,) * 2)  # as if some minutes had passed since: nobody is waited for
    said = prepare(sqlite_uri(path))
    assert "was incomplete" in said and "mlflow.db.half-made-1" in said
    usable(path)
    assert prepare(sqlite_uri(path)) == ""
    assert sorted(each.name for each in tmp_path.iterdir()) == ["mlflow.db", "mlflow.db.half-made-1"]


def test_a_database_that_somebody_else_is_making_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    pid = forked(lambda: plain(path))
    while not grown(tmp_path, 1)():
        time.sleep(0.01)
    assert prepare(sqlite_uri(path)) == ""
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    usable(path)


def test_a_database_with_runs_is_never_put_away(
    tmp_path: Path, made: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of another version: MLflow's own upgrade is for its owner to start, on a copy."""
    path = tmp_path / "mlflow.db"
    path.write_bytes(made)
    pid = forked(lambda: usable(path))  # in a process of its own: MLflow looks at a file's version only once
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE alembic_version SET version_num = '7ac759974ad8'")
        database.commit()
    os.utime(path, (time.time() - 100,) * 2)
    before = path.read_bytes()
    config = Config(track=TrackConfig(uri=sqlite_uri(path)), train=TrainConfig(steps=2))
    folder = run_folder(tmp_path / "run", config)
    assert exit_status(lambda: sync([str(folder)])) == 2
    assert path.read_bytes() == before and f"mlflow db upgrade {sqlite_uri(path)}`" in capsys.readouterr().err


def run_folder(folder: Path, config: Config) -> Path:
    folder.mkdir(parents=True)
    save_config(config, folder / "config.yaml")
    log = MetricsLog(folder / "metrics.jsonl")
    log.on_start(step=0, total_steps=2)
    log.on_step(record(1, 2))
    log.on_end("finished")
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database, made once."""
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    prepare(sqlite_uri(path))
    return path.read_bytes()


@pytest.mark.parametrize("name", ODD)
def test_odd_letters_in_the_output_path_lead_to_that_very_file(
    tmp_path: Path, made: bytes, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / name / "run"
    folder.mkdir(parents=True)
    if name != ODD[0]:
        (tmp_path / name / "mlflow.db").write_bytes(made)  # all but one: making it takes a second
    config = Config(train=TrainConfig(steps=2))
    uri = tracking_uri(config.track, folder)
    assert uri and sqlite_path(uri) == tmp_path / name / "mlflow.db"
    log, (tracker,) = MetricsLog(folder / "metrics.jsonl"), feeds(folder, config, {}, 30)
    for hook in (log, tracker):
        hook.on_start(step=0, total_steps=2)
    for step in (1, 2):
        log.on_step(record(step, 2))
        tracker.on_step(record(step, 2))
    save_config(config, folder / "config.yaml")
    log.on_end("finished")
    tracker.on_end("finished")
    said = caplog.messages
    assert len(said) == 1 and "is finished at" in said[0], said
    with contextlib.closing(sqlite3.connect(tmp_path / name / "mlflow.db")) as database:
        assert database.execute("SELECT count(*) FROM runs").fetchall() == [(1,)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name], "no other folder or file"
    run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    assert (tmp_path / name / "mlartifacts" / run_id / "artifacts" / "config.yaml").is_file()
    assert sync([str(folder)]) == 0


def test_a_path_with_an_at_sign_is_no_password() -> None:
    assert without_password("sqlite:////me@host/mlflow.db") == "sqlite:////me@host/mlflow.db"
    assert without_password("http://me:secret@host/x and postgresql://u:p@h/d") == "http://host/x and postgresql://h/d"


def test_what_was_deleted_in_mlflow_is_named_with_the_command_that_brings_it_back(
    tmp_path: Path, made: bytes, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mlflow.db").write_bytes(made)
    odd = "ex/peri\"ment' %20 #?é"
    config = Config(track=TrackConfig(experiment=odd), train=TrainConfig(steps=2))
    folder = run_folder(tmp_path / "run", config)
    uri = sqlite_uri(tmp_path / "mlflow.db")
    client = MlflowClient(uri)

    def sent(which: Path = folder) -> str:
        status = exit_status(lambda which=which: sync([str(which)]))
        out, err = capsys.readouterr()
        assert (status == 0) == bool(out)
        return out or err

    assert "steps 0 to 1 sent" in sent()
    run_id = json.loads((folder / "mlflow.json").read_text())["run_id"]
    (experiment,) = [each for each in client.search_experiments() if each.name == odd]
    # The run; the experiment with it; the experiment, for a run that is new there.
    client.delete_run(run_id)
    said = sent()
    assert (
        f"MLFLOW_TRACKING_URI={uri} mlflow runs restore --run-id {run_id}`" in said and "start the server" not in said
    )
    client.delete_experiment(experiment.experiment_id)
    for which in (folder, run_folder(tmp_path / "new", config)):
        said = sent(which)
        assert f"mlflow experiments restore -x {experiment.experiment_id}`" in said and repr(odd) in said
        assert "track.experiment" in said and "start the server" not in said
    # The commands do what they are said to do.
    client.restore_experiment(experiment.experiment_id)
    client.restore_run(run_id)
    assert "sent" in sent() and "sent" in sent(tmp_path / "new")
    # The tracker says it whole, in its one line.
    client.delete_experiment(experiment.experiment_id)
    caplog.clear()
    (tracker,) = feeds(folder, config, {}, 30)
    tracker.on_start(step=1, total_steps=2)
    tracker.on_end("finished")
    lines = caplog.messages
    assert len(lines) == 1 and "experiments restore -x" in lines[0] and "bridge-ds sync" in lines[0]


def test_files_that_cannot_be_sent_are_said_with_their_place(
    tmp_path: Path, made: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mlflow.db").write_bytes(made)
    config = Config(train=TrainConfig(steps=2))
    folder = run_folder(tmp_path / "run", config)
    write_text(folder / "mlflow.json", json.dumps({"status": "finished", "uri": tracking_uri(config.track, folder),
                                                   "experiment": "bridge_ds"}))  # fmt: skip
    (tmp_path / "mlartifacts").write_text("in the way")
    assert exit_status(lambda: sync([str(folder)])) == 2
    said = capsys.readouterr().err
    assert str(tmp_path / "mlartifacts") in said and "start the server" not in said
    (tmp_path / "mlartifacts").unlink()
    assert sync([str(folder)]) == 0
    assert list((tmp_path / "mlartifacts").rglob("config.yaml"))
