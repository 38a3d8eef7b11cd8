"""Every code path against the float64 reference: shapes from none to many, odd widths, both dtypes, all gradients."""

from __future__ import annotations

import importlib.util
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.fusion.cases import Case, check, in_bfloat16, make_fusion

ROOT = Path(__file__).parents[2]
HAS_TRITON = importlib.util.find_spec("triton") is not None
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"

CASES = [
    Case(1, 1, 1, 8),
    Case(1, 3, 0, 8),
    Case(4, 48, 75, 12, heads=4),
    Case(2, 24, 6, 1024),
    Case(3, 12, 7, 333),
    Case(3, 6, 9, 40, heads=4, normalize="rms"),
    Case(3, 6, 9, 33, normalize="rms"),
    Case(2, 5, 11, 16, frozen=True),
    Case(2, 5, 11, 16, heads=4, normalize="rms", frozen=True),
    Case(4, 24, 75, 9, fusion="global_softmax"),
    Case(2, 7, 5, 65, fusion="global_softmax", normalize="rms"),
    Case(1, 3, 0, 8, fusion="global_softmax"),
    Case(4, 24, 75, 9, fusion="layer_attention"),
    Case(2, 7, 5, 65, fusion="layer_attention", normalize="rms"),
    Case(2, 5, 11, 16, fusion="layer_attention", normalize="rms", frozen=True),
    Case(1, 3, 0, 8, fusion="layer_attention"),
]
SMALL = [  # the interpreter takes milliseconds a program
    Case(1, 3, 0, 8),
    Case(2, 5, 4, 8, heads=4, normalize="rms"),
    Case(2, 3, 3, 301),
    Case(2, 3, 4, 12, frozen=True),
    Case(2, 6, 5, 9, fusion="global_softmax", normalize="rms"),
    Case(1, 2, 3, 16, fusion="global_softmax"),
    Case(2, 9, 3, 20, ragged=False),
    Case(2, 9, 3, 16, heads=4, dropout=0.3),
    Case(2, 17, 3, 24, normalize="rms", dropout=0.3, ragged=False),
    Case(2, 9, 3, 16, fusion="global_softmax", ragged=False),
    Case(2, 8, 3, 16, fusion="global_softmax", normalize="rms", ragged=False, frozen=True),
    Case(1, 5, 530, 8, dropout=0.3),
    Case(1, 3, 0, 8, fusion="layer_attention"),
    Case(2, 6, 5, 9, fusion="layer_attention", normalize="rms"),
    Case(2, 9, 3, 20, fusion="layer_attention", ragged=False),
]


def drawn(count: int) -> list[Case]:
    """Cases at random over the whole range, the same in every run."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        batch, heads = draw.randint(1, 5), draw.choice([1, 4])
        width = draw.choice([8, 20, 36, 64]) if heads == 4 else draw.randint(8, 70)
        case = Case(
            batch, draw.randint(1, 48), draw.randint(0, 60), width, heads, draw.choice(["none", "rms"]),
            draw.choice([torch.float32, torch.bfloat16]),
            draw.choice(["transformer_softmax", "global_softmax", "layer_attention"]),
        )  # fmt: skip
        found.append(case)
    return found


@pytest.mark.parametrize("case", CASES + [in_bfloat16(case) for case in CASES], ids=str)
def test_torch_equals_the_reference(case: Case) -> None:
    check(case, "torch")


@pytest.mark.parametrize("case", drawn(12), ids=str)
def test_torch_equals_the_reference_anywhere(case: Case) -> None:
    check(case, "torch")


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (pip install 'bridge_ds[kernels]')")
@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_in_the_interpreter, with TRITON_INTERPRET=1")
@pytest.mark.parametrize("case", SMALL + [in_bfloat16(case) for case in SMALL], ids=str)
def test_triton_equals_the_reference(case: Case) -> None:
    check(case, "triton")


def lying_otherwise(state: torch.Tensor, how: str) -> torch.Tensor:
    """The same numbers elsewhere in memory."""
    if how == "columns first":
        return state.transpose(1, 2).contiguous().transpose(1, 2)
    wide = torch.zeros(*state.shape[:2], state.shape[2] + 3)[..., 3:]
    if how == "gaps between rows":
        return wide.copy_(state)
    assert how == "not aligned"
    return torch.zeros(state.numel() + 1)[1:].view(state.shape).copy_(state)


@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (pip install 'bridge_ds[kernels]')")
@pytest.mark.skipif(not INTERPRETED, reason="run by test_triton_in_the_interpreter, with TRITON_INTERPRET=1")
@pytest.mark.parametrize("how", ["columns first", "gaps between rows", "not aligned"])
@pytest.mark.parametrize("which", ["first", "last", "all"])
@pytest.mark.parametrize("name", ["global_softmax", "transformer_softmax", "layer_attention"])
def test_triton_equals_the_reference_however_states_lie(name: str, which: str, how: str) -> None:
    case = Case(2, 3, 4, 16, fusion=name)
    torch.manual_seed(0)
    plain = [torch.randn(2, 4, 16) for _ in range(3)]
    chosen = {"first": [0], "last": [2], "all": [0, 1, 2]}[which]
    states = [lying_otherwise(state, how) if n in chosen else state for n, state in enumerate(plain)]
    upstream = lying_otherwise(torch.randn(2, 4, 16), how)
    found = []
    for path, given in (("reference", plain), ("triton", states)):
        fusion = make_fusion(case, path).float()
        fused = fusion(given, torch.ones(2, 4))
        fused.backward(upstream)
        found.append([fused, *(p.grad for p in fusion.parameters() if p.grad is not None)])
    for expected, got in zip(*found, strict=True):
        assert torch.allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no GPU is here (tools/bench/bench_gpu.sh runs this where one is)"
)
@pytest.mark.parametrize("case", CASES + [in_bfloat16(case) for case in CASES + SMALL], ids=str)
def test_triton_equals_the_reference_on_a_gpu(case: Case) -> None:
    check(case, "triton", "cuda")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed (pip install 'bridge_ds[kernels]')")
@pytest.mark.skipif(INTERPRETED, reason="this is the interpreter")
def test_triton_in_the_interpreter() -> None:
    """The variable must be set before triton is imported, hence a process of its own."""
    files = [str(Path(__file__)), str(Path(__file__).with_name("test_by_matrix.py"))]
    command = [sys.executable, "-m", "pytest", *files, "-k", "test_triton_equals", "-x"]
    env = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-5000:]
