"""Settings that a run goes on with although they were others: told in a line each, and kept in three records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import launch

pytestmark = pytest.mark.slow


def test_changed_settings_are_told_and_recorded_and_the_run_is_used_with_its_checkpoints_own(
    small_run: list[str], tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    run, ds_file = tmp_path / "run", tmp_path / "ds.json"

    def bucket(size: int) -> None:
        ds_file.write_text(json.dumps({"zero_optimization": {"stage": 3, "reduce_bucket_size": size}}))

    def start(*more: str) -> str:
        given = (f"run.output={run}", f"run.ds_config={ds_file}", "train.micro_batch=0", "checkpoint.every=1", *more)
        arguments = [*small_run, *(part for setting in given for part in ("--set", setting))]
        return launch.succeed(launch.train(arguments, 1, tmp_path / "logs")).text

    def manifest(step: int) -> dict[str, object]:
        return json.loads((run / "checkpoints" / f"step-{step:08d}" / "manifest.json").read_text())

    bucket(1_000_000)
    start("train.steps=2")
    assert manifest(2)["changes"] == []
    # Of the training: told. What is neither (places, recording, speed) is not.
    bucket(2_000_000)
    said = start("train.steps=4", "train.lr=0.002", "fusion.dropout=0.5", "track.uri=", "data.workers=0")
    lines = [line.strip() for line in said.splitlines() if "changed after step" in line]
    assert lines == [
        "changed after step 2: fusion.dropout 0.1 -> 0.5",
        "changed after step 2: train.steps 2 -> 4",
        "changed after step 2: train.lr 0.005 -> 0.002",
        "changed after step 2: run.ds_config.zero_optimization.reduce_bucket_size 1000000 -> 2000000",
    ]
    recorded = [{"after_step": 2, "key": "fusion.dropout", "old": 0.1, "new": 0.5},
                {"after_step": 2, "key": "train.steps", "old": 2, "new": 4},
                {"after_step": 2, "key": "train.lr", "old": 0.005, "new": 0.002},
                {"after_step": 2, "key": "run.ds_config.zero_optimization.reduce_bucket_size", "old": 1_000_000,
                 "new": 2_000_000}]  # fmt: skip
    assert manifest(4)["changes"] == recorded
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    tags = client.get_run(json.loads((run / "mlflow.json").read_text())["run_id"]).data.tags
    assert tags["attempt.1.changed.train.lr"] == "0.005 -> 0.002"
    # Of the function: only by name, and the record goes on.
    kept = ("train.lr=0.002", "fusion.dropout=0.5")
    said = start("train.steps=5", *kept, "data.max_source_tokens=20", "run.allow_changes=data.max_source_tokens")
    assert "changed after step 4: data.max_source_tokens 48 -> 20" in said
    assert [change["key"] for change in manifest(5)["changes"]][4:] == ["data.max_source_tokens", "train.steps"]  # type: ignore[index,union-attr]
    # From here on it is the run's own value: without a name again, and the old one would be a change.
    assert "changed after" not in start("train.steps=5", *kept, "data.max_source_tokens=20")
