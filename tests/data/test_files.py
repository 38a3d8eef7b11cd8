"""What users' files hold beside their texts: quotation marks, marks of editors and of macOS, things given twice."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.config.load import build_config, load_config
from bridge_ds.config.schema import DataConfig, TaskDataConfig
from bridge_ds.config.zero import read_ds_config
from bridge_ds.data.loading.corpus import locations
from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.index_folder import index_folder
from bridge_ds.data.packing.job import PackOptions, pack_parts
from bridge_ds.data.packing.part import Part
from bridge_ds.data.packing.sources import file_parts, parse_map
from bridge_ds.data.packing.write import check_output, pack_rows
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.errors import BridgeError, ConfigError, DataError
from bridge_ds.frozen.verify import weight_files
from bridge_ds.generate.files import read_items
from bridge_ds.tasks import find_tasks
from tests.data.conftest import task_rows

BOM = b"\xef\xbb\xbf"


def rows_of(path: Path, content: str | bytes) -> list[Any]:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [row for part in file_parts([path]) for _, row in part_rows(part)]


def make_tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def samples_of(folder: Path) -> list[dict[str, Any]]:
    index = load_index(folder)
    reader = SampleReader(index, "task")
    return [reader.read(shard, row) for shard, entry in enumerate(index.shards) for row in range(entry.samples)]


QUOTES = 'plain one\tA\n"Come in\tB\nhe said"\tC\nplain four\tD\n""\t"\n"all of it"\tE\n'
RIGHT = [
    ("plain one", "A"),
    ('"Come in', "B"),
    ('he said"', "C"),
    ("plain four", "D"),
    ('""', '"'),
    ('"all of it"', "E"),
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", [b"", BOM])
def test_quotation_marks_in_tsv_are_letters(tmp_path: Path, end: str, mark: bytes) -> None:
    content = mark + ("source\ttarget\n" + QUOTES).replace("\n", end).encode()
    right = [{"source": source, "target": target} for source, target in RIGHT]
    assert rows_of(tmp_path / "a.tsv", content) == right
    (tmp_path / "b.tsv.gz").write_bytes(gzip.compress(content))
    index = pack_parts(file_parts([tmp_path / "b.tsv.gz"]), PackOptions(), tmp_path / "out")
    assert index.samples == 6 and samples_of(tmp_path / "out") == right


def test_quotation_marks_in_a_benchmarks_tsv_keep_its_languages_parallel(tmp_path: Path) -> None:
    for language in ("en", "si"):
        lines = [f'"{language} one\tyes\t0', f'he said"\t{language}\t1', f"{language} three\tno\t2"]
        (tmp_path / f"{language}.tsv").write_text("\n".join(["premise\thypothesis\tlabel", *lines]) + "\n", "utf-8")
    (task,) = find_tasks(["xnli"], {"xnli": TaskDataConfig(source=str(tmp_path))})
    english, sinhala = task.examples("en", 0), task.examples("si", 0)
    assert [each.key for each in english] == [each.key for each in sinhala] == ["xnli-0", "xnli-1", "xnli-2"]
    assert english[1].source == 'Premise: he said" Hypothesis: en Label:'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", "x\ty\n1\t2\n1\t2\t3\n", r"a.tsv:3 has 3 columns and the header has 2"),
        ("a.tsv", "x\ty\n\n1\n", r"a.tsv:3 has 1 columns and the header has 2"),
        (
            "a.tsv",
            'x\ty\n"say ""yes"""\t2\n',
            r"a.tsv:2 has a field in quotation marks with doubled",
        ),
        (
            "a.csv",
            'x,y\n1,2\n"Come in,B\nhe said,C\nplain,D\n',
            r"a.csv:3 is malformed csv .a quotation mark opens",
        ),
        ("a.csv", 'x,y\n"one\ntwo",2\n3\n', r"a.csv:4 has 1 columns and the header has 2"),
        ("a.csv", 'x,y\n"a"b,2\n', r"a.csv:2 is malformed csv .*expected after"),
    ],
)
def test_a_row_that_is_none_is_named_by_its_line(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        rows_of(tmp_path / name, content)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one two"}\r\n'), ("a.csv", "text\r\none two\r\n"), ("a.tsv", "text\r\none two\r\n"),
        ("a.txt", "one two\r\n"),
    ],
)  # fmt: skip
def test_byte_order_mark_and_line_ends_of_windows_are_no_text(tmp_path: Path, name: str, content: str) -> None:
    assert rows_of(tmp_path / name, BOM + content.encode()) == [{"text": "one two"}]
    for wide in ("utf-16", "utf-16-le", "utf-32"):
        with pytest.raises(DataError, match=rf"{name} is UTF-16 or UTF-32; expected UTF-8; convert it"):
            rows_of(tmp_path / name, content.encode(wide))


def test_byte_order_mark_inside_of_files_that_were_joined_is_no_text(tmp_path: Path) -> None:
    for name, first in (("a.txt", "one two\n\n"), ("a.tsv", "text\none two\n"), ("a.csv", "text\none two\n")):
        content = first.encode() + BOM + b"three\t four\n".replace(b"\t", b"" if name != "a.txt" else b"\t")
        assert rows_of(tmp_path / name, content) == [{"text": "one two"}, {"text": "three four"}]


def test_byte_order_mark_and_last_line_end_of_a_member_are_no_text(tmp_path: Path) -> None:
    members = [
        ("000.source.txt", BOM + b"one\r\ntwo\r\n"), ("000.target.txt", BOM + b"yes\r\n"),
        ("001.json", BOM + b'{"source": "a\\n", "target": "b"}\r\n'),
        ("002.source.txt", "naïve".encode("utf-16")), ("002.target.txt", b"no\n"),
    ]  # fmt: skip
    make_tar(tmp_path / "x.tar", members)
    index, remarks = index_folder(tmp_path)
    reader = SampleReader(index, "task")
    assert reader.read(0, 0) == {"source": "one\ntwo", "target": "yes"}
    assert reader.read(0, 1) == {"source": "a\n", "target": "b"}  # JSON says itself what is text
    with pytest.raises(DataError, match=r"key '002'.* is UTF-16 or UTF-32; expected UTF-8"):
        reader.read(0, 2)
    assert index.table(0)["target"].tolist()[:2] == [3, 1] and "1 samples are bad" in remarks[0]


def test_byte_order_mark_in_settings_and_requests(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(BOM + b"train:\r\n  steps: 7\r\n")
    (tmp_path / "z.json").write_bytes(BOM + b'{"zero_optimization": {"stage": 2}}')
    (tmp_path / "in.jsonl").write_bytes(BOM + '{"source": "ක"}\r\n'.encode())
    assert load_config(str(tmp_path / "r.yaml")).train.steps == 7
    assert read_ds_config(str(tmp_path / "z.json")) == {"zero_optimization": {"stage": 2}}
    assert read_items(tmp_path / "in.jsonl", "source")[1] == [(1, {"source": "ක"})]
    for name, read in (("r.yaml", load_config), ("z.json", read_ds_config)):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes().decode("utf-8-sig").encode("utf-16"))
        with pytest.raises(ConfigError, match=r"is UTF-16 or UTF-32"):
            read(str(tmp_path / name))


def test_files_of_macos_are_passed_over_in_tars_and_folders(tmp_path: Path) -> None:
    double = b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X"
    members = [
        ("._000.source.txt", double), ("000.source.txt", b"one"), ("._000.target.txt", double),
        ("000.target.txt", b"yes\n"), (".DS_Store", double), ("__MACOSX/._001.json", double), ("d/.DS_Store", double),
        ("d/001.json", b'{"source": "two", "target": "no"}'), ("d/._001.json", double),
    ]  # fmt: skip
    make_tar(tmp_path / "tars" / "x.tar", members)
    (tmp_path / "tars" / "._x.tar").write_bytes(double)
    (tmp_path / "tars" / "._y.tar.gz").write_bytes(double)
    index, remarks = index_folder(tmp_path / "tars")
    assert [shard.name for shard in index.shards] == ["x.tar"] and remarks[0].startswith("6 members were skipped")
    assert samples_of(tmp_path / "tars") == [{"source": "one", "target": "yes"}, {"source": "two", "target": "no"}]

    make_tar(tmp_path / "plain" / "x.tar", [("._000.json", double), ("000.json", b'{"source": "1", "target": "2"}')])
    assert index_folder(tmp_path / "plain")[0].shards[0].layout == "json"

    bench = tmp_path / "bench"
    (bench / "__MACOSX").mkdir(parents=True)
    for name in ("en.tsv", "._en.tsv", "__MACOSX/._en.tsv"):
        (bench / name).write_bytes(b"premise\thypothesis\tlabel\na\tb\t0\n" if name == "en.tsv" else double)
    (task,) = find_tasks(["xnli"], {"xnli": TaskDataConfig(source=str(bench))})
    assert task.languages == ("en",) and len(task.examples("en", 0)) == 1
    with pytest.raises(DataError, match=r"\._en.tsv is a file that macOS adds"):
        file_parts([bench / "._en.tsv"])

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".DS_Store").write_bytes(double)
    check_output(tmp_path / "out", overwrite=False)
    for name in ("model.safetensors", "._model.safetensors"):
        (tmp_path / name).write_bytes(double)
    assert [path.name for path in weight_files(str(tmp_path), None)] == ["model.safetensors"]


TWICE = '{"source": "a", "target": "x", "target": "y"}'


def given_twice(tmp_path: Path, kind: str) -> None:
    """Each way in which something can be given twice."""
    path = tmp_path / "file"
    if kind in ("csv", "tsv"):
        comma = "," if kind == "csv" else "\t"
        rows_of(tmp_path / f"a.{kind}", "a,b,a\n1,2,3\n".replace(",", comma))
    elif kind == "parquet":
        import pyarrow.parquet

        table = pyarrow.table([pyarrow.array(["1"]), pyarrow.array(["2"])], names=["a", "a"])
        pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
        file_parts([tmp_path / "a.parquet"])
    elif kind == "jsonl":
        rows_of(tmp_path / "a.jsonl", f'{{"source": "a", "target": "x"}}\n{TWICE}\n')
    elif kind == "member":
        make_tar(tmp_path / "x.tar", [("0.json", TWICE.encode())])
        index, remarks = index_folder(tmp_path)
        assert "1 samples are bad" in remarks[0]
        SampleReader(index, "task").read(0, 0)
    elif kind == "sample":
        make_tar(tmp_path / "x.tar", [("0.json", b"{}"), ("1.json", b"{}"), ("0.json", b"{}")])
        index_folder(tmp_path)
    elif kind == "map":
        parse_map(["target=a", "source=s", "target=b"])
    elif kind == "file":
        path.with_suffix(".jsonl").touch()
        file_parts([path.with_suffix(".jsonl"), tmp_path / "." / "file.jsonl"])
    elif kind == "index":
        pack_rows(task_rows(4), tmp_path / "s", samples_per_shard=2)
        content = json.loads((tmp_path / "s" / "index.json").read_text())
        content["shards"] = content["shards"][:1] * 2
        (tmp_path / "s" / "index.json").write_text(json.dumps(content))
        load_index(tmp_path / "s")
    elif kind == "index key":
        pack_rows(task_rows(4), tmp_path / "s")
        raw = (tmp_path / "s" / "index.json").read_text()
        (tmp_path / "s" / "index.json").write_text(raw.replace('"fields":{}', '"fields":{},"fields":{"source":"x"}'))
        load_index(tmp_path / "s")
    elif kind == "key":
        rows = "".join(json.dumps({"source": "a", "target": "b", "id": f"k{n % 5}"}) + "\n" for n in range(6))
        path.with_suffix(".jsonl").write_text(rows)
        pack_parts(file_parts([path.with_suffix(".jsonl")]), PackOptions(key="id", samples_per_shard=2), tmp_path / "o")
    elif kind == "mixture":
        locations(DataConfig(mixture=("a=1", "b=1", "./a/=2")))
    elif kind == "recipe":
        path.with_suffix(".yaml").write_text("train:\n  lr: 1\n  steps: 2\n  lr: 3\n")
        load_config(str(path.with_suffix(".yaml")))
    elif kind == "ds_config":
        path.with_suffix(".json").write_text('{"zero_optimization": {"stage": 2, "stage": 3}}')
        read_ds_config(str(path.with_suffix(".json")))
    elif kind == "generate":
        path.write_text(TWICE + "\n")
        read_items(path, "source")
    elif kind == "task":
        find_tasks(["xnli", "mgsm", "xnli"])
    elif kind == "language":
        from bridge_ds.evaluation.jobs import wanted

        wanted(find_tasks(["mgsm"]), ["sw", "en", "sw"])
    elif kind == "benchmark":
        for ending in ("jsonl", "csv"):
            (tmp_path / f"en.{ending}").touch()
        find_tasks(["xnli"], {"xnli": TaskDataConfig(source=str(tmp_path))})[0].examples("en", 0)
    elif kind == "memory":
        from bridge_ds.frozen.device_map import _pairs

        _pairs("cpu=20GiB,disk=1GiB,cpu=30GiB")


@pytest.mark.parametrize(
    ("kind", "message"),
    {
        "csv": r"a.csv:1 has two columns named 'a'",
        "tsv": r"a.tsv:1 has two columns named 'a'",
        "parquet": r"a.parquet has two columns named 'a'",
        "jsonl": r"a.jsonl:2 cannot be used: it has the key 'target' twice in one object",
        "member": r"key '0'.* has the key 'target' twice in one object",
        "sample": r"two samples of the key '0'",
        "map": r"--map fills target twice, from 'a' and from 'b'",
        "file": r"file.jsonl is given twice",
        "index": r"the shard shard-000000.tar is listed twice",
        "index key": r"the key 'fields' twice",
        "key": r"key .field `id`. of sample 0 of shard-000000.tar comes again in a later shard",
        "mixture": r"data.mixture has .*/a twice",
        "recipe": r"file.yaml is not readable as YAML .the key 'lr' is given twice; .* line 4",
        "ds_config": r"file.json cannot be used: it has the key 'stage' twice",
        "generate": r"line 1 cannot be used: it has the key 'target' twice",
        "task": r"evaluation.tasks names xnli twice",
        "language": r"evaluation.languages names sw twice",
        "benchmark": r"has both en.csv and en.jsonl",
        "memory": r"max_memory has cpu twice",
    }.items(),
)
def test_given_twice_is_refused(tmp_path: Path, kind: str, message: str) -> None:
    with pytest.raises(BridgeError, match=message):
        given_twice(tmp_path, kind)


def test_columns_without_a_name_may_be_empty(tmp_path: Path) -> None:
    for ending, sign in (("csv", ","), ("tsv", "\t")):
        path = tmp_path / f"a.{ending}"
        path.write_text(sign.join(["source", "target", "", ""]) + "\n" + sign.join(["a", "b", "", " "]) + "\n")
        ((_, row),) = part_rows(Part(ending, str(path)))
        assert (row["source"], row["target"]) == ("a", "b")
        path.write_text(sign.join(["source", "target", "", ""]) + "\n" + sign.join(["a", "b", "c", ""]) + "\n")
        with pytest.raises(DataError, match=rf"a.{ending}:2 has a value in one of several columns without a name"):
            list(part_rows(Part(ending, str(path))))


def test_given_twice_on_the_command_line_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from bridge_ds.training_options import parse_train

    monkeypatch.delenv("RANK", raising=False)
    arguments = ["--set", "train.lr=1", "--set", "train.steps=5", "--set", "train.lr=2", "--set", "train.steps=5"]
    options = parse_train([*arguments, "--ds_config", "zero2.json", "--set", "run.ds_config=zero3.json"])
    assert capsys.readouterr().err == (
        "note: train.lr is given more than once; the last one holds: 2\n"
        "note: run.ds_config is given more than once; the last one holds: zero2.json\n"
    )
    assert build_config({}, options.overrides).train.lr == 2
    monkeypatch.setenv("RANK", "1")
    parse_train(arguments)
    assert capsys.readouterr().err == ""
