"""README stays true: its commands are run here, as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def command(name: str) -> str:
    found = re.search(rf"<!-- command: {name} -->\n```bash\n(.+?)\n```", README, re.DOTALL)
    assert found, f"README has no command {name}"
    return found[1]


def test_ci_runs_the_test_command() -> None:
    assert "command: test" in (ROOT / ".ci" / "run").read_text()
    assert "-m pytest -n 3 " in command("test")


@pytest.mark.slow
def test_the_python_example_answers_in_a_constructed_language(
    trained_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs" / "inference.md").read_text(encoding="utf-8")
    code = re.search(r"<!-- command: answer -->\n```python\n(.+?)\n```", page, re.DOTALL)
    assert code and code[1].count("\n") + 1 < 10
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "testbed").symlink_to(trained_run)
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    printed = code[1].rpartition("  # ")[2]
    assert capsys.readouterr().out.strip() == printed == "['Political']"


@pytest.mark.slow
def test_the_main_command_trains_scores_and_tracks(tmp_path: Path) -> None:
    """The README's first command on two processes, shortened by overrides; then the scoring command on its run."""
    import mlflow

    last = command("train").split("&&")[-1].strip()
    assert last == ".venv/bin/deepspeed bridge_ds/train.py --ds_config zero3.json"
    script = Path(sys.executable).parent / "deepspeed"
    short = {
        "run.output": tmp_path / "run",
        "train.steps": 6,
        "checkpoint.every": 3,
        "evaluation.limit": 6,
        "track.every": 2,
    }
    arguments = [part for key, value in short.items() for part in ("--set", f"{key}={value}")]
    env = os.environ | {"PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    parts = [str(script), "--num_accelerators", "2", "--master_port", "29711", *last.split()[1:], *arguments]
    done = subprocess.run(parts, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "LLM alone" in done.stdout
    assert "all trained" in done.stderr

    results = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(results["bridge"]) == {"testbed_inference", "testbed_news", "testbed_reviews"}
    assert results["llm"]["testbed_news"]["qab"]["n"] == 6

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("testbed").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["train.steps"] == "6"
    assert [point.step for point in client.get_metric_history(run.info.run_id, "loss")] == [1, 2, 4, 6]
    plots = {Path(item.path).name for item in client.list_artifacts(run.info.run_id, "plots")}
    assert plots == {"loss.png", "layer_weights.png", "accuracy.png"}

    again = [sys.executable, "-m", "bridge_ds.evaluation", "--run", str(tmp_path / "run")]
    scored = subprocess.run(again, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert scored.returncode == 0, scored.stderr[-3000:]
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == results
