"""`bridge-ds pack`, here by tools/pack_shards.py, as a user starts it: what it packs, and how it refuses."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.data.packing.formats import part_rows
from bridge_ds.data.packing.sources import file_parts, map_fields, parse_map
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.errors import DataError

TOOL = Path(__file__).parents[2] / "tools" / "pack_shards.py"


def _tool(*arguments: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=cwd
    )


def file_rows(paths: list[Path]) -> list[tuple[str, Any]]:
    return [row for part in file_parts(paths) for row in part_rows(part)]


def _jsonl(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_help_teaches_and_is_quick(tmp_path: Path) -> None:
    start = time.monotonic()
    result = _tool("pack", "--help", cwd=tmp_path)
    assert time.monotonic() - start < 1.5
    assert result.returncode == 0
    assert "examples:" in result.stdout
    assert "--map source=question" in result.stdout


def test_pack_and_verify(tmp_path: Path) -> None:
    one = _jsonl(tmp_path / "a.jsonl", [{"q": "2 + 2", "a": "4", "id": 1}, {"q": "3 + 3", "a": "6", "id": 2}])
    two = tmp_path / "b.jsonl.gz"
    with gzip.open(two, "wt") as file:
        file.write('{"q": "capital of France", "a": "Paris"}\n\n{"q": "x", "a": "y"}\n')
    out = tmp_path / "out"
    packed = _tool(
        "pack", "--input", one, "--input", two, "--output", out, "--map", "source=q", "--map", "target=a",
        "--samples-per-shard", 2, "--limit", 4, "--limit", 3,
    )  # fmt: skip
    # Given twice: of what can be several all count, of what cannot the last does, and that is said.
    assert packed.returncode == 0
    assert packed.stderr == "note: --limit is given more than once; the last one holds: 3\n"
    assert packed.stdout == f"packed 3 samples into 2 shards (0.0 MiB) in {out}\n"
    reader = SampleReader(load_index(out), "task")
    assert reader.read(1, 0) == {"source": "capital of France", "target": "Paris"}
    assert _tool("verify", out).returncode == 0
    with (out / "shard-000000.tar").open("r+b") as file:
        file.write(b"#")
    damaged = _tool("verify", out)
    assert damaged.returncode == 2
    assert damaged.stderr.startswith("error: shard shard-000000.tar")


def test_faults_end_with_one_sentence_exit_2_and_no_output(tmp_path: Path) -> None:
    source = _jsonl(tmp_path / "bad.jsonl", [{"source": "a", "target": "b"}, {"source": "a"}])
    failed = _tool("pack", "--input", source, "--output", tmp_path / "out")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert failed.stderr.count("\n") == 1
    assert failed.stderr.startswith(f"error: {source}:2 has no `target`")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.jsonl"]


def test_the_tools_own_rules(tmp_path: Path) -> None:
    neither = _tool("pack", "--output", tmp_path / "out")
    assert neither.returncode == 2
    assert "either --input FILE... or --dataset ID" in neither.stderr
    assert "Traceback" not in neither.stderr
    wrong = _tool("pack", "--input", "x", "--output", tmp_path / "out", "--limit", "0")
    assert wrong.returncode == 2
    assert "is not above 0" in wrong.stderr


@pytest.mark.slow
def test_datasets_from_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    _jsonl(tmp_path / "data" / "train.jsonl", [{"q": "a", "a": "b"}] * 3)
    out = tmp_path / "out"
    packed = _tool(
        "pack", "--dataset", tmp_path / "data", "--output", out, "--map", "source=q", "target=a", "--limit", 2
    )
    assert (packed.returncode, packed.stderr) == (0, "")
    assert SampleReader(load_index(out), "task").read(0, 1) == {"source": "a", "target": "b"}


def _content(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_paragraphs_become_texts_and_headings_join_the_next(tmp_path: Path) -> None:
    path = _content(tmp_path / "book.txt", "\ufeffTitle\n\nOne two\nthree.\n\n\n  \nFour five.\n\nEnd\n")
    assert list(file_rows([path])) == [
        (f"{path}:1", {"text": "Title One two three."}),
        (f"{path}:8", {"text": "Four five. End"}),
    ]
    assert list(file_rows([_content(path, "End\n")])) == [(f"{path}:1", {"text": "End"})]
    assert list(file_rows([_content(path, "One two\n")])) == [(f"{path}:1", {"text": "One two"})]
    with pytest.raises(DataError, match=r"book\.txt holds line ends of an old Mac"):
        list(file_rows([_content(path, "One two\rThree four\r")]))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.jsonl",
            '{"source": "x"}\n{"source": \n',
            r"a.jsonl:2 is malformed JSON \(Expecting value at character 13\)",
        ),
        ("a.jsonl", b'{"source": "x"}\n{"source": "\xff"}\n', r"a.jsonl:2 is not UTF-8"),
        ("a.jsonl.gz", b"no gzip", r"a.jsonl.gz cannot be read .Not a gzipped"),
        ("a.jsonl.gz", gzip.compress(b'{"source": "x"}\n' * 5000, mtime=0)[:60], r"a.jsonl.gz cannot be read"),
        ("a.jsonl", "[" * 100_000, r"a.jsonl:1 cannot be used: its brackets are nested more than 100 deep"),
        ("a.xml", "x,y", r"a.xml ends in .xml; expected .jsonl"),
        ("a.csv", "x,y\n1,2\n3\n", r"a.csv:3 has 1 columns and the header has 2; fix it"),
        ("a.csv", 'x,y\n"1,2\n', r"a.csv:2 is malformed csv .a quotation mark opens there"),
        ("a.jsonl.zst", b"no zstd at all", r"a.jsonl.zst cannot be read ."),
        ("a.parquet", b"PAR1 and nothing else", r"a.parquet cannot be read as parquet"),
    ],
)
def test_files_that_cannot_be_read_name_file_and_line(
    tmp_path: Path, name: str, content: str | bytes, message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        list(file_rows([_content(tmp_path / name, content)]))
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_field_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.jsonl cannot be read .No such file"):
        list(file_rows([tmp_path / "nowhere.jsonl"]))
    with pytest.raises(DataError, match=r"f:1 has no field `a`; it has `q`, `id`; name one of these in --map"):
        list(map_fields([("f:1", {"q": 1, "id": 2})], {"source": "q", "target": "a"}))
    with pytest.raises(DataError, match=r"--map 'answer=a' cannot be used; expected NAME=FIELD"):
        parse_map(["answer=a"])


def test_a_benchmark_is_packed_as_it_is_scored(tmp_path: Path) -> None:
    from bridge_ds.tasks import TASKS
    from tests.tasks import local

    folder = local.xnli(tmp_path / "xnli", train=7)
    packed = _tool("task:xnli", "--dataset", folder, "--output", tmp_path / "out", "--limit", 5, "--shuffle", 1)
    assert (packed.returncode, packed.stderr) == (0, "")
    assert packed.stdout.startswith("packed 5 samples into 1 shards")
    reader = SampleReader(load_index(tmp_path / "out"), "task")
    samples = [reader.read(0, number) for number in range(5)]
    rows = local.pairs("en", 7, seed=1)
    prompts = {f"Premise: {row['premise']} Hypothesis: {row['hypothesis']} Label:": row["label"] for row in rows}
    assert all(TASKS["xnli"].labels.index(sample["target"]) == prompts[sample["source"]] for sample in samples)
    assert load_index(tmp_path / "out").shards[0].language == "en"

    local.jsonl(tmp_path / "mine" / "train" / "en.jsonl", [{"a": "A", "hypothesis": "B", "label": "neutral"}])
    arguments = ("--dataset", tmp_path / "mine", "--map", "premise=a", "--output", tmp_path / "mapped")
    assert _tool("pack", "task:xnli", *arguments).returncode == 0
    sample = SampleReader(load_index(tmp_path / "mapped"), "task").read(0, 0)
    assert sample == {"source": "Premise: A Hypothesis: B Label:", "target": "Neutral"}


def test_a_benchmark_is_packed_with_the_recipes_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bridge_ds.commands.pack import main
    from tests.tasks import local

    local.jsonl(tmp_path / "mine" / "train" / "en.jsonl", [{"a": "A", "hypothesis": "B", "label": "neutral"}])
    recipe, given = (
        tmp_path / "recipe.yaml",
        f"{{source: {tmp_path}/mine, fields: {{premise: a}}, prompt: '{{premise}}?'}}",
    )
    recipe.write_text(f"evaluation: {{data: {{xnli: {given}}}}}\n")
    assert main(["task:xnli", "--tasks", str(recipe), "--output", str(tmp_path / "out")]) == 0
    assert SampleReader(load_index(tmp_path / "out"), "task").read(0, 0) == {"source": "A?", "target": "Neutral"}
    for options, words in (
        (["task:xnli", "--language", "sw"], "a language of its own; expected it without --language"),
        (["task:xnli", "--triples", "t.jsonl", "--templates", "t.yaml"], "without --triples and --templates; leave"),
        (
            ["--triples", "t.jsonl", "--split", "test", "--revision", "x"],
            "without --split and --revision; leave --split",
        ),
        (["--templates", "t.yaml"], "expected --triples FILE with it"),
        (["--dataset", str(tmp_path), "--format", "csv"], "has a format of its own; expected it without --format"),
    ):
        with pytest.raises(DataError) as caught:
            main([*options, "--output", str(tmp_path / "no")])
        assert words in str(caught.value)


def test_columns_that_are_null_are_absent(tmp_path: Path) -> None:
    rows = [{"text": "two words", "source": None, "target": None}, {"text": None, "source": "a", "target": "b"}]
    index = pack_rows(rows, tmp_path / "out")
    reader = SampleReader(index, "denoise_and_align")
    assert [reader.read(0, row) for row in range(2)] == [{"text": "two words"}, {"source": "a", "target": "b"}]


def test_a_task_of_the_users_own_is_packed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from bridge_ds.commands.pack import main
    from bridge_ds.entry import exit_status

    (tmp_path / "news" / "train").mkdir(parents=True)
    (tmp_path / "news" / "train" / "en.csv").write_text("text,topic\n one,0\ntwo,1\n")
    settings = f"{{source: {tmp_path}/news, prompt: '{{text}} Topic:', labels: [Business, Sports]"
    tasks = tmp_path / "tasks.yaml"
    tasks.write_text(f"tasks:\n  mine: {settings}, fields: {{label: topic}}}}\n  wrong: {settings}}}\n")
    given = ["--tasks", str(tasks), "--output", str(tmp_path / "out")]
    assert main(["task:mine", *given]) == 0
    index = load_index(tmp_path / "out")
    samples = [SampleReader(index, "task").read(0, number) for number in range(2)]
    assert samples == [{"source": "one Topic:", "target": "Business"}, {"source": "two Topic:", "target": "Sports"}]
    assert index.shards[0].source == f"mine, train split of {tmp_path}/news"
    (tmp_path / "other" / "train").mkdir(parents=True)
    (tmp_path / "other" / "train" / "en.csv").write_text("text,label\nthree,Football\n")
    for arguments, words in (
        (["task:wrong"], "en.csv:2 has no column 'label'; it has text, topic; expected the label of wrong: name its"),
        (["task:mine", "--dataset", str(tmp_path / "other"), "--map", "label=label"],
         "en.csv:2 has the label 'Football' in column 'label'; expected one of 0 (Business), 1 (Sports); the values"),
        (["task:min"], "did you mean 'mine'?"),
        (["--input", "x.txt"], "--tasks has tasks, of which none is named; expected task:NAME"),
    ):  # fmt: skip
        run = partial(main, [*arguments, *given, "--overwrite"])
        assert exit_status(run) == 2
        said = capsys.readouterr().err
        assert words in said and said.count("error:") == 1 and "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["task:xnil"], "unknown task 'xnil'; expected one of"),
        (["task:testbed_news"], "testbed_news makes its own samples"),
        (["task:mgsm"], "mgsm has no English train split"),
        (["task:xnli", "--map", "premis=a"], "did you mean 'premise'?"),
        (["task:xnli", "--input", "x.jsonl"], "expected task:NAME without --input"),
        (["pack", "xnli"], "expected task:NAME"),
        (["task:xnli", "--dataset", "."], "no train file for the language 'en'"),
    ],
)
def test_a_benchmark_that_cannot_be_packed(tmp_path: Path, arguments: list[str], words: str) -> None:
    failed = _tool(*arguments, "--output", tmp_path / "out", cwd=tmp_path)
    assert failed.returncode == 2 and failed.stderr.count("\n") == 1
    assert failed.stderr.startswith("error: ") and words in failed.stderr
    assert list(tmp_path.iterdir()) == []
