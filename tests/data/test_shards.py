"""Index, reader and packer: what is packed can be read, and what is damaged is named."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bridge_ds.data.index import load_index, verify, write_index
from bridge_ds.data.pack import index_shard, pack_rows
from bridge_ds.data.reader import SampleReader, fault_in
from bridge_ds.errors import DataError
from tests.data.conftest import task_rows


def test_round_trip(shards: Path) -> None:
    index = load_index(shards)
    verify(index)
    assert [shard.samples for shard in index.shards] == [16, 16, 16, 2]
    reader = SampleReader(index, "task", open_files=2)
    rows = task_rows(50)
    # Back and forth over more shards than files may be open.
    assert [reader.read(sample) for sample in (*range(50), 0, 49, 17)] == [*rows, rows[0], rows[49], rows[17]]
    assert len(reader._files) == 2
    assert index.characters.tolist() == [len(row["source"]) + len(row["target"]) for row in rows]
    assert index.describe(17).startswith("sample 1 of shard shard-000001.tar")
    with pytest.raises(IndexError):
        index.locate(50)


def test_webdataset_reads_the_shards(shards: Path) -> None:
    import webdataset

    urls = sorted(map(str, shards.glob("*.tar")))
    got = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [json.loads(sample["json"]) for sample in got] == task_rows(50)
    assert got[49]["__key__"] == "000000049"


def test_packing_is_deterministic_and_readable_by_the_group(shards: Path, own_shards: Path) -> None:
    names = sorted(path.name for path in shards.iterdir())
    assert names == ["index.json", *(f"shard-00000{i}.tar" for i in range(4))]
    assert all((shards / name).read_bytes() == (own_shards / name).read_bytes() for name in names)
    umask = os.umask(0)
    os.umask(umask)
    assert own_shards.stat().st_mode & 0o777 == 0o777 & ~umask


def test_index_round_trip(own_shards: Path) -> None:
    before = (own_shards / "index.json").read_bytes()
    write_index(load_index(own_shards))
    assert (own_shards / "index.json").read_bytes() == before


def test_shard_size_is_kept(tmp_path: Path) -> None:
    index = pack_rows(task_rows(40), tmp_path / "out", shard_bytes=10 * 1024)
    assert all(shard.samples == 10 for shard in index.shards)
    big = pack_rows([{"text": "a " * 5000}] * 3, tmp_path / "big", shard_bytes=1024)
    assert [shard.samples for shard in big.shards] == [1, 1, 1]


def test_reader_survives_pickling_and_forking(shards: Path) -> None:
    reader = SampleReader(load_index(shards), "task")
    rows = task_rows(50)
    assert reader.read(3) == rows[3]
    assert pickle.loads(pickle.dumps(reader)).read(4) == rows[4]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(reader.read(i) == rows[i] for i in range(50)) else 1)
    assert all(reader.read(i) == rows[i] for i in reversed(range(50)))
    assert os.waitpid(child, 0)[1] == 0
    reader.close()
    assert reader.read(5) == rows[5]


def _cut(folder: Path, size: int) -> None:
    os.truncate(folder / "shard-000001.tar", size)


def _member_start(folder: Path) -> int:
    return int(load_index(folder).shards[1].offsets[8]) - 512


def _index(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "index.json").write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f), r"is no folder.*tools/pack_shards.py"),
    "no index": (_remove("index.json"), r"has no index.json.*tools/pack_shards.py"),
    "malformed index": (_index('{"version": 1'), r"index.json is malformed.*pack it again"),
    "index of wrong shape": (_index("[]"), r"index.json is malformed"),
    "other version": (_index('{"version": 9, "shards": 3}'), r"has version 9;.*version 1"),
    "no sample": (_index('{"version": 1, "shards": []}'), r"lists no sample"),
    "missing shard": (_remove("shard-000001.tar"), r"shard-000001.tar is missing.*promises 4 shards.*copy it"),
    "cut inside a member": (
        lambda f: _cut(f, _member_start(f) + 520),
        r"shard-000001.tar .* has \d+ bytes; .* promises 20480 bytes with 16 samples",
    ),
    "cut between members": (
        lambda f: _cut(f, _member_start(f)),
        r"shard-000001.tar .* has \d+ bytes; .* promises 20480 bytes with 16 samples",
    ),
    "grown": (lambda f: _cut(f, 30720), r"has 30720 bytes"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_before_training(own_shards: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(own_shards)
    with pytest.raises(DataError, match=message) as caught:
        load_index(own_shards)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../x"), ("name", "pipe:ls"), ("samples", 15), ("offsets", [-1] * 16), ("lengths", [99999] * 16)],
)
def test_an_index_that_reaches_outside_is_refused(own_shards: Path, key: str, value: object) -> None:
    path = own_shards / "index.json"
    content = json.loads(path.read_text())
    content["shards"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"index.json is malformed"):
        load_index(own_shards)


@pytest.mark.parametrize("folder", ["pipe:cat /etc/passwd", "s3://bucket/shards", "https://x/y"])
def test_urls_and_pipes_are_refused(folder: str) -> None:
    with pytest.raises(DataError, match=r"expected a local folder"):
        load_index(folder)


def test_changed_bytes_are_found_on_request(own_shards: Path) -> None:
    index = load_index(own_shards)
    with (own_shards / "shard-000002.tar").open("r+b") as file:
        file.seek(600)
        file.write(b"#")
    assert load_index(own_shards).samples == 50
    with pytest.raises(DataError, match=r"shard-000002.tar .* has sha256"):
        verify(index)


def test_malformed_json_in_a_shard_names_shard_and_sample(own_shards: Path) -> None:
    index = load_index(own_shards)
    with (own_shards / "shard-000001.tar").open("r+b") as file:
        file.seek(int(index.shards[1].offsets[3]))
        file.write(b"#")
    with pytest.raises(DataError, match=r"sample 3 of shard shard-000001.tar \(number 19 .* is malformed JSON"):
        SampleReader(index, "task").read(19)


def test_a_shard_that_vanishes_or_shrinks_during_a_run_is_named(own_shards: Path) -> None:
    index = load_index(own_shards)
    _cut(own_shards, 700)
    with pytest.raises(DataError, match=r"sample 9 of shard shard-000001.tar .* ends after 0 of \d+ bytes"):
        SampleReader(index, "task").read(25)
    (own_shards / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"cannot be read .No such file"):
        SampleReader(index, "task").read(25)


@pytest.mark.parametrize(
    ("sample", "objective", "fault"),
    [
        ({"source": "a", "target": "b"}, "task", ""),
        ({"source": "a", "target": "b", "prompt": None}, "task", ""),
        ({"text": "a b"}, "prefix_lm", ""),
        ({"source": "a"}, "task", "has no `target`"),
        ({"source": "a", "target": ""}, "task", "has an empty `target`"),
        ({"source": " \n", "target": "b"}, "task", "has an empty `source`"),
        ({"source": "a", "target": 1}, "task", "has a `target` of type int"),
        ({"source": "a", "target": "b", "prompt": ["x"]}, "task", "has a `prompt` of type list"),
        ({"source": "a", "target": "\ud800"}, "task", "has half a surrogate pair in `target`"),
        ({"source": "a", "target": "b"}, "prefix_lm", "has no `text`"),
        ({"text": "word"}, "prefix_lm", "has fewer than two words"),
        (["a"], "task", "is a JSON list"),
    ],
)
def test_faults_of_samples(sample: object, objective: str, fault: str) -> None:
    found = fault_in(sample, objective)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


def test_wrong_objective_for_the_shards(shards: Path) -> None:
    with pytest.raises(DataError, match=r"sample 0 of shard .* has no `text`; the objective prefix_lm needs `text`"):
        SampleReader(load_index(shards), "prefix_lm").read(0)


def test_foreign_tars_are_indexed_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    (tmp_path / "en.de.json").write_text('{"text": "a b"}')
    with tarfile.open(path, "w") as tar:
        tar.add(tmp_path / "en.de.json", arcname="en.de.json")
    with pytest.raises(DataError, match=r"holds 'en.de.json'; expected distinct dot-free keys"):
        index_shard(path)
    path.write_bytes(b"no tar at all")
    with pytest.raises(DataError, match=r"x.tar cannot be indexed"):
        index_shard(path)


def test_a_corpus_that_names_its_origin_source_is_text(tmp_path: Path) -> None:
    index = pack_rows([{"text": "two words", "source": "wiki"}], tmp_path / "out")
    assert SampleReader(index, "prefix_lm").read(0)["source"] == "wiki"
    with pytest.raises(DataError, match=r"has no `target`"):
        SampleReader(index, "task").read(0)


def test_failed_packing_leaves_nothing(tmp_path: Path) -> None:
    for rows, message in [([], "holds no sample"), ([*task_rows(3), {"source": "x"}], "row 3 has no `target`")]:
        with pytest.raises(DataError, match=message):
            pack_rows(rows, tmp_path / "new" / "out")
    with pytest.raises(DataError, match=r"row 0 cannot be written as JSON"):
        pack_rows([{"text": "a b", "image": object()}], tmp_path / "new" / "out")
    assert not list((tmp_path / "new").iterdir())


def test_output_is_replaced_only_on_demand(own_shards: Path) -> None:
    with pytest.raises(DataError, match=r"is not empty.*--overwrite"):
        pack_rows(task_rows(2), own_shards)
    with pytest.raises(DataError, match=r"row 0 has no"):
        pack_rows([{}], own_shards, overwrite=True)
    assert load_index(own_shards).samples == 50, "a failed overwrite must keep what was there"
    assert pack_rows(task_rows(2), own_shards, overwrite=True).samples == 2
    assert [path.name for path in own_shards.parent.iterdir()] == ["shards"]
    (own_shards / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"holds 'thesis.tex' beside shards"):
        pack_rows(task_rows(2), own_shards, overwrite=True)
