"""How the ranks of a node share its cores."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.engine.distributed import cpu_threads


@given(st.integers(1, 256), st.integers(1, 16), st.integers(0, 8))
def test_ranks_share_the_cores_and_leave_one_to_their_workers(cores: int, ranks: int, workers: int) -> None:
    threads = cpu_threads(cores, ranks, workers)
    assert threads >= 1
    assert threads * ranks <= max(cores, ranks)
    if workers and cores >= 2 * ranks:
        assert (threads + 1) * ranks <= cores
