"""The benchmarks run, on shapes that take seconds, and their rows say what they rest on; speed is not asserted."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_TRITON = importlib.util.find_spec("triton") is not None


def rows_of(tool: str, output: Path, interpreted: bool = False) -> list[dict[str, str]]:
    """Run a tool's quick form and read what it wrote."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": str(int(interpreted))}
    command = [sys.executable, f"tools/bench/{tool}.py", "--quick", "--threads", "1", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
    with output.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_fusion_rows(tmp_path: Path) -> None:
    rows = rows_of("bench_fusion", tmp_path / "rows.csv", interpreted=HAS_TRITON)
    paths = {"reference", "torch"} | ({"triton"} if HAS_TRITON else set())
    for fusion in ("global_softmax", "transformer_softmax"):
        assert {row["path"] for row in rows if row["fusion"] == fusion} == paths
    for row in rows:
        assert float(row["both_ms"]) > 0
        assert float(row["peak_extra_nd"]) > 0
        assert row["torch"]
        assert row["commit"]
    slow = next(row for row in rows if (row["fusion"], row["path"]) == ("transformer_softmax", "reference"))
    fast = next(row for row in rows if (row["fusion"], row["path"]) == ("transformer_softmax", "torch"))
    assert float(fast["peak_extra_nd"]) < float(slow["peak_extra_nd"])


@pytest.mark.slow
def test_step_rows(tmp_path: Path) -> None:
    rows = rows_of("bench_step", tmp_path / "rows.csv")
    assert [row["fusion"] for row in rows] == ["last_layer", "global_softmax", "transformer_softmax", "layer_attention"]
    assert float(rows[0]["vs_last_layer"]) == 1
    assert all(0 < float(row["mfu"]) <= 1 for row in rows)
    assert all(row["commit"] and row["source_tokens_per_s"] for row in rows)


@pytest.mark.slow
def test_scoring_rows(tmp_path: Path) -> None:
    rows = rows_of("bench_eval", tmp_path / "rows.csv")
    assert [int(row["labels"]) for row in rows] == [1, 3, 5]
    assert float(rows[0]["vs_one"]) == 1
    assert all(float(row["batch_ms"]) > 0 and row["commit"] for row in rows)


def test_what_needs_a_gpu_says_so() -> None:
    env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "PYTHON": sys.executable}
    done = subprocess.run(
        ["bash", "tools/bench/bench_gpu.sh"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2 and done.stderr.startswith("error: no GPU is seen") and done.stderr.count("\n") == 1
