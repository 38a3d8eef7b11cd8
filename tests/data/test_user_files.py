"""What users give to `bridge-ds pack`: damaged files, odd values, a killed parent. A sentence, or it is right."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from bridge_ds.commands.pack import main
from bridge_ds.data.packing import job
from bridge_ds.data.shards.index import load_index
from bridge_ds.entry import exit_status
from tests.data.conftest import task_rows
from tests.samples import read_all

MAP = ["--map", "source=source", "target=target"]
ROW = '{"source": "a", "target": "b"}\n'


def refused(capsys: pytest.CaptureFixture[str], told: str, *arguments: Any) -> None:
    assert exit_status(lambda: main([str(each) for each in arguments])) == 2
    err = capsys.readouterr().err
    assert told in err and "Traceback" not in err, err


def fake_utf8(count: int) -> Any:
    offsets = pyarrow.py_buffer(b"".join(number.to_bytes(4, "little") for number in range(count + 1)))
    return pyarrow.Array.from_buffers(pyarrow.string(), count, [None, offsets, pyarrow.py_buffer(b"\xff" * count)])


@pytest.mark.parametrize(
    ("column", "told"),
    [
        (pyarrow.array([2**62] * 3, pyarrow.timestamp("us")), "row group 0 after row 0 (date value out of range)"),
        (pyarrow.array([2**62] * 3, pyarrow.duration("s")), "row group 0 after row 0 (Python int too large"),
        (fake_utf8(3), "row group 0 after row 0 ('utf-8' codec can't decode byte 0xff"),
        (pyarrow.StructArray.from_arrays([pyarrow.array([1] * 3)] * 2, names=["a", "a"]), "duplicate field names"),
        (pyarrow.array([b"x"] * 3), "row 1 cannot be written as JSON"),
    ],
)
def test_values_of_parquet_that_no_text_holds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], column: Any, told: str
) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"source": list("abc"), "target": list("def"), "x": column}), path)
    refused(capsys, told, "--input", path, "--output", tmp_path / "out")
    # A column that is not used is not read.
    assert main(["--input", str(path), "--output", str(tmp_path / "used"), *MAP]) == 0
    assert [sample["target"] for sample in read_all(load_index(tmp_path / "used"))] == list("def")


def test_a_column_of_a_data_set_that_is_not_used_is_not_decoded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = {"source": list("abc"), "target": list("def"), "x": [{"bytes": b"no image", "path": None}] * 3}
    datasets.Dataset.from_dict(rows).cast_column("x", datasets.Image()).save_to_disk(tmp_path / "set")
    arguments = ["--dataset", str(tmp_path / "set"), "--output", str(tmp_path / "out")]
    refused(capsys, "row 0 cannot be read", *arguments)
    assert main([*arguments, *MAP]) == 0
    assert [sample["target"] for sample in read_all(load_index(tmp_path / "out"))] == list("def")


def test_a_flipped_bit_in_a_page_with_a_checksum(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"source": ["WORDS OF A SOURCE"], "target": ["b"]})
    pyarrow.parquet.write_table(
        table, path, compression="none", use_dictionary=False, write_page_checksum=True, write_statistics=False
    )
    raw = bytearray(path.read_bytes())
    raw[raw.index(b"WORDS OF A SOURCE")] ^= 4
    path.write_bytes(raw)
    refused(capsys, "CRC checksum verification failed", "--input", path, "--output", tmp_path / "out")


def test_a_damaged_data_set_does_not_end_the_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list(task_rows(20)).save_to_disk(tmp_path / "saved")
    (path,) = (tmp_path / "saved").glob("*.arrow")
    raw = path.read_bytes()
    ends = sum(len(row["source"]) for row in task_rows(2)).to_bytes(4, "little")
    at = raw.index(len(task_rows(1)[0]["source"]).to_bytes(4, "little") + ends)  # offsets of the column `source`
    path.write_bytes(raw[:at] + (2**31 - 1).to_bytes(4, "little") + raw[at + 4 :])
    output = ("--output", tmp_path / "out")
    refused(capsys, "row 0 cannot be read", "--dataset", tmp_path / "saved", *output)
    refused(capsys, "row 0 cannot be read", "--dataset", tmp_path / "saved", *output, "--limit", 3)
    refused(capsys, "it has no split 'trian'", "--dataset", tmp_path / "saved", *output, "--split", "trian")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", b"source,target\na\0,b\n", "a.csv holds a zero byte in line 2"),
        ("a.csv", b"source,target\ra,b\r", "a.csv:1 is malformed csv (CR alone ends a line)"),
        ("a.tsv", b"source\ttarget\ra\tb\r", "a.tsv:1 holds line ends of an old Mac"),
        ("a.jsonl", ROW.encode() + b'{"source": "a", "target": "b", "note": "\\ud83d"}', "a.jsonl:2 cannot be used"),
        ("a.jsonl", b'{"id": null, "source": "a", "target": "b"}', "has the key 'None'"),
        ("a.jsonl", b'{"id": "a\\u0000", "source": "a", "target": "b"}', "has the key 'a\\x00'"),
    ],
)
def test_lines_that_are_no_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, content: bytes, told: str
) -> None:
    (tmp_path / name).write_bytes(content)
    key = ("--key", "id") if b'"id"' in content else ()
    refused(capsys, told, "--input", tmp_path / name, "--output", tmp_path / "out", *key)
    assert not (tmp_path / "out").exists() and not (tmp_path / ".out.packing").exists()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        *[(["--shard-size", value], "--shard-size") for value in ("inf", "nan", "-1", "1e400", "1e300", "1e-9")],
        (["--limit", "9" * 30], "is more than 1,000,000,000,000"),
        (["--processes", "100000"], "is more than 1,024"),
        (["--samples-per-shard", "9" * 30], "is more than 1,000,000,000"),
        (["--language", "\udce9"], "with a byte or a character that is not UTF-8"),
        (["--source", "\udce9"], "with a byte or a character that is not UTF-8"),
        (["--map", "source=\udce9"], "is not UTF-8"),
        (["--map", "source=a", "source=b"], "--map fills source twice"),
        (["--map", "source=target", "target=target", "--key", "source"], "--key names the input's field 'source'"),
        (["--split", "test"], "and these choose from a --dataset; expected it without --split; leave --split out"),
    ],
)
def test_options_without_meaning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], told: str
) -> None:
    (tmp_path / "a.jsonl").write_text(ROW)
    refused(capsys, told, "--input", tmp_path / "a.jsonl", "--output", tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()


def test_a_mistyped_option_is_named_and_not_the_required_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, "unrecognized arguments: --inptu; did you mean --input?", "--inptu", "x")
    refused(capsys, "the following arguments are required: --output", "--input", "x")


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_a_pipe_of_the_shell_is_read(tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    text = {"jsonl": ROW * 3, "csv": "source,target\n" + "a,b\n" * 3}[kind]
    read, write = os.pipe()
    try:
        os.write(write, text.encode())
        os.close(write)
        pipe = f"/dev/fd/{read}"
        refused(
            capsys, "cannot be read as parquet", "--input", pipe, "--format", "parquet", "--output", tmp_path / "no"
        )
        arguments = ["--input", pipe, "--format", kind, "--shuffle", "1", "--output", str(tmp_path / "out")]
        assert main(arguments) == 0
    finally:
        os.close(read)
    assert len(read_all(load_index(tmp_path / "out"))) == 3


def test_what_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "folder.jsonl").mkdir()
    for name, told in (("pipe", "is a pipe or a device"), ("folder", "is a folder"), ("none", "No such file")):
        refused(capsys, told, "--input", tmp_path / f"{name}.jsonl", "--output", tmp_path / "out")
    (tmp_path / "a.jsonl").write_text(ROW)
    refused(capsys, "cannot be written", "--input", tmp_path / "a.jsonl", "--output", "/proc/out")


def test_a_file_that_changes_while_it_is_packed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "a.jsonl", job._write_manifest
    path.write_text(ROW)

    def meanwhile(*arguments: Any) -> None:
        whole(*arguments)
        path.write_text(ROW * 2)

    command = ("--input", path, "--output", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(job, "_write_manifest", meanwhile)
        refused(capsys, "a.jsonl changed while it was packed", *command)
    assert main([str(each) for each in command]) == 0
    assert len(read_all(load_index(tmp_path / "out"))) == 2


def test_a_record_that_a_power_loss_emptied_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text(ROW)
    (tmp_path / "b.jsonl").write_text(ROW + "{")
    inputs = ["--input", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), "--output", str(tmp_path / "out")]
    refused(capsys, "b.jsonl:2 is malformed", *inputs, "--processes", 1)
    (record,) = (tmp_path / ".out.packing").glob("pack-*.json")
    record.write_bytes(b"")
    refused(capsys, "b.jsonl:2 is malformed", *inputs, "--processes", 1)
    assert json.loads(record.read_text())["entries"][0]["samples"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_the_workers_of_a_killed_command_end_and_let_the_lock_go(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number}.jsonl" for number in range(3)]
    for path in paths:
        path.write_text("".join(json.dumps(row) + "\n" for row in task_rows(40) * 50))
    command = ["--input", *map(str, paths), "--output", str(tmp_path / "out"), "--processes", "2", "--shuffle", "1"]
    parent = multiprocessing.get_context("fork").Process(target=main, args=(command,))
    parent.start()
    spool, deadline = tmp_path / ".out.packing" / "spool", time.monotonic() + 60
    while not (spool.is_dir() and any(spool.iterdir())):
        assert time.monotonic() < deadline and parent.is_alive()
        time.sleep(0.002)
    os.kill(parent.pid or 0, signal.SIGKILL)
    parent.join()
    while (status := exit_status(lambda: main(command))) == 2:  # until its workers have noticed
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert status == 0 and load_index(tmp_path / "out").samples == 3 * 40 * 50
