"""Packing in parallel: the same shards by any number of processes and after a kill, every row once, all formats."""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.data.packing import formats, sources
from bridge_ds.data.packing.job import PackOptions, pack_parts
from bridge_ds.data.packing.part import Part
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.errors import DataError
from tests import samples
from tests.data.conftest import task_rows


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def read_all(folder: Path) -> list[dict[str, Any]]:
    return samples.read_all(load_index(folder))


def sources_of(rows: list[dict[str, Any]]) -> list[str]:
    return [row["source"] for row in rows]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """200 rows in three files, one of them split into several parts."""
    monkeypatch.setattr(sources, "PART_BYTES", 4000)
    rows = task_rows(200)
    paths = [tmp_path / f"{name}.jsonl" for name in "abc"]
    for path, (start, stop) in zip(paths, ((0, 120), (120, 121), (121, 200)), strict=True):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[start:stop]))
    return paths


def test_parts_of_a_file_have_every_line_once(files: list[Path]) -> None:
    parts = sources.file_parts(files)
    assert len(parts) > 6
    assert [row for part in parts for _, row in formats.part_rows(part)] == task_rows(200)
    # Also where a part ends inside a line, at its end, or holds no beginning of a line.
    size = files[0].stat().st_size
    for step in (1, 7, 97, 1000):
        parts = [Part("jsonl", str(files[0]), at, min(at + step, size)) for at in range(0, size, step)]
        assert [row for part in parts for _, row in formats.part_rows(part)] == task_rows(120)


@pytest.mark.parametrize("shuffle", [None, 3])
def test_processes_do_not_change_the_shards(files: list[Path], tmp_path: Path, shuffle: int | None) -> None:
    options = PackOptions(shard_bytes=20_000, shuffle=shuffle, language="en", source="tests")
    for processes in (1, 3):
        pack_parts(sources.file_parts(files), options, tmp_path / f"out{processes}", processes=processes)
    assert content(tmp_path / "out1") == content(tmp_path / "out3")
    rows = read_all(tmp_path / "out1")
    assert sorted(sources_of(rows)) == sorted(sources_of(task_rows(200)))
    assert (rows == task_rows(200)) == (shuffle is None)
    assert not list(tmp_path.glob(".*"))


def test_the_shuffle_moves_rows_across_files_and_depends_on_its_seed(files: list[Path], tmp_path: Path) -> None:
    order = {}
    for seed in (0, 1):
        options = PackOptions(shard_bytes=20_000, shuffle=seed)
        pack_parts(sources.file_parts(files), options, tmp_path / f"s{seed}")
        order[seed] = [int(text.split()[0][1:]) for text in sources_of(read_all(tmp_path / f"s{seed}"))]
    assert order[0] != order[1]
    first = load_index(tmp_path / "s0").shards[0].samples
    assert min(order[0][:first]) < 40
    assert max(order[0][:first]) > 160


def test_manifest_says_what_went_in(files: list[Path], tmp_path: Path) -> None:
    pack_parts(sources.file_parts(files), PackOptions(shuffle=1), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["samples"] == 200
    assert manifest["options"]["shuffle"] == 1
    assert manifest["inputs"] == [
        {"name": str(path), "kind": "jsonl", "options": {}, "bytes": path.stat().st_size,
         "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in files
    ]  # fmt: skip


def test_a_fault_keeps_finished_parts_and_the_next_start_does_the_rest(files: list[Path], tmp_path: Path) -> None:
    good = files[2].read_text()
    files[2].write_text(good.replace('"target"', '"tarrgt"', 1))
    with pytest.raises(DataError, match=r"c.jsonl:1 has no `target`"):
        pack_parts(sources.file_parts(files), PackOptions(), tmp_path / "out")
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / ".out.packing" / "shards").iterdir()}
    assert "shard-00000-000000.tar" in kept
    assert not (tmp_path / "out").exists()
    # The file has changed, so it is another input: only by demand is the old work thrown away.
    files[2].write_text(good)
    with pytest.raises(DataError, match=r"unfinished work of another input, version or options.*--overwrite"):
        pack_parts(sources.file_parts(files), PackOptions(), tmp_path / "out")
    pack_parts(sources.file_parts(files), PackOptions(), tmp_path / "out", overwrite=True)
    assert read_all(tmp_path / "out") == task_rows(200)


def test_killed_after_the_shards_are_moved_it_can_be_packed_again(files: list[Path], tmp_path: Path) -> None:
    work, output, parts = tmp_path / ".out.packing", tmp_path / "out", sources.file_parts(files)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("shutil.rmtree", lambda *_, **__: None)  # as the kill came before it
        pack_parts(parts, PackOptions(), output)
    assert (work / "job.json").is_file() and not (work / "shards").exists()
    with pytest.raises(DataError, match="is not empty"):
        pack_parts(parts, PackOptions(), output)
    pack_parts(parts, PackOptions(), output, overwrite=True)
    assert read_all(output) == task_rows(200) and not work.exists()


def test_compressed_files_have_more_buckets(files: list[Path], tmp_path: Path) -> None:
    packed = tmp_path / "a.jsonl.gz"
    packed.write_bytes(gzip.compress(b"".join(json.dumps({"source": f"{n} " * 99, "target": "x"}).encode() + b"\n"
                                              for n in range(2000))))  # fmt: skip
    options = PackOptions(shuffle=1, shard_bytes=packed.stat().st_size)
    assert len(pack_parts(sources.file_parts([packed]), options, tmp_path / "out").shards) >= 8


@pytest.mark.slow
def test_killed_at_any_moment_the_same_command_finishes_with_the_same_bytes(tmp_path: Path) -> None:
    rows = task_rows(9_000)
    inputs = [tmp_path / f"{number}.jsonl" for number in range(6)]
    for number, path in enumerate(inputs):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[number::6]))
    tool = str(Path(__file__).parents[2] / "tools" / "pack_shards.py")
    command = [sys.executable, tool, "pack", "--input", *map(str, inputs), "--processes", "2", "--shuffle", "5"]
    command += ["--shard-size", "2", "--output"]
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True, timeout=120)
    kept = 0
    for kill in range(3):
        process = subprocess.Popen([*command, str(tmp_path / "out")], start_new_session=True)
        records = tmp_path / ".out.packing"
        # The moment: as soon as one more part is done than before.
        while process.poll() is None and len(list(records.glob("*-*.json"))) <= kept:
            time.sleep(0.005)
        assert process.poll() is None, f"finished before kill {kill}"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kept = len(list(records.glob("*-*.json")))
        assert kept > kill
    subprocess.run([*command, str(tmp_path / "out")], check=True, capture_output=True, timeout=120)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert sorted(sources_of(read_all(tmp_path / "out"))) == sorted(sources_of(rows))


def test_two_packers_do_not_share_a_folder(files: list[Path], tmp_path: Path) -> None:
    import fcntl

    (tmp_path / ".out.packing").mkdir()
    with (tmp_path / ".out.packing" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match=r"another process is packing into .*out"):
            pack_parts(sources.file_parts(files), PackOptions(), tmp_path / "out")


def test_all_formats_and_compressions(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"source": 'say "a,\nb"', "target": "猫"},
        {"source": "two", "target": "b\tc"},
        {"source": "3", "target": "x"},
    ]
    jsonl = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(jsonl)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl))
    (tmp_path / "c.jsonl.zst").write_bytes(pyarrow.Codec("zstd").compress(jsonl, asbytes=True))
    with (tmp_path / "d.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, ["source", "target"])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "f.csv.gz").write_bytes(gzip.compress((tmp_path / "d.csv").read_bytes()))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "g.parquet", row_group_size=2)
    for path in sorted(tmp_path.iterdir()):
        parts = sources.file_parts([path])
        assert [row for part in parts for _, row in formats.part_rows(part)] == rows, path.name
    shorter = (tmp_path / "c.jsonl.zst").read_bytes()[:-8]
    (tmp_path / "c.jsonl.zst").write_bytes(shorter)
    with pytest.raises(DataError, match=r"c.jsonl.zst cannot be read .Truncated"):
        list(formats.part_rows(sources.file_parts([tmp_path / "c.jsonl.zst"])[0]))


def test_keys_from_a_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"q": "x", "a": "y", "id": 17}\n{"q": "x", "a": "y", "id": "en_18"}\n')
    options = PackOptions(mapping=(("source", "q"), ("target", "a")), key="id")
    index = pack_parts(sources.file_parts([path]), options, tmp_path / "out")
    reader = SampleReader(index, "task")
    assert "(key '17')" in reader.describe(0, 0)
    assert "(key 'en_18')" in reader.describe(0, 1)
    path.write_text('{"source": "x", "target": "y", "id": "a.b"}\n')
    with pytest.raises(DataError, match=r"a.jsonl:1 has the key 'a.b' .field `id`.; expected .* without dots"):
        pack_parts(sources.file_parts([path]), PackOptions(key="id"), tmp_path / "dots")
    path.write_text('{"source": "x", "target": "y", "id": "a"}\n' * 2)
    with pytest.raises(DataError, match=r"two samples of the key 'a'"):
        pack_parts(sources.file_parts([path]), PackOptions(key="id"), tmp_path / "twice")


def test_a_data_set_is_cut_by_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(sources, "_PART_ROWS", 8)
    datasets.Dataset.from_list(task_rows(20)).save_to_disk(tmp_path / "saved")
    parts = sources.dataset_parts(str(tmp_path / "saved"), None, "train", None, stream=False)
    assert len(parts) == 3
    index = pack_parts(parts, PackOptions(source="saved"), tmp_path / "out", processes=2)
    assert read_all(tmp_path / "out") == task_rows(20)
    assert {shard.source for shard in index.shards} == {"saved"}
