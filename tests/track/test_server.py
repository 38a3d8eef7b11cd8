"""A real MLflow server that dies during real training, and ones that never answer: training does not notice."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import launch

pytestmark = pytest.mark.slow
STEPS = 60


class Server:
    """`mlflow server` on loopback over a sqlite file."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.port = folder, launch.free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        store = ["--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        place = ["--artifacts-destination", str(self.folder / "artifacts"), "--host", "127.0.0.1", "--workers", "1"]
        command = [sys.executable, "-m", "mlflow", "server", *store, *place, "--port", str(self.port)]
        # Its seven job runners import mlflow each; nothing here asks for jobs.
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=2).close()
                return
            except OSError:
                assert time.monotonic() < end, (self.folder / "log").read_text()[-3000:]
                time.sleep(0.2)

    def kill(self) -> None:
        if self.process:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("mlflow") / "server")
    made.start()
    yield made
    made.kill()


def start(small_run: list[str], run: Path, uri: str) -> launch.ForkedJob:
    settings = [
        f"track.uri={uri}",
        "track.every=1",
        "train.micro_batch=8",
        f"train.steps={STEPS}",
        "checkpoint.every=50",
        f"run.output={run}",
    ]
    command = [*small_run, *(part for setting in settings for part in ("--set", setting))]
    return launch.begin(command, 1, run.parent / f"{run.name}-logs", {"MLFLOW_TRACKING_URI": ""})


def lines(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def step_seconds(run: Path) -> float:
    """Median over the second half, in which the server is dead."""
    return statistics.median(line["seconds"] for line in lines(run)[STEPS // 2 :])


def test_a_server_that_dies_is_brought_up_to_date(small_run: list[str], server: Server, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = start(small_run, run, server.uri)
    try:
        end = time.monotonic() + 120
        while len(lines(run)) < STEPS // 3:
            assert time.monotonic() < end and job.running, job.wait(1).text[-3000:]
            time.sleep(0.02)
        server.kill()
        outcome = launch.succeed(job.wait())
        assert "not sent" in outcome.text and f"bridge-ds sync {run}" in outcome.text
        print(f"step: {1000 * step_seconds(run):.1f} ms with a dead server")
    finally:
        server.start()
    for _ in range(2):  # the second time there is nothing to do, and nothing is sent twice
        sync = [sys.executable, "-m", "bridge_ds.track.sync", str(run)]
        subprocess.run(sync, cwd=launch.ROOT, check=True, timeout=120)
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    (found,) = client.search_runs([client.get_experiment_by_name("testbed").experiment_id])
    assert found.info.status == "FINISHED"
    for name in ("loss", "grad_norm", "layer_weight/01"):
        points = [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, name)]
        assert sorted(points) == [(line["step"], value(line, name)) for line in lines(run)], name


def value(line: dict[str, Any], name: str) -> float:
    return line["layer_weights"][0] if name == "layer_weight/01" else line[name]


def test_servers_that_never_answer(small_run: list[str], tmp_path: Path) -> None:
    """One that refuses, and one whose connections the kernel takes and nobody ever reads."""
    with socket.socket() as closed, socket.socket() as silent:
        for hole in (closed, silent):
            hole.bind(("127.0.0.1", 0))
        silent.listen(64)
        places = {"closed": closed, "silent": silent}
        for name, hole in places.items():
            job = start(small_run, tmp_path / name, f"http://127.0.0.1:{hole.getsockname()[1]}")
            assert "not sent" in launch.succeed(job.wait()).text
            found = lines(tmp_path / name)
            assert [line["step"] for line in found] == list(range(1, STEPS + 1))
            slow = max(line["seconds"] for line in found[1:])
            print(f"{name}: step {1000 * step_seconds(tmp_path / name):.1f} ms, slowest {1000 * slow:.0f} ms")
            assert slow < 5, "a call to a dead server takes 10 s and more; no step waited for one"
