"""Fetching and staging: each shard once a node, verified, bounded; a broken connection never leaves a short shard."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.shards.index import load_index, stage
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.data.shards.store import Folder, NodeCache, open_store
from bridge_ds.data.shards.verify import verify
from bridge_ds.errors import DataError
from bridge_ds.world import World
from tests.data.conftest import make_config, task_rows
from tests.data.http_server import Faults, serve
from tests.samples import read_all

SHARD = 20480
TABLE = 128 + 16 * 40


@pytest.fixture
def web(own_shards: Path) -> Iterator[tuple[str, Faults]]:
    with serve(own_shards) as served:
        yield served


def _cache(url: str, folder: Path, limit: int | None = None) -> NodeCache:
    return NodeCache(url, folder, limit, tries=4, wait_s=0.01)


def _read_all(url: str, store: NodeCache) -> list[dict[str, object]]:
    return read_all(load_index(url, store), open_files=1)


def test_remote_shards_read_as_local_ones_and_come_once(web: tuple[str, Faults], tmp_path: Path) -> None:
    url, faults = web
    for _ in range(2):
        assert _read_all(url, _cache(url, tmp_path / "cache")) == task_rows(50)
    assert {faults.served[f"shard-00000{n}.{end}"] for n in range(4) for end in ("tar", "samples.npy")} == {1}
    assert len(list(verify(load_index(url, _cache(url, tmp_path / "cache"))))) == 4


@pytest.mark.parametrize("fault", ["drop", "half", "short", "error", "wrong"])
def test_faults_of_the_network_are_tried_again(web: tuple[str, Faults], tmp_path: Path, fault: str) -> None:
    url, faults = web
    faults.next = {name: [fault] * 2 for name in ("shard-000000.tar", "shard-000002.samples.npy")}
    assert _read_all(url, _cache(url, tmp_path / "cache")) == task_rows(50)
    assert faults.served["shard-000000.tar"] == faults.served["shard-000002.samples.npy"] == 3
    assert faults.served["shard-000001.tar"] == 1


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("drop", r"disconnected"), ("half", r"Not enough data|not completed"), ("error", r"503"),
        ("short", r"10240 bytes came, the index says 20480"), ("wrong", r"its sha256 is [0-9a-f]{12}\.\.\., the"),
    ],
)  # fmt: skip
def test_a_fault_that_stays_is_a_clear_error_and_leaves_nothing(
    web: tuple[str, Faults], tmp_path: Path, fault: str, reason: str
) -> None:
    url, faults = web
    faults.always = fault
    with pytest.raises(DataError, match=rf"/data/shard-000000.tar could not be fetched in 4 attempts .*{reason}") as c:
        _read_all(url, _cache(url, tmp_path / "cache"))
    assert "\n" not in str(c.value)
    assert not [path for path in (tmp_path / "cache").rglob("*tar*") if path.is_file() and path.suffix != ".lock"]


def test_what_is_not_there_is_not_tried_again(web: tuple[str, Faults], tmp_path: Path, own_shards: Path) -> None:
    url, faults = web
    (own_shards / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar cannot be fetched .FileNotFoundError"):
        _read_all(url, _cache(url, tmp_path / "cache"))
    (own_shards / "index.json").unlink()
    with pytest.raises(DataError, match=r"index.json cannot be fetched"):
        load_index(url, _cache(url, tmp_path / "cache"))
    assert faults.served["shard-000000.tar"] == 1


def test_the_cache_is_bounded_and_forgets_the_least_used(web: tuple[str, Faults], tmp_path: Path) -> None:
    url, faults = web
    limit = 2 * SHARD + 4 * TABLE + 600
    index = load_index(url, _cache(url, tmp_path / "cache", limit))
    reader = SampleReader(index, "task", open_files=1)
    rows = task_rows(50)
    for shard in (0, 1, 0, 2, 0, 1):
        assert reader.read(shard, 0) == rows[16 * shard]
        kept = sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*") if path.is_file())
        assert kept <= limit
    # 1 was the least used when 2 came, so it came twice; 0 stayed.
    assert [faults.served[f"shard-00000{n}.tar"] for n in range(3)] == [1, 2, 1]
    with pytest.raises(DataError, match=r"shard-000003.tar has .* GiB; data.cache_gib allows .*; raise it"):
        SampleReader(load_index(url, _cache(url, tmp_path / "tiny", 9000)), "task").read(3, 0)


def test_a_cache_below_two_windows_is_refused(web: tuple[str, Faults], tmp_path: Path) -> None:
    data = DataConfig(shards=web[0], cache_dir=str(tmp_path), cache_gib=3 * SHARD / 2**30, shuffle_shards=2)
    with pytest.raises(DataError, match=r"data.cache_gib .* is too small .* two windows of 2 shards have"):
        open_corpus(data, 0, World())


def _read_in_a_process(url: str, folder: Path) -> None:
    os._exit(0 if _read_all(url, _cache(url, folder)) == task_rows(50) else 1)


def test_processes_of_a_node_share_one_fetch_and_fork_after_a_fetch(web: tuple[str, Faults], tmp_path: Path) -> None:
    url, faults = web
    faults.next = {"shard-000000.tar": ["half"]}
    # The parent has used fsspec before it forks, as a training process has.
    load_index(url, _cache(url, tmp_path / "cache"))
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_read_in_a_process, args=(url, tmp_path / "cache")) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0] * 4
    assert [faults.served[f"shard-00000{n}.tar"] for n in range(4)] == [2, 1, 1, 1]


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_reads_over_a_bad_network(
    web: tuple[str, Faults], own_shards: Path, tokenizers, tmp_path: Path, workers: int
) -> None:
    url, faults = web
    faults.next = {f"shard-00000{n}.tar": ["half"] for n in range(2)}
    remote = make_config(url, cache_dir=str(tmp_path / "cache"), workers=workers)
    local = make_config(own_shards)
    pairs = zip(make_loader(remote, World(), tokenizers), make_loader(local, World(), tokenizers), strict=True)
    for one, two in pairs:
        assert one.ids_hash == two.ids_hash
        assert [b.source_ids.tolist() for b in one.micro] == [b.source_ids.tolist() for b in two.micro]


def test_staging_copies_everything_once_and_then_reads_there(own_shards: Path, tokenizers, tmp_path: Path) -> None:
    config = make_config(own_shards, stage_dir=str(tmp_path / "disk"))
    expected = [step.ids_hash for step in make_loader(make_config(own_shards), World(), tokenizers)]
    corpus = open_corpus(config.data, config.run.seed, World(local_rank=1))
    copies = [path for path in (tmp_path / "disk").rglob("*") if path.name.endswith((".tar", ".npy"))]
    assert len(copies) == 8
    times = {path: path.stat().st_ctime_ns for path in copies}
    for path in own_shards.glob("shard-*"):
        path.unlink()
    assert [s.ids_hash for s in make_loader(config, World(), tokenizers, corpus=corpus)] == expected
    again = open_corpus(config.data, config.run.seed, World())
    assert [s.ids_hash for s in make_loader(config, World(), tokenizers, corpus=again)] == expected
    assert all(path.stat().st_size for path in times)


def test_staging_refuses_a_damaged_shard_and_a_full_disk(
    own_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (own_shards / "shard-000001.tar").open("r+b") as file:
        file.write(b"#")
    store = NodeCache(str(own_shards), tmp_path / "disk", None, tries=2, wait_s=0.01)
    with pytest.raises(DataError, match=r"shard-000001.tar could not be fetched in 2 attempts .*its sha256"):
        stage(load_index(own_shards, store))
    full = shutil._ntuple_diskusage(100, 90, 10)
    monkeypatch.setattr("bridge_ds.data.shards.store.shutil.disk_usage", lambda path: full)
    with pytest.raises(DataError, match=r"data.stage_dir has 10 bytes free; .* needs \d+ more"):
        stage(load_index(own_shards, NodeCache(str(own_shards), tmp_path / "other", None)))


class _Killed(NodeCache):
    """Its process dies in the middle of the first shard."""

    def _download(self, name: str, path: Path) -> None:
        super()._download(name, path)
        if name.endswith(".tar"):
            os.truncate(path, SHARD // 2)
            os._exit(9)


def _stage_and_die(folder: Path, disk: Path) -> None:
    stage(load_index(folder, _Killed(str(folder), disk, None)))


def test_what_a_killed_staging_has_written_is_room_for_the_next(
    own_shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    child = multiprocessing.get_context("fork").Process(target=_stage_and_die, args=(own_shards, disk))
    child.start()
    child.join(60)
    assert child.exitcode == 9
    index = load_index(own_shards, NodeCache(str(own_shards), disk, None))
    _, *others = index.shards  # of the first, its table and half of it are there
    left = SHARD // 2 + sum(shard.bytes + shard.table_bytes for shard in others)

    def leave(free: int) -> None:
        usage = shutil._ntuple_diskusage(1 << 30, (1 << 30) - free, free)
        monkeypatch.setattr("bridge_ds.data.shards.store.shutil.disk_usage", lambda path: usage)

    leave(left - 1)
    with pytest.raises(DataError, match=rf"has {left - 1} bytes free; .* needs {left} more"):
        stage(index)
    leave(left)
    stage(index)
    assert read_all(index, open_files=1) == task_rows(50)


def test_processes_of_one_pid_on_two_nodes_share_a_folder(own_shards: Path, tmp_path: Path) -> None:
    other = NodeCache(str(own_shards), tmp_path / "home", None)

    class Interrupted(NodeCache):
        def _download(self, name: str, path: Path) -> None:
            super()._download(name, path)
            assert other.read(name)

    cache = Interrupted(str(own_shards), tmp_path / "home", None, tries=1)
    assert cache.read("index.json") == (own_shards / "index.json").read_bytes()


def test_stores_by_location(tmp_path: Path) -> None:
    assert isinstance(open_store(str(tmp_path)), Folder)
    assert isinstance(open_store(str(tmp_path), stage_dir=str(tmp_path / "d")), NodeCache)
    remote = open_store("https://host/x", cache_dir=str(tmp_path / "c"), cache_gib=2)
    assert isinstance(remote, NodeCache)
    assert remote.limit == 2 << 30
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be made"):
        open_store("https://host/x", cache_dir=str(tmp_path / "file"))


def test_a_missing_package_is_named(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    try:
        import s3fs  # noqa: F401
    except ImportError:
        with pytest.raises(DataError, match=r"needs the package s3fs .*pip install s3fs"):
            load_index("s3://bucket/x", NodeCache("s3://bucket/x", tmp_path, None, tries=1))
