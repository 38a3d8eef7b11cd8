"""One cluster of four nodes for the whole session."""

from __future__ import annotations

import getpass
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import MISSING, Cluster


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four nodes of one host. Skips where Slurm is not installed."""
    if MISSING:
        pytest.skip(f"no Slurm here ({', '.join(MISSING)} missing): apt-get install slurm-wlm munge")
    # Not in tmp_path: a socket's path may have 107 bytes.
    # Twenty ports for each process: two that run tests side by side have neighbouring numbers.
    made = Cluster(4, Path("/tmp") / f"slurm-test-{getpass.getuser()}-{os.getpid()}", 20000 + os.getpid() % 250 * 20)
    yield made
    made.down()
