"""TensorBoard and W&B get what MLflow gets, once, over a kill and a resume; read back from their own files."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.config.load import load_config, save_config
from bridge_ds.config.schema import Config
from bridge_ds.entry import exit_status
from bridge_ds.errors import ConfigError
from bridge_ds.track import trackers
from bridge_ds.track.metrics_file import MetricsLog
from bridge_ds.track.sync import main as sync
from tests import launch

from .records import record, results

STEPS = 12
Scalars = dict[str, list[tuple[int, float]]]


def config_for(folder: Path, *to: str) -> Config:
    settings = [f"track.to=[{','.join(to)}]", "track.uri=none", "track.every=5", f"train.steps={STEPS}"]
    config = load_config("testbed", [*settings, f"run.output={folder}"])
    folder.mkdir(exist_ok=True)
    save_config(config, folder / "config.yaml")
    return config


def log(folder: Path, start: int, last: int) -> MetricsLog:
    metrics = MetricsLog(folder / "metrics.jsonl")
    metrics.on_start(step=start, total_steps=STEPS)
    for step in range(start + 1, last + 1):
        metrics.on_step(record(step, STEPS))
    return metrics


def attempt(folder: Path, start: int, last: int, killed: bool) -> None:
    metrics = log(folder, start, last)
    hooks = trackers.feeds(folder, config_for(folder, "tensorboard", "wandb"), {"ranks": 2}, close_seconds=60)
    for hook in hooks:
        hook.on_start(step=start, total_steps=STEPS)
        hook.on_step(record(last, STEPS))
    while killed:
        time.sleep(0.05)
        if all(hook._tracker.state.logged_step == 5 for hook in hooks):
            os.kill(os.getpid(), signal.SIGKILL)
    for hook in hooks:
        hook.on_evaluation(results())
    metrics.on_end("finished")
    for hook in hooks:
        hook.on_end("finished")


def tensorboard_scalars(folder: Path) -> Scalars:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def wandb_records(folder: Path) -> Iterator[Any]:
    """Of all its offline files. A record may go over several blocks of 32 KiB (LevelDB's log format)."""
    from wandb.proto import wandb_internal_pb2

    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        content, position, held = path.read_bytes(), 7, b""
        while position + 7 <= len(content):
            left = 32768 - position % 32768
            if left < 7:
                position += left
                continue
            _, size, kind = struct.unpack("<IHB", content[position : position + 7])
            held += content[position + 7 : position + 7 + size]
            position += 7 + size
            if kind in (1, 4):  # whole, or the last part
                found = wandb_internal_pb2.Record()
                found.ParseFromString(held)
                held = b""
                yield found


def wandb_scalars(folder: Path) -> Scalars:
    found: Scalars = {}
    for each in wandb_records(folder):
        if each.WhichOneof("record_type") == "history":
            values = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in each.history.item}
            for name, value in values.items():
                if not name.startswith("_"):
                    found.setdefault(name, []).append((each.history.step.num or values["_step"], value))
    return found


READERS: dict[str, Callable[[Path], Scalars]] = {"tensorboard": tensorboard_scalars, "wandb": wandb_scalars}


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Killed by SIGKILL after step 7; resumed from a checkpoint of step 3 to the end."""
    folder = tmp_path_factory.mktemp("trackers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        pid = os.fork()
        if pid == 0:
            attempt(folder, 0, 7, killed=True)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        attempt(folder, 3, STEPS, killed=False)
        yield folder


@pytest.mark.parametrize("name", READERS)
def test_no_point_twice_and_none_lost_over_a_kill_and_a_resume(resumed: Path, name: str) -> None:
    found = READERS[name](resumed)
    for metric in ("loss", "layer_weight/04", "target_tokens_per_s"):
        assert [step for step, _ in found[metric]] == [1, 5, 10, 12], metric
    assert found["loss"][-1][1] == pytest.approx(2.0 / 12)
    state = json.loads((resumed / f"{name}.json").read_text())
    assert (state["logged_step"], state["status"]) == (STEPS, "finished")


def test_scores_and_status(resumed: Path) -> None:
    score = "accuracy_percent/news/qaa/bridge_acc"
    assert tensorboard_scalars(resumed)[score] == [(STEPS, 75.0)]
    summary = {}
    ids, exits = set(), []
    for each in wandb_records(resumed):
        kind = each.WhichOneof("record_type")
        if kind == "run":
            ids.add(each.run.run_id)
        elif kind == "summary":
            summary |= {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in each.summary.update}
        elif kind == "exit":
            exits.append(each.exit.exit_code)
    assert summary[score] == 75.0 and summary["status"] == "finished"
    assert ids == {json.loads((resumed / "wandb.json").read_text())["run_id"]} and exits == [0]


def test_a_killed_process_is_brought_up_to_date_by_sync(tmp_path: Path) -> None:
    """Nothing of it was sent while it ran."""
    config_for(tmp_path, "tensorboard")
    log(tmp_path, 0, STEPS)
    for _ in range(2):
        assert sync([str(tmp_path)]) == 0
        assert [step for step, _ in tensorboard_scalars(tmp_path)["loss"]] == [1, 5, 10, 12]


def test_scores_by_hand_of_a_killed_process_are_sent_by_sync(tmp_path: Path) -> None:
    config_for(tmp_path, "tensorboard", "wandb")
    log(tmp_path, 0, STEPS)
    (tmp_path / "evaluation.json").write_text(json.dumps(results() | {"checkpoint": "step-00000010"}))
    # A process of its own: W&B's would be shared with the process that another test forks.
    command = [sys.executable, "-m", "bridge_ds.track.sync", str(tmp_path)]
    subprocess.run(command, cwd=launch.ROOT, env=os.environ | {"WANDB_MODE": "offline"}, check=True, timeout=120)
    score = "accuracy_percent/news/qaa/bridge_acc"
    assert tensorboard_scalars(tmp_path)[score] == [(10, 75.0)]
    summaries = [each.summary for each in wandb_records(tmp_path) if each.WhichOneof("record_type") == "summary"]
    assert score in {"/".join(item.nested_key) or item.key for summary in summaries for item in summary.update}
    assert json.loads((tmp_path / "wandb.json").read_text())["status"] == ""  # how it ended is still not known


@pytest.mark.parametrize(
    ("name", "text", "status", "words"),
    [
        ("metrics.jsonl", '{"step": 1}\n[]\n', 2, "metrics.jsonl is '[]'; expected a JSON object with `step`"),
        ("metrics.jsonl", '{"step": 1, "step": 2}\n', 2, "expected a JSON object with `step`"),
        ("metrics.jsonl", '{"step": 1, "loss": "low"}\n', 2, "expected a JSON object with `step`"),
        ("evaluation.json", '{"bridge": 5}', 2, "evaluation.json has bridge 5; expected "),
        ("tensorboard.json", '{"logged_step": "3"}', 0, "has logged_step '3'; expected a valid integer; a new run is"),
        ("tensorboard.json", "[]", 0, "holds list; expected an object; a new run is begun"),
        ("tensorboard.json", '{"status": "gone"}', 0, "has status 'gone'; expected a text of the pattern "),
    ],
)
def test_sync_of_a_damaged_file(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
    text: str,
    status: int,
    words: str,
) -> None:
    folder = tmp_path / "run"
    config = config_for(folder, "tensorboard")
    (folder / "metrics.jsonl").write_text(json.dumps(record(1, STEPS)) + "\n")
    saved = {
        "run_id": "run",
        "uri": str(folder / "tensorboard"),
        "experiment": config.track.experiment,
        "logged_step": 0,
        "status": "finished",
    }
    (folder / "tensorboard.json").write_text(json.dumps(saved))
    (folder / name).write_text(text)
    assert exit_status(lambda: sync([str(folder)])) == status
    captured = capsys.readouterr()
    assert words in caplog.text + captured.err and "Traceback" not in captured.err
    if status == 0:
        assert "steps 0 to 1 sent" in captured.out


def test_what_is_not_known_or_not_installed_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'tensorbord'.*did you mean 'tensorboard'"):
        trackers.check_trackers(config_for(tmp_path, "tensorbord"))
    with pytest.raises(ConfigError, match=r"track\.to names mlflow twice"):
        trackers.check_trackers(config_for(tmp_path, "mlflow", "tensorboard", "mlflow"))
    command = [sys.executable, "-c", "import sys; sys.modules['wandb'] = None; sys.argv[0] = 'train.py'\n"
               "import bridge_ds.train as train; train.run_command(train.main)"]  # fmt: skip
    left = [*command, "--dry-run", "--set", "track.to=[mlflow, wandb]"]
    done = subprocess.run(left, cwd=launch.ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "pip install 'bridge_ds[wandb]'" in done.stderr, done.stderr


def test_every_tracker_is_an_extra_or_required() -> None:
    setup = (launch.ROOT / "setup.py").read_text()
    assert all(f'"{name}"' in setup for name in trackers.TRACKERS)


def test_a_new_tracker_is_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "printed.py").write_text(
        "from bridge_ds.track.tracker import Tracker\n"
        "class Printed(Tracker):\n"
        "    name, file = 'Printed', 'printed.json'\n"
        "    def open(self, facts):\n"
        "        return ''\n"
        "    def send(self, records):\n"
        "        for record in records:\n"
        "            print(record['step'])\n"
        "            self.state.logged_step = record['step']\n"
        "        self.save()\n"
        "    def finish(self, status):\n"
        "        print(status)\n"
        "def make_tracker(folder, config):\n"
        "    return Printed(folder, config, 'stdout')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(trackers.TRACKERS, "printed", "printed")
    config = config_for(tmp_path / "run", "printed")
    trackers.check_trackers(config)
    log(tmp_path / "run", 0, STEPS)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        assert sync([str(tmp_path / "run")]) == 0
        (feed,) = trackers.feeds(tmp_path / "run", config)
        feed.on_end("finished")
    lines = printed.getvalue().splitlines()
    assert lines[:4] == ["1", "5", "10", "12"] and "steps 0 to 12 sent" in lines[4] and lines[5:] == ["finished"]
