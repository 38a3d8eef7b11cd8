"""Users' files, damaged at random: a sentence, or what another reader reads. (`pack`, `generate`, benchmarks.)

BRIDGE_DS_FUZZ multiplies the number of cases, BRIDGE_DS_FUZZ_SEED sets the first one; a failure names its case.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from bridge_ds.commands.pack import main
from bridge_ds.config.schema import TaskDataConfig
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.entry import exit_status
from bridge_ds.errors import BridgeError, DataError
from bridge_ds.generate.files import read_items
from bridge_ds.tasks import find_tasks

CASES = int(160 * float(os.environ.get("BRIDGE_DS_FUZZ", "1")))
SEED = int(os.environ.get("BRIDGE_DS_FUZZ_SEED", "17"))
WORDS = [
    "a", "cat", "sat", "ක්", "猫", "😀", '"', "''", ",", "x\ty", "x\ny", "\\ud83d", "é", "0", "NaN", "\u2028", "\x1c",
]  # fmt: skip
COLUMNS = ("source", "target", "premise", "hypothesis", "label", "note")
LABELS = ("Entailment", "Neutral", "Contradiction")
PIECES = [
    b"\0", b"\xff", b"\xed\xa0\xbd", b"\\ud83d", b"\xef\xbb\xbf", b"\r", b"\n", b"\r\n", b"\n\n", b'"', b",", b"\t",
    b"[" * 99, b"{" * 200, b"9" * 5000, b"1e999", b"NaN", b"null", b"true", b"{}", b'{"source":1}', b'"source":"x",',
    b" ", b"-", b"\\",
]  # fmt: skip
ENDINGS = ("jsonl", "txt", "csv", "tsv", "parquet", "jsonl.gz", "csv.gz", "jsonl.zst")


def test_damaged_files_are_a_sentence_or_read_as_others_read_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = {0: 0, 2: 0}
    for number in range(CASES):
        draw = random.Random(f"{SEED}/{number}")
        ending = ENDINGS[number % len(ENDINGS)]
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        path = folder / f"en.{ending}"
        path.write_bytes(_damaged(_written(_rows(draw), ending, draw), draw))
        case = f"case {SEED}/{number} ({ending}), whose file is {path.read_bytes()[:300]!r}"
        options = draw.choice([[], [], ["--shuffle", "3"], ["--samples-per-shard", "2"]])
        command = ["--input", str(path), "--output", str(folder / "out"), "--processes", "1", *options]
        status = exit_status(lambda command=command: main(command))
        told = capsys.readouterr().err
        assert status in (0, 2) and "Traceback" not in told, f"{case}: {told}"
        assert status == 0 or (told.startswith("error: ") and told.count("\n") == 1), f"{case}: {told}"
        outcomes[status] += 1
        if status == 0:
            index = load_index(folder / "out")
            reader = SampleReader(index, "prefix_lm" if ending == "txt" else "task")
            found = [reader.read(shard, row) for shard, size in enumerate(index.sizes) for row in range(size)]
            _same(found, _read(path, ending), options, case)
        if ending != "txt":
            _as_benchmark(path, ending, case)
        if ending == "jsonl":
            _as_questions(path, case)
    assert min(outcomes.values()) > CASES / 10, outcomes


def _rows(draw: random.Random) -> list[dict[str, Any]]:
    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(1, 6)))

    return [
        {"source": text(), "target": text(), "premise": text(), "hypothesis": text(), "label": draw.randrange(3),
         "note": text()} for _ in range(draw.randint(1, 8))
    ]  # fmt: skip


def _written(rows: list[dict[str, Any]], ending: str, draw: random.Random) -> bytes:
    form, _, compression = ending.partition(".")
    if form == "jsonl":
        raw = "".join(json.dumps(row, ensure_ascii=draw.random() < 0.5) + "\n" for row in rows).encode()
    elif form == "txt":
        raw = "\n\n".join(f"{row['source']} {row['target']}" for row in rows).encode()
    elif form == "csv":
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
        raw = file.getvalue().encode()
    elif form == "tsv":
        lines = ["\t".join(str(row[name]).replace("\t", " ").replace("\n", " ") for name in COLUMNS) for row in rows]
        raw = "".join(line + "\n" for line in ["\t".join(COLUMNS), *lines]).encode()
    else:
        sink = pyarrow.BufferOutputStream()
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(rows), sink, row_group_size=draw.randint(1, 9),
            write_page_checksum=draw.random() < 0.5, compression=draw.choice(["none", "snappy", "zstd"]),
            use_dictionary=draw.random() < 0.5,
        )  # fmt: skip
        raw = sink.getvalue().to_pybytes()
    if compression == "gz":
        return gzip.compress(raw, mtime=0)
    return raw if not compression else pyarrow.Codec("zstd").compress(raw, asbytes=True)


def _damaged(raw: bytes, draw: random.Random) -> bytes:
    content = bytearray(raw)
    for _ in range(draw.choice([0, 1, 1, 1, 2, 4])):
        at, length = draw.randrange(len(content) + 1), draw.randint(1, 30)
        kind = draw.choice(["flip", "flip", "cut", "drop", "zero", "again", "piece", "piece", "piece"])
        if kind == "flip" and at < len(content):
            content[at] ^= 1 << draw.randrange(8)
        elif kind == "cut":
            del content[at:]
        elif kind == "drop":
            del content[at : at + length]
        elif kind == "zero":
            content[at : at + length] = bytes(length)
        elif kind == "again":
            content[at:at] = content[at : at + length]
        elif kind == "piece":
            content[at:at] = draw.choice(PIECES)
    return bytes(content)


def _read(path: Path, ending: str) -> list[dict[str, Any]]:
    """The rows, by other means than the code under test."""
    form, _, compression = ending.partition(".")
    if form == "parquet":
        return pyarrow.parquet.read_table(path).to_pylist()
    raw = path.read_bytes()
    if compression == "gz":
        raw = gzip.decompress(raw)
    elif compression:
        raw = pyarrow.input_stream(str(path), compression="zstd").read()
    lines = [line.removeprefix("\ufeff") for line in raw.decode().split("\n")]
    if form == "jsonl":
        return [json.loads(line) for line in lines if line.strip()]
    if form in ("csv", "tsv"):
        rows = list(csv.reader(io.StringIO("\n".join(lines), newline="")))
        if form == "tsv":
            rows = [line.removesuffix("\r").split("\t") for line in lines if line.removesuffix("\r")]
        header, *rest = [row for row in rows if row] or [[]]
        return [dict(zip(header, row, strict=True)) for row in rest]
    return [{"text": "\n".join(lines)}]


def _same(found: list[dict[str, Any]], right: list[dict[str, Any]], options: list[str], case: str) -> None:
    if set(found[0]) == {"text"}:  # paragraphs: their characters, whatever is joined
        ours, theirs = (list("".join("".join(row["text"] for row in rows).split())) for rows in (found, right))
        assert sorted(ours) == sorted(theirs), case
        assert "--shuffle" in options or ours == theirs, case
    else:
        ours, theirs = ([json.dumps(row) for row in rows] for rows in (found, right))  # NaN is not equal to itself
        assert (sorted(ours) == sorted(theirs)) if "--shuffle" in options else ours == theirs, case


def _as_benchmark(path: Path, ending: str, case: str) -> None:
    try:
        (task,) = find_tasks(["xnli"], {"xnli": TaskDataConfig(source=str(path.parent))})
        found = task.examples("en", 0)
    except BridgeError:
        return
    right = []
    for row in _read(path, ending):
        assert {"premise", "hypothesis", "label"} <= set(row), case
        source = f"Premise: {row['premise'].strip()} Hypothesis: {row['hypothesis'].strip()} Label:"
        right.append((source, str(row["label"]).strip()))
    assert [example.source for example in found] == [source for source, _ in right], case
    for example, (_, label) in zip(found, right, strict=True):
        assert label.casefold() in (LABELS[example.label].casefold(), str(example.label), f"{example.label}.0"), case


def _as_questions(path: Path, case: str) -> None:
    try:
        _, items = read_items(path, "source")
    except DataError:
        return
    lines = path.read_bytes().decode("utf-8-sig").split("\n")
    assert [json.dumps(item) for _, item in items] == [json.dumps(json.loads(lines[n - 1])) for n, _ in items], case
    assert len(items) == sum(bool(line.strip()) for line in lines), case
