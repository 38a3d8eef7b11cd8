"""Index, reader and packer: what is packed can be read, and what is damaged is named."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import load_index, write_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.data.shards.samples import BadSample, check_sample
from bridge_ds.data.shards.table import TABLE_DTYPE
from bridge_ds.data.shards.verify import verify
from bridge_ds.errors import DataError
from tests.data.conftest import task_rows
from tests.samples import locate, read_all


def test_round_trip(shards: Path) -> None:
    index = load_index(shards)
    assert list(verify(index)) == [f"shard-00000{number}.tar" for number in range(4)]
    assert index.sizes.tolist() == [16, 16, 16, 2]
    reader = SampleReader(index, "task", open_files=2)
    rows = task_rows(50)
    # Back and forth over more shards than files may be open.
    found = [reader.read(*locate(index, sample)) for sample in (*range(50), 0, 49, 17)]
    assert found == [*rows, rows[0], rows[49], rows[17]]
    assert len(reader._files) == 2
    tables = [index.table(shard) for shard in range(4)]
    for name in ("source", "target"):
        lengths = [length for table in tables for length in table[name].tolist()]
        assert lengths == [len(row[name]) for row in rows]
    assert sum(shard.characters for shard in index.shards) == sum(len(r["source"]) + len(r["target"]) for r in rows)
    assert reader.describe(1, 1).startswith("sample 1 (key '000000017') of shard shard-000001.tar in ")


def test_few_tables_stay_in_memory(shards: Path) -> None:
    index = load_index(shards)
    index.kept_tables = 2
    assert len(read_all(index)) == 50
    assert len(index._tables) == 2
    assert not pickle.loads(pickle.dumps(index))._tables


def test_webdataset_reads_the_shards(shards: Path) -> None:
    import webdataset

    urls = sorted(map(str, shards.glob("*.tar")))
    got = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert [json.loads(sample["json"]) for sample in got] == task_rows(50)
    assert got[49]["__key__"] == "000000049"


def test_packing_is_deterministic_and_readable_by_the_group(shards: Path, own_shards: Path) -> None:
    names = sorted(path.name for path in shards.iterdir())
    assert names == ["index.json", *(f"shard-00000{i}.{end}" for i in range(4) for end in ("samples.npy", "tar"))]
    assert all((shards / name).read_bytes() == (own_shards / name).read_bytes() for name in names)
    umask = os.umask(0)
    os.umask(umask)
    assert own_shards.stat().st_mode & 0o777 == 0o777 & ~umask


def test_index_round_trip(own_shards: Path) -> None:
    before = (own_shards / "index.json").read_bytes()
    write_index(own_shards, list(load_index(own_shards).shards))
    assert (own_shards / "index.json").read_bytes() == before


def test_shard_size_is_kept(tmp_path: Path) -> None:
    index = pack_rows(task_rows(40), tmp_path / "out", shard_bytes=10 * 1024)
    assert all(shard.samples == 10 for shard in index.shards)
    big = pack_rows([{"text": "a " * 5000}] * 3, tmp_path / "big", shard_bytes=1024)
    assert [shard.samples for shard in big.shards] == [1, 1, 1]


def test_reader_survives_pickling_and_forking(shards: Path) -> None:
    index = load_index(shards)
    reader = SampleReader(index, "task")
    rows = task_rows(50)
    assert reader.read(0, 3) == rows[3]
    assert pickle.loads(pickle.dumps(reader)).read(0, 4) == rows[4]
    child = os.fork()
    if child == 0:
        os._exit(0 if all(reader.read(*locate(index, i)) == rows[i] for i in range(50)) else 1)
    assert all(reader.read(*locate(index, i)) == rows[i] for i in reversed(range(50)))
    assert os.waitpid(child, 0)[1] == 0


def _cut(folder: Path, size: int) -> None:
    os.truncate(folder / "shard-000001.tar", size)


def _member_start(folder: Path) -> int:
    return int(load_index(folder).table(1)["offset"][8]) - 512


def _index(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "index.json").write_text(text)


def _remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda f: shutil.rmtree(f), r"is no folder.*bridge-ds pack"),
    "no index": (_remove("index.json"), r"has no index.json.*bridge-ds pack index"),
    "malformed index": (_index('{"version": 1'), r"index.json is not readable as JSON .*bridge-ds pack index DIR"),
    "index of wrong shape": (_index("[]"), r"index.json is not readable as JSON .it is no object"),
    "older version": (_index('{"version": 1, "shards": 3}'), r"has version 1;.*version 2; .*bridge-ds pack index DIR"),
    "newer version": (_index('{"version": 3}'), r"has version 3;.*version 2"),
    "no sample": (_index('{"version": 2, "samples": 0, "fields": {}, "shards": []}'), r"lists no shard"),
    "unknown field": (
        _index('{"version": 2, "samples": 0, "fields": {"x": "y"}, "shards": []}'),
        r"malformed: `fields` is .'x': 'y'.; expected texts for some of source",
    ),
    "missing shard": (_remove("shard-000001.tar"), r"shard-000001.tar is missing.*index lists.*copy it"),
    "missing table": (_remove("shard-000001.samples.npy"), r"shard-000001.samples.npy is missing"),
    "truncated inside a member": (
        lambda f: _cut(f, _member_start(f) + 520),
        r"shard-000001.tar .* has \d+ bytes; .* says 20480 bytes .*not a complete tar .unexpected end",
    ),
    "truncated between members": (
        lambda f: _cut(f, _member_start(f)),
        r"shard-000001.tar .* has \d+ bytes; .* says 20480 bytes .*without the zeros that end a tar: it was truncated",
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
    [
        ("name", "../x"),
        ("name", "pipe:ls"),
        ("name", ".x.tar"),
        ("samples", 15),
        ("samples", -1),
        ("layout", "pickle"),
        ("sha256", "../../x"),
        ("table_sha256", ""),
        ("buckets", [16]),
        ("bytes", None),
    ],  # fmt: skip
)
def test_an_index_that_reaches_outside_is_refused(own_shards: Path, key: str, value: object) -> None:
    path = own_shards / "index.json"
    content = json.loads(path.read_text())
    content["shards"][0][key] = value
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"index.json is malformed"):
        load_index(own_shards)


@pytest.mark.parametrize(
    "folder", ["pipe:cat /etc/passwd", "ftp://x/y", "file:///tmp", "simplecache::s3://bucket/x", "x::pipe:ls"]
)
def test_pipes_chains_and_unknown_schemes_are_refused(folder: str) -> None:
    with pytest.raises(DataError, match=r"expected a folder, or a URL that begins with https://.*nothing is ever run"):
        load_index(folder)


def _flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))


def test_a_flipped_byte_is_found_when_its_sample_is_read(own_shards: Path) -> None:
    index = load_index(own_shards)
    offset = int(index.table(1)["offset"][3])
    # Inside a text, where JSON stays well-formed.
    _flip(own_shards / "shard-000001.tar", offset + 12)
    reader = SampleReader(load_index(own_shards), "task")
    assert reader.read(1, 2) == task_rows(50)[18]
    with pytest.raises(
        DataError, match=rf"sample 3 of shard shard-000001.tar .* checksum .bytes {offset} to"
    ) as caught:
        reader.read(1, 3)
    assert not isinstance(caught.value, BadSample), "damage must not fall under the budget of bad samples"


@pytest.mark.parametrize("where", ["header", "sample", "tail"])
def test_verify_names_the_first_bad_range(own_shards: Path, where: str) -> None:
    index = load_index(own_shards)
    table = index.table(2)
    end = int(table["offset"][5] + table["length"][5])
    start = int(table["offset"][6])
    last = int(table["offset"][15] + table["length"][15])
    at, expected = {
        "header": (start - 500, rf"bytes {end} to {start - 1} .the tar header before sample 6."),
        "sample": (start + 5, rf"bytes {start} to {start + int(table['length'][6]) - 1} .sample 6."),
        "tail": (20479, rf"bytes {last} to 20479 .after the last sample."),
    }[where]
    _flip(own_shards / "shard-000002.tar", at)
    done: list[str] = []
    with pytest.raises(DataError, match=rf"shard-000002.tar .* is damaged at {expected}"):
        done.extend(verify(load_index(own_shards)))
    assert done == ["shard-000000.tar", "shard-000001.tar"]


def test_a_changed_table_is_refused(own_shards: Path) -> None:
    path = own_shards / "shard-000001.samples.npy"
    _flip(path, path.stat().st_size - 1)
    index = load_index(own_shards)
    with pytest.raises(DataError, match=r"table .*shard-000001.samples.npy of shard shard-000001.tar has sha256"):
        index.table(1)


def test_a_pickled_table_is_never_unpickled(own_shards: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(own_shards / "exploded"),)

    path = own_shards / "shard-000000.samples.npy"
    np.save(path, np.array([Bomb()] * 16, dtype=object), allow_pickle=True)
    # As long as the real table, so that only its content gives it away.
    raw = path.read_bytes().ljust(128 + 16 * TABLE_DTYPE.itemsize, b"\0")
    path.write_bytes(raw)
    index = json.loads((own_shards / "index.json").read_text())
    index["shards"][0] |= {"table_bytes": len(raw), "table_sha256": hashlib.sha256(raw).hexdigest()}
    (own_shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=r"does not describe the 16 samples"):
        load_index(own_shards).table(0)
    assert not (own_shards / "exploded").exists()


def test_a_shard_that_changes_or_vanishes_during_a_run_is_named(own_shards: Path) -> None:
    index = load_index(own_shards)
    reader = SampleReader(index, "task", open_files=1)
    assert reader.read(1, 0) == task_rows(50)[16]
    _cut(own_shards, 700)
    with pytest.raises(DataError, match=r"sample 9 of shard shard-000001.tar .* ends after 0 of \d+ bytes"):
        reader.read(1, 9)
    # Replaced by another complete shard, of another size; the open file is still the old one.
    shutil.copy(own_shards / "shard-000003.tar", own_shards / "new")
    (own_shards / "new").replace(own_shards / "shard-000002.tar")
    with pytest.raises(DataError, match=r"shard-000002.tar .* has 10240 bytes; the index says 20480"):
        reader.read(2, 0)
    # And one of the same size.
    shutil.copy(own_shards / "shard-000000.tar", own_shards / "shard-000002.tar")
    with pytest.raises(DataError, match=r"the end of shard shard-000002.tar .* has another checksum"):
        reader.read(2, 0)
    (own_shards / "shard-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000001.tar is missing"):
        reader.read(1, 3)


@pytest.mark.parametrize(
    ("sample", "objective", "kind", "fault"),
    [
        ({"source": "a", "target": "b"}, "task", "", ""),
        ({"source": "a", "target": "b", "prompt": None}, "task", "", ""),
        ({"text": "a b"}, "prefix_lm", "", ""),
        ({"source": "a"}, "task", "missing", "has no `target`"),
        ({"source": "a", "target": ""}, "task", "empty", "has an empty `target`"),
        ({"source": " \n", "target": "b"}, "task", "empty", "has an empty `source`"),
        ({"source": "a", "target": 1}, "task", "malformed", "has a `target` of type int"),
        ({"source": "a", "target": "b", "prompt": ["x"]}, "task", "malformed", "has a `prompt` of type list"),
        ({"source": "a", "target": "\ud800"}, "task", "malformed", "has an unpaired surrogate in `target`"),
        ({"source": "a", "target": "b"}, "prefix_lm", "missing", "has no `text`"),
        ({"text": "word"}, "prefix_lm", "empty", "has fewer than two words"),
        (["a"], "task", "malformed", "is a JSON list"),
    ],
)
def test_faults_of_samples(sample: object, objective: str, kind: str, fault: str) -> None:
    with pytest.raises(BadSample) if fault else nullcontext() as caught:
        check_sample(sample, objective)
    assert caught is None or (caught.value.kind == kind and str(caught.value).startswith(fault))


def test_too_long_a_text_is_a_fault() -> None:
    check_sample({"source": "abcd", "target": "b"}, "task", 4)
    with pytest.raises(BadSample, match=r"^has a `source` of 5 characters; data\.max_characters is 4$") as caught:
        check_sample({"source": "abcde", "target": "b"}, "task", 4)
    assert caught.value.kind == "too_long"


def test_wrong_objective_for_the_shards(shards: Path) -> None:
    with pytest.raises(
        BadSample, match=r"sample 0 .key '000000000'. of shard .* has no `text`; the objective prefix_lm"
    ):
        SampleReader(load_index(shards), "prefix_lm").read(0, 0)


def test_a_corpus_that_names_its_origin_source_is_text(tmp_path: Path) -> None:
    index = pack_rows([{"text": "two words", "source": "wiki"}], tmp_path / "out")
    assert SampleReader(index, "prefix_lm").read(0, 0)["source"] == "wiki"
    with pytest.raises(DataError, match=r"has no `target`"):
        SampleReader(index, "task").read(0, 0)


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
    with pytest.raises(DataError, match=r"holds 'thesis.tex' besides shards"):
        pack_rows(task_rows(2), own_shards, overwrite=True)
