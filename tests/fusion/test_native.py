"""The native path's own promises: built once, says why where it cannot be, trusts nobody else's file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bridge_ds.fusion.kernels import choose, native_build, native_rows, torch_rows
from bridge_ds.fusion.kernels.native_build import library, why_not
from bridge_ds.fusion.kernels.rows import Rows, real_rows

needs_compiler = pytest.mark.skipif(bool(why_not()), reason=f"no native path: {why_not()}")


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder, and nothing remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native_build._load.cache_clear()
    yield tmp_path / "bridge_ds"
    native_build._load.cache_clear()


@needs_compiler
def test_built_once_and_kept(fresh: Path) -> None:
    library()
    (built,) = fresh.iterdir()
    made = built.stat().st_mtime_ns
    native_build._load.cache_clear()
    library()
    assert [path.stat().st_mtime_ns for path in fresh.iterdir()] == [made]
    assert fresh.stat().st_mode & 0o077 == 0


@needs_compiler
def test_a_folder_that_others_may_write_to_is_not_used(fresh: Path) -> None:
    fresh.mkdir()
    fresh.chmod(0o777)
    library()
    assert list(fresh.iterdir()) == []


def test_without_a_compiler_auto_is_torch_and_native_says_why(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(fresh))
    monkeypatch.delenv("CC", raising=False)
    assert choose("auto") == "torch"
    with pytest.raises(ValueError, match="no C compiler"):
        choose("native")
    with pytest.raises(ValueError, match="states are on cuda"):
        choose("native", "cuda")


@needs_compiler
def test_a_compiler_that_fails_is_named(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "source.c"
    broken.write_text("this is no C")
    monkeypatch.setattr(native_build, "SOURCE", broken)
    assert choose("auto") == "torch"
    with pytest.raises(ValueError, match=r"failed: .*error"):
        choose("native")
    assert list(fresh.iterdir()) == []


@needs_compiler
def test_auto_is_native_on_a_cpu_only() -> None:
    assert choose("auto") == "native"
    assert choose("auto", "cuda") == "torch"


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_states_with_gaps_between_rows_and_any_number_of_threads(threads: int) -> None:
    torch.manual_seed(0)
    wide = torch.randn(5, 40, 70)
    states = [block[:, 3:36] for block in wide]  # rows 70 apart, 33 long
    states[2] = torch.randn(33, 40).T  # columns first: copied, that one alone
    rows, weights, vectors = Rows(40, 40, None), torch.randn(40, 2, 5), torch.randn(2, 40, 33)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for lo, hi in ((0, 40), (7, 9), (5, 5)):
            part = (states, rows, lo, hi)
            for name, more in (("mix", weights[lo:hi]), ("dots", vectors[:, lo:hi]), ("dot_totals", vectors[0, lo:hi])):
                got, expected = (getattr(module, name)(*part, more) for module in (native_rows, torch_rows))
                assert torch.allclose(got, expected, atol=1e-4), name
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_not_a_number_stays_one_and_harms_no_other_token() -> None:
    states = [torch.randn(4, 24) for _ in range(5)]
    states[3][2, 7] = float("nan")
    rows = real_rows(torch.ones(1, 4))
    attention, pooled = native_rows.attend(states, rows, 0, 4, torch.randn(1, 24), torch.zeros(1, 6), None, None)
    assert attention[2].isnan().all() and pooled[0, 2].isnan().all()
    others = torch.tensor([0, 1, 3])
    assert attention[others].isfinite().all() and pooled[:, others].isfinite().all()
