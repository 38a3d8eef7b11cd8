"""One command at a time where two would write the same; on a file system without locks, the work and a warning."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_ds import disk
from bridge_ds.data.packing import sources
from bridge_ds.data.packing.job import PackOptions, pack_parts
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.generate import files as generate
from bridge_ds.track.mlflow_database import prepare, sqlite_uri
from tests.evaluation.test_store import _run as score

HOLD = """
import sys
from pathlib import Path
from bridge_ds.disk import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"source": "{number}", "target": "x"}}\n' for number in range(9)))
    return path


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[int]:
    """As Lustre mounted without flock (ENOSYS), or NFS without its lock daemon (ENOLCK): no disk here does so."""

    def refuse(file: object, operation: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    disk._warned.clear()
    yield request.param
    disk._warned.clear()


def hold(path: Path) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout and holder.stdout.readline() == "held\n"
    return holder


def test_another_process_at_work_is_named_and_a_killed_one_is_not(rows: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.packing").mkdir()
    packs, answers = hold(tmp_path / ".out.packing" / "lock"), hold(tmp_path / ".answers.part")
    parts = sources.file_parts([rows])
    with pytest.raises(DataError, match=r"another process is packing into .*out; wait for it"):
        pack_parts(parts, PackOptions(), tmp_path / "out")
    with pytest.raises(ConfigError, match=r"answers.part is being written by another command"):
        generate._locked(tmp_path / ".answers.part").__enter__()
    for holder in (packs, answers):
        holder.kill()
        holder.communicate()
    assert pack_parts(parts, PackOptions(), tmp_path / "out").samples == 9
    with generate._locked(tmp_path / ".answers.part"):
        pass


def test_what_a_killed_packing_of_rows_has_left_is_removed_by_the_next(tmp_path: Path) -> None:
    endless = (
        "import itertools, sys; from bridge_ds.data.packing.write import pack_rows;"
        "pack_rows(({'source': 'a', 'target': 'b'} for _ in itertools.count()), sys.argv[1], samples_per_shard=10)"
    )
    killed = subprocess.Popen([sys.executable, "-c", endless, str(tmp_path / "out")])
    try:
        until = time.monotonic() + 60
        while not any(tmp_path.rglob("*.tar")) and time.monotonic() < until:
            time.sleep(0.01)
        with pytest.raises(DataError, match=r"another process is packing into .*out; wait for it"):
            pack_rows([{"source": "a", "target": "b"}], tmp_path / "out")
    finally:
        killed.kill()
        killed.wait()
    assert any(tmp_path.rglob("*.tar")) and not (tmp_path / "out").exists()
    assert pack_rows([{"source": "a", "target": "b"}], tmp_path / "out").samples == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("no_locks", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP], indirect=True)
def test_without_locks_all_is_done_and_said(
    no_locks: int, rows: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert pack_parts(sources.file_parts([rows]), PackOptions(), tmp_path / "out").samples == 9
        assert f".out.packing has no locks ({os.strerror(no_locks)})" in caplog.text
        with generate._locked(tmp_path / ".answers.part"):
            assert (tmp_path / ".answers.part").is_file()
        score(tmp_path / "evaluation")
        assert caplog.text.count(f"{tmp_path / 'evaluation' / 'bridge'} has no locks") == 1  # of three languages
    assert (tmp_path / "evaluation" / "bridge" / "index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("no_locks", [errno.ENOSYS], indirect=True)
def test_a_tracking_database_is_made_without_locks(no_locks: int, tmp_path: Path) -> None:
    assert prepare(sqlite_uri(tmp_path / "mlflow.db")) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlflow.db"]
