"""Jobs on a real Slurm: preempted, cut off by their time limit, robbed of ranks and nodes, and still the same model."""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests import launch
from tests.slurm.cluster import Cluster, until

pytestmark = pytest.mark.slow
SCRIPT = "slurm/train_13b.sh"
STEPS = 80


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def options(small_run: list[str], **more: object) -> list[str]:
    settings = {"train.steps": STEPS, "train.micro_batch": 4, "checkpoint.every": 5}
    settings |= {"run.ds_config": "zero3.json", "model.activation_checkpointing": "true"}
    settings |= {key.replace("__", "."): value for key, value in more.items()}
    return [*small_run, *(part for key, value in settings.items() for part in ("--set", f"{key}={value}"))]


@pytest.fixture(scope="module")
def whole(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, undisturbed, on two local ranks."""
    run = tmp_path_factory.mktemp("whole") / "run"
    arguments = ["--recipe", "mt5xl_13b", *options(small_run), "--set", f"run.output={run}"]
    launch.succeed(launch.train(arguments, 2, run.parent / "logs"))
    return run


def same(run: Path, whole: Path) -> None:
    """Bit for bit: every step's loss, and the final bridge."""
    found, expected = lines(run), lines(whole)
    for key in ("step", "ids_hash", "loss", "grad_norm", "layer_weights"):
        assert [line[key] for line in found] == [line[key] for line in expected], key
    last = f"checkpoints/step-{STEPS:08d}/bridge.safetensors"
    assert (run / last).read_bytes() == (whole / last).read_bytes()


class Statuses(threading.Thread):
    """The distinct statuses that the one MLflow run of a database takes, in order."""

    def __init__(self, database: Path) -> None:
        super().__init__(daemon=True)
        self.database, self.seen, self.done = database, [], threading.Event()  # type: ignore[var-annotated]
        self.start()

    def run(self) -> None:
        while not self.done.wait(0.2):
            with (
                contextlib.suppress(sqlite3.Error),
                sqlite3.connect(f"file:{self.database}?mode=ro", uri=True) as store,
            ):
                rows = [status for (status,) in store.execute("select status from runs")]
                if rows and self.seen[-1:] != rows:
                    assert len(rows) == 1
                    self.seen += rows

    def stop(self) -> list[str]:
        self.done.set()
        self.join()
        return self.seen


def test_signals_requeues_lost_ranks_and_nodes_change_nothing(
    cluster: Cluster, small_run: list[str], whole: Path, tmp_path: Path
) -> None:
    """One job on two of four nodes, disturbed at each start in another way."""
    import mlflow

    database = tmp_path / "mlflow.db"
    # Its first use runs MLflow's migrations, which would not fit into the time that a preempted run has for its status.
    mlflow.MlflowClient(f"sqlite:///{database}").search_experiments()
    statuses = Statuses(database)
    run = tmp_path / "run"
    env = {"MLFLOW_TRACKING_URI": f"sqlite:///{database}"}
    # Saved often, so that each of the short lives gets further: two in a row that do not end a job.
    job = cluster.submit(SCRIPT, options(small_run, track__uri="", track__every=1, checkpoint__every=2), run, env)

    job.wait_step(7)
    cluster.call("scancel", "--signal=TERM", job.number)
    until(lambda: "preempted; requeued" in job.text, 60, lambda: job.text[-4000:])
    saved = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert saved[-1] == f"step-{job.steps:08d}", "the checkpoint of the last step, not of the last multiple"

    job.wait_further(2)
    job.kill_rank(1)
    until(lambda: "a rank was lost, all nodes answer" in job.text, 90, lambda: job.text[-4000:])

    job.wait_further(3)
    cluster.call("scontrol", "requeue", job.number)

    job.wait_further(4)
    nodes = cluster.call("scontrol", "show", "hostnames", job.show()["NodeList"]).split()
    cluster.kill_node(nodes[1])

    job.wait_start(5)
    assert nodes[1] not in cluster.call("scontrol", "show", "hostnames", job.show()["NodeList"]).split()
    cluster.start_node(nodes[1])
    assert job.wait_end() == "COMPLETED", job.text[-5000:]
    same(run, whole)
    assert points(f"sqlite:///{database}", "loss") == [(line["step"], line["loss"]) for line in lines(whole)]
    seen = statuses.stop()
    # A first life this short may be over before MLflow has its first word of it.
    first = seen.index("KILLED")
    assert seen[:first] in ([], ["RUNNING"]) and seen[first + 1] == "RUNNING"
    assert seen.index("FINISHED") == len(seen) - 1
    cluster.wait_idle(4)


def points(uri: str, name: str) -> list[tuple[int, float]]:
    import mlflow

    client = mlflow.MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("bridge_ds").experiment_id])
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


LONG = pytest.mark.skipif(not os.environ.get("BRIDGE_DS_LONG"), reason="minutes long: set BRIDGE_DS_LONG=1")


@LONG
def test_ten_random_kills(cluster: Cluster, small_run: list[str], whole: Path, tmp_path: Path) -> None:
    """SIGKILL for one rank, the other, or both, at random moments; two may fall between two checkpoints."""
    settings = options(small_run, checkpoint__every=2)
    job = cluster.submit(SCRIPT, settings, tmp_path / "run", {"MAX_STALLS": "10"})
    draw = random.Random(0)
    for kill in range(10):
        job.wait_further(kill + 1, by=draw.randint(1, 4))
        time.sleep(draw.random())
        for rank in draw.choice([(0,), (1,), (0, 1)]):
            with contextlib.suppress(KeyError, ProcessLookupError):
                job.kill_rank(rank)
    assert job.wait_end(400) == "COMPLETED", job.text[-5000:]
    assert job.starts == 11
    same(tmp_path / "run", whole)


@LONG
def test_a_time_limit_that_is_reached(cluster: Cluster, small_run: list[str], tmp_path: Path) -> None:
    """Two minutes, and Slurm's warning 75 s before; the rest of the run after it."""
    steps = 300
    more = {"train__steps": steps, "train__micro_batch": 2, "checkpoint__every": 100}
    more["run__output"] = tmp_path / "whole"
    arguments = ["--recipe", "mt5xl_13b", *options(small_run, **more)]
    job = cluster.submit(SCRIPT, options(small_run, **more), tmp_path / "run", {"SBATCH_SIGNAL": "USR2@75"}, "--time=2")
    until(lambda: "preempted; requeued" in job.text, 150, lambda: job.text[-4000:])
    assert 0 < job.steps < steps and (tmp_path / "run" / "checkpoints" / f"step-{job.steps:08d}").is_dir()
    cluster.call("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
    assert job.wait_end(600) == "COMPLETED", job.text[-5000:]
    assert job.show()["Restarts"] == "1"
    launch.succeed(launch.train(arguments, 2, tmp_path / "logs", timeout=600))
    last = f"checkpoints/step-{steps:08d}/bridge.safetensors"
    assert (tmp_path / "run" / last).read_bytes() == (tmp_path / "whole" / last).read_bytes()
