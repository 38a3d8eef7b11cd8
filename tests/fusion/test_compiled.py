"""What the launchers launch, compiled ahead of time for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (pip install 'bridge_ds[kernels]')"
)


def audit(folder: Path, *arguments: str) -> list[str]:
    """Lines of tools/bench/audit_kernels.py, which fails where a kernel spills or reads a state less than 16 bytes at a
    time. A process of its own: it takes triton's driver away."""
    env = os.environ | {"TRITON_CACHE_DIR": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "tools/bench/audit_kernels.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "\n0 kernels spill" in done.stdout
    return [line for line in done.stdout.splitlines() if " heads " in line]


def registers(lines: list[str], kernel: str) -> list[int]:
    found = [re.search(rf" {kernel} +(\d+) registers", line) for line in lines]
    return [int(match[1]) for match in found if match]


def test_the_largest_usual_shape(tmp_path: Path) -> None:
    lines = audit(tmp_path, "--gpus", "sm90", "--encoders", "xl", "--dtypes", "bfloat16", "--rms")
    assert len(registers(lines, "attend")) == 1 and max(registers(lines, "attend")) <= 128


def test_unknown_names_are_refused() -> None:
    """In one process: each refusal leaves before anything is compiled."""
    cases = {"--gpus": "sm90,sm70", "--dtypes": "foo", "--encoders": "tiny", "--heads": "1,0"}
    program = f"""
import sys
sys.path.insert(0, "tools/bench")
import audit_kernels
for option, value in {cases!r}.items():
    try:
        audit_kernels.main([option, value])
    except SystemExit as left:
        print(option, left.code)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout.splitlines() == [f"{option} 2" for option in cases], done.stderr[-3000:]
    for words in ("'sm70' is none of sm80, sm90", "'foo' is none of bfloat16", "'tiny' is none of small", "0 is not"):
        assert words in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("gpu", ["sm80", "sm90", "sm100", "gfx942"])
def test_every_shape(tmp_path: Path, gpu: str) -> None:
    """mT5-small to XXL, 1 and 4 heads, both dtypes."""
    lines = audit(tmp_path, "--gpus", gpu, "--encoders", "small,base,large,xl,xxl", "--heads", "1,4")
    assert len(registers(lines, "attend")) == len(registers(lines, "attend_backward")) == 20
    assert max(registers(lines, "attend")) <= 128
    for kernel, count in (("mix", 10), ("dots", 10), ("mix_matrix", 9), ("matrix_dots", 9)):  # XXL's float32: torch
        assert len(registers(lines, kernel)) == count, kernel


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("tl.multiple_of = lambda x, n: x", "states are read in pieces of [2] bytes"),
        (
            "triton_primitives.shape_of = lambda *_: {'DP': 2048, 'GROUP': 8, 'num_warps': 8, 'maxnreg': 32}",
            "bytes spilled",
        ),
    ],
    ids=["narrow reads", "spills"],
)
def test_the_audit_sees(fault: str, wrong: str, tmp_path: Path) -> None:
    """An address that says nothing of its alignment; fewer registers than a thread needs."""
    program = f"""
import sys
sys.path.insert(0, "tools/bench")
import audit_kernels, torch, triton.language as tl
from bridge_ds.fusion.kernels import triton_primitives
{fault}
rows = audit_kernels.compiled("sm90", "xl", 1, torch.bfloat16, attention_only=True)
print([row.wrong for row in rows])
"""
    env = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert wrong in done.stdout
