"""The benchmarks run, on shapes that take seconds, and their rows say what they rest on; speed is not asserted."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tools.bench.bench_models import frozen_pair, make_batch, make_model, make_texts, tokenizers
from tools.bench.bench_rows import append
from tools.bench.bench_step import figures
from tools.bench.bench_variants import make_variants, take_turns
from tools.bench.paper_step import PAPER_FUSIONS, PaperStep

ROOT = Path(__file__).parents[2]
HAS_TRITON = importlib.util.find_spec("triton") is not None


def rows_of(tool: str, output: Path, *more: str, interpreted: bool = False) -> list[dict[str, str]]:
    """Run a tool's quick form and read what it wrote."""
    env = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": str(int(interpreted))}
    command = [sys.executable, f"tools/bench/{tool}.py", "--quick", "--threads", "1", "--output", str(output), *more]
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
    asked = ["--against", "paper", "--batch", "2,3", "--source", "5-9", "--target", "2", "--vocabulary", "2000"]
    rows = rows_of("bench_step", tmp_path / "rows.csv", *asked)
    paper = ["last_layer", "global_softmax", "transformer_softmax"]
    ours = [("ours", name) for name in (*paper, "layer_attention")]
    assert [(row["way"], row["fusion"]) for row in rows] == 2 * (ours + [("paper", name) for name in paper])
    assert [(row["vocabulary"], row["batch"], row["source"]) for row in rows[::7]] == [("2000", n, "5-9") for n in "23"]
    assert all(0 < float(row["mfu"]) <= 1 and row["commit"] and row["dtype"] == "float32" for row in rows)
    for row in rows:
        if row["fusion"] == "last_layer" or row["way"] == "paper":
            assert float(row["vs_last_layer" if row["fusion"] == "last_layer" else "speedup"]) == 1
        assert float(row["speedup_medians"]) > 0
        assert (row["tokenize_ms"] != "") == (row["way"] == "paper")


@pytest.mark.slow
def test_job_rows(tmp_path: Path) -> None:
    rows = rows_of("bench_job", tmp_path / "rows.csv", "--fusions", "last_layer,transformer_softmax")
    assert [(row["fusion"], row["steps"]) for row in rows] == [("last_layer", "3"), ("transformer_softmax", "3")]
    assert float(rows[0]["ratio"]) == 1 and all(float(row["ms"]) >= float(row["quick ms"]) > 0 for row in rows)
    assert float(rows[1]["ratio"]) == pytest.approx(float(rows[1]["ms"]) / float(rows[0]["ms"]), abs=0.01)


def test_texts_have_the_tokens_that_were_asked_for() -> None:
    batch = make_batch(make_texts(16, "9-59", 2))
    lengths = batch.source_mask.sum(1).tolist()
    assert len(lengths) == 16 and min(lengths) >= 9 and lengths[-1] == 59 == batch.source_ids.shape[1]
    assert batch.target_ids.shape == (16, 2) and set(batch.target_ids[:, 1].tolist()) == {2}
    assert batch.layout is not None and batch.layout.order.shape == (16, 63)
    assert min(make_batch(make_texts(40, "16", 1)).source_mask.sum(1).tolist()) >= 8


@pytest.mark.parametrize("fusion", PAPER_FUSIONS)
def test_the_papers_step_has_our_loss_and_gradients(fusion: str) -> None:
    """With the same weights and no dropout: what is compared by time does the same."""
    encoder, llm = frozen_pair("tiny", torch.device("cpu"), torch.float32, vocabulary=2000)
    ours = make_model(fusion, 32, encoder, llm, torch.device("cpu"))
    paper = PaperStep(fusion, encoder.model, llm.model, tokenizers(), feedforward=32)
    texts = make_texts(5, "3-12", 3)
    batch = make_batch(texts)
    prefix = "layer_weights." if fusion == "transformer_softmax" else ""
    names = {f"fusion.{one}": f"{prefix}{other}" for one, other in (ours.fusion.paper_names() or {}).items()}
    names |= {"mapping.project.weight": "fc.weight", "mapping.project.bias": "fc.bias", "mapping.end": "end_boundary"}
    assert set(names.values()) == {name for name, each in paper.named_parameters() if each.requires_grad}
    pairs = [(ours.get_parameter(one), paper.get_parameter(other)) for one, other in names.items()]
    with torch.no_grad():
        for one, other in pairs:
            one += 0.1 * torch.randn_like(one) * (fusion != "global_softmax")
            other.copy_(one.view_as(other))
    losses = [ours.eval()(batch) / batch.target_tokens, paper.eval()(*texts)]
    assert losses[1].item() == pytest.approx(losses[0].item(), rel=1e-6)
    for loss in losses:
        loss.backward()
    for one, other in pairs:
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(other.grad.view_as(one), one.grad, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
def test_compiled_layers_take_turns_with_the_others() -> None:
    """A T5 block with position bias, one without, and a Llama layer; source as long as the model is wide."""
    torch._dynamo.reset()
    encoder, llm = frozen_pair("tiny", torch.device("cpu"), torch.float32)
    eager, compiled = make_variants(["ours", "compiled"], ["last_layer"], 32, encoder, llm, backend="eager")
    texts = make_texts(3, "20-32", 3)
    take_turns([eager, compiled], texts, make_batch(texts), 1, torch.device("cpu"))
    assert compiled.more["graphs"] == 3 and compiled.more["recompiled"] == 0
    assert float(compiled.more["gradient_error"]) < 1e-6


def test_a_variant_without_memory_leaves_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, llm = frozen_pair("tiny", torch.device("cpu"), torch.float32)
    ours, paper = make_variants(["ours", "paper"], ["last_layer"], 32, encoder, llm)

    def too_large(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(paper.model, "fused", too_large)
    texts = make_texts(2, "4", 2)
    take_turns([ours, paper], texts, make_batch(texts), 2, torch.device("cpu"))
    assert (paper.error, paper.seconds, len(ours.seconds)) == ("out of memory", [], 2)
    rows = [figures(each, [ours, paper], 8, 1.0) for each in (ours, paper)]
    assert (rows[1]["error"], rows[1]["step_ms"]) == ("out of memory", "")
    assert list(rows[0]) == list(rows[1]) and rows[0]["speedup"] == "" and rows[0]["step_ms"] > 0


def test_rows_with_new_columns_join_the_old(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append(path, [{"a": 1, "b": 2}])
    append(path, [{"a": 3, "c": 4}])
    append(path, [{"a": 5, "b": 6, "c": 7}])
    assert path.read_text(encoding="utf-8").split() == ["a,b,c", "1,2,", "3,,4", "5,6,7"]


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
