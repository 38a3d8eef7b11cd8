"""How the ranks of a node share its cores, and what a process keeps of its memory."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.config.schema import Config
from bridge_ds.engine.cpu import LARGE_MODEL, MOST, cpu_threads, set_threads, slow_dtype
from bridge_ds.engine.layers import layer_weights
from bridge_ds.engine.setup import build_model
from bridge_ds.world import World


@given(st.integers(1, 256), st.integers(1, 16), st.integers(0, 8))
def test_ranks_share_the_cores_and_leave_one_to_their_workers(cores: int, ranks: int, workers: int) -> None:
    threads = cpu_threads(cores, ranks, workers)
    assert threads >= 1
    assert threads * ranks <= max(cores, ranks)
    if workers and cores >= 2 * ranks:
        assert (threads + 1) * ranks <= cores


def test_workers_get_no_core_of_their_own_beside_large_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """The testbed keeps one thread of two; multilingual-e5-small (21 million weights) and SmolLM2 (106) get both."""
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    model = build_model(Config(), None, {"zero_optimization": {"stage": 2}}, World())
    weights = layer_weights(model.encoder, model.llm)
    assert found == [7] and 2_000_000 < weights < LARGE_MODEL < 127_000_000
    monkeypatch.setattr("bridge_ds.engine.cpu.LARGE_MODEL", weights)
    set_threads(2, 2, weights)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_threads(1, 2, weights)
    assert found == [7, 4]
    monkeypatch.undo()
    assert [cpu_threads(2, 1, 1, each) for each in (weights, 127_000_000)] == [1, 2]
    assert cpu_threads(2, 1, 0, weights) == 2 and cpu_threads(1, 4, 1, 127_000_000) == 1


def test_bfloat16_without_its_instructions_is_said() -> None:
    older = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}
    assert "set model.dtype=float32" in slow_dtype("bfloat16", older)
    assert not slow_dtype("float32", older)
    for has in ({**older, "avx512_bf16": True}, {"neon": True, "bf16": True}, {}):
        assert not slow_dtype("bfloat16", has)


FAULTS = """
import ctypes, resource, sys, torch
from bridge_ds.engine.cpu import LARGEST, M_MMAP_THRESHOLD, keep_freed_memory
torch.set_num_threads(1)
size, count = int(sys.argv[1]), int(sys.argv[2])
kept = keep_freed_memory()
if size > 1_000_000:
    kept = keep_freed_memory(LARGEST)
def step():
    x = [torch.ones(size) for _ in range(count)]
for _ in range(20):  # until holes of the right sizes are there
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(kept, faults, ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGEST))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is glibc's")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_MMAP_THRESHOLD_": "65536"}])
@pytest.mark.parametrize("sizes", [("100000", "20"), ("2000000", "1"), ("16000000", "1")])
def test_freed_memory_is_kept_unless_the_user_has_set_malloc(environment: dict[str, str], sizes: list[str]) -> None:
    """Small tensors at once, those of 8 and 64 MB after the models are loaded."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", FAULTS, *sizes]
    done = subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=True, timeout=100)
    kept, faults, takes = done.stdout.split()
    if int(sizes[0]) * 4 > MOST and takes == "0":
        pytest.skip("this glibc keeps 32 MiB at most")
    assert kept == str(not environment)
    assert int(faults) > 15_000 if environment else int(faults) < 3_000  # 19,500 pages are written in ten steps


def test_peak_memory_is_the_process_s_own() -> None:
    """A small process started by a large one: getrusage would show the large one's memory."""
    child = "from bridge_ds.engine.distributed import peak_memory_gib; print(peak_memory_gib())"
    large = (
        "import subprocess, sys; held = b'x' * 2**30; "
        f"print(subprocess.run([sys.executable, '-c', {child!r}], capture_output=True, text=True).stdout)"
    )
    done = subprocess.run([sys.executable, "-c", large], capture_output=True, text=True, check=True, timeout=100)
    assert 0.05 < float(done.stdout) < 0.9
