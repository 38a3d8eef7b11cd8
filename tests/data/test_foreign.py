"""Tars that others made: indexed and read, or refused with the reason."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.data.packing.index_folder import index_folder
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.reader import SampleReader
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.data.shards.verify import verify
from bridge_ds.errors import DataError
from tests import samples
from tests.data.conftest import task_rows


def write(path: Path, samples: list[dict[str, Any]]) -> None:
    """As a webdataset user does it."""
    from webdataset.writer import TarWriter

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        writer = TarWriter(file)
        for sample in samples:
            writer.write(sample)
        writer.close()


def read_all(folder: Path, objective: str = "task") -> list[dict[str, Any]]:
    return samples.read_all(load_index(folder), objective)


def test_one_json_a_sample(tmp_path: Path) -> None:
    rows = task_rows(10)
    for number in range(2):
        part = rows[number * 5 : number * 5 + 5]
        write(tmp_path / f"part{number}.tar", [{"__key__": f"k{i}", "json": row} for i, row in enumerate(part)])
    index, remarks = index_folder(tmp_path, language="en", source="tests", processes=2)
    assert remarks == []
    assert [(shard.name, shard.layout, shard.language, shard.source) for shard in index.shards] == [
        ("part0.tar", "json", "en", "tests"), ("part1.tar", "json", "en", "tests"),
    ]  # fmt: skip
    assert read_all(tmp_path) == rows
    assert len(list(verify(index))) == 2


def test_several_fields_a_sample_and_other_names(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.tar", [
        {"__key__": "dir/0", "source.txt": "one", "target.txt": "zwei", "json": {"id": 7}},
        {"__key__": "dir/1", "Source.TXT": "drei", "target.txt": "four", "prompt.txt": "p"},
    ])  # fmt: skip
    index, _ = index_folder(tmp_path / "a")
    assert index.shards[0].layout == "members"
    assert read_all(tmp_path / "a") == [
        {"source": "one", "target": "zwei", "id": 7}, {"source": "drei", "target": "four", "prompt": "p"},
    ]  # fmt: skip
    assert index.table(0)["source"].tolist() == [3, 4]
    assert index.table(0)["prompt"].tolist() == [0, 1]
    assert SampleReader(index, "task").describe(0, 1).startswith("sample 1 (key 'dir/1') of shard x.tar")
    assert len(list(verify(index))) == 1

    write(tmp_path / "b" / "x.tar", [{"__key__": "0", "en.txt": "cat", "de.txt": "Katze", "jpg": b"\xff" * 700}])
    with pytest.raises(DataError, match=r"shard x.tar holds '0.jpg' with suffix 'jpg'; .*--skip SUFFIX"):
        index_folder(tmp_path / "b")
    assert not (tmp_path / "b" / "index.json").exists()
    _, remarks = index_folder(tmp_path / "b", skip=[".JPG"], fields={"source": "en", "target": "de"})
    assert remarks == ["1 members were skipped (--skip, __meta__ names, or files of macOS)"]
    assert read_all(tmp_path / "b")[0].items() >= {"source": "cat", "target": "Katze"}.items()


def test_text_alone_and_json_under_other_fields(tmp_path: Path) -> None:
    write(tmp_path / "a" / "x.tar", [{"__key__": "0", "txt": "two words"}, {"__key__": "1", "txt": "and more"}])
    index_folder(tmp_path / "a")
    assert read_all(tmp_path / "a", "prefix_lm") == [{"text": "two words"}, {"text": "and more"}]
    write(tmp_path / "b" / "x.tar", [{"__key__": "0", "json": {"q": "2 + 2", "a": "4"}}])
    index_folder(tmp_path / "b", fields={"source": "q", "target": "a"})
    assert read_all(tmp_path / "b") == [{"q": "2 + 2", "a": "4", "source": "2 + 2", "target": "4"}]


def test_json_that_is_skipped_stays_unread_between_members_of_its_sample(tmp_path: Path) -> None:
    for key in ("0", "1"):
        for suffix, text in (("a.txt", b"one"), ("json", b'{"source": "other", "id": 7}'), ("target.txt", b"two")):
            _member(f"{key}.{suffix}", text)(tmp_path / "x.tar")
    index, _ = index_folder(tmp_path, skip=["JSON", "jpg"], fields={"source": "a"})
    assert json.loads((tmp_path / "index.json").read_text())["skip"] == ["json"]
    assert read_all(tmp_path) == [{"a": "one", "source": "one", "target": "two"}] * 2
    assert index.table(0)["source"].tolist() == [3, 3]
    index_folder(tmp_path, fields={"source": "a"})
    assert "skip" not in json.loads((tmp_path / "index.json").read_text())
    assert [row["id"] for row in read_all(tmp_path)] == [7, 7]


def test_keys_that_hold_dots(tmp_path: Path) -> None:
    # webdataset reads `doc1.v2.json` as the key doc1 with the field v2.json: one sample, so it can be used.
    write(tmp_path / "a" / "x.tar", [{"__key__": f"doc{i}.v2", "json": row} for i, row in enumerate(task_rows(3))])
    index_folder(tmp_path / "a")
    assert read_all(tmp_path / "a") == task_rows(3)
    write(tmp_path / "t" / "x.tar", [{"__key__": f"doc{i}.v2", "txt": "two words"} for i in range(2)])
    index_folder(tmp_path / "t")
    assert read_all(tmp_path / "t", "prefix_lm") == [{"text": "two words"}] * 2
    # Two samples for their writer, one for every reader: refused.
    write(tmp_path / "b" / "x.tar", [{"__key__": f"en.{i}", "json": row} for i, row in enumerate(task_rows(2))])
    with pytest.raises(DataError, match=r"two samples of the key 'en' .the second at 'en.1.json'.*dots"):
        index_folder(tmp_path / "b")


def test_long_names_directories_and_meta_members(tmp_path: Path) -> None:
    key = "folder/" + "x" * 150
    tmp_path.joinpath("x.tar").touch()
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(tmp_path / "x.tar", "w", format=form) as tar:
            folder = tarfile.TarInfo("folder")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
            for name in ("__meta__/info.json", f"{key}1.json", f"{key}2.source.txt", f"{key}2.target.txt"):
                content = b'{"source": "a", "target": "b"}' if name.endswith("json") else b"text"
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        _, remarks = index_folder(tmp_path)
        assert remarks == ["1 members were skipped (--skip, __meta__ names, or files of macOS)"]
        assert read_all(tmp_path) == [{"source": "a", "target": "b"}, {"source": "text", "target": "text"}]


def test_bad_samples_are_indexed_and_counted(tmp_path: Path) -> None:
    good = {"source": "a", "target": "b"}
    write(tmp_path / "x.tar", [
        {"__key__": "0", "json": good}, {"__key__": "1", "json": b"{"}, {"__key__": "2", "json": b'"text"'},
        {"__key__": "3", "json": {"source": "a"}}, {"__key__": "4", "json": good},
    ])  # fmt: skip
    index, remarks = index_folder(tmp_path)
    assert "2 samples are bad" in remarks[0]
    assert "the sample '1' of shard x.tar is malformed JSON" in remarks[0]
    reader = SampleReader(index, "task")
    for row, (kind, words) in {1: ("malformed", "is malformed JSON"), 2: ("malformed", "is a JSON str"),
                               3: ("missing", "has no `target`")}.items():  # fmt: skip
        with pytest.raises(BadSample, match=rf"sample {row} .key '{row}'. of shard x.tar in .* {words}") as caught:
            reader.read(0, row)
        assert caught.value.kind == kind
    assert reader.read(0, 4) == good


def _member(name: str, content: bytes = b'{"source": "a", "target": "b"}', **attributes: Any) -> Callable[[Path], None]:
    def add(path: Path) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        for attribute, value in attributes.items():
            setattr(member, attribute, value)
        with tarfile.open(path, "a") as tar:
            tar.addfile(member, io.BytesIO(content))

    return add


def _edit(change: Callable[[bytes], bytes]) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(change(path.read_bytes()))


CRIMES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (_member("x.pkl", b"\x80\x04."), r"holds 'x.pkl', a pickle"),
    "torch": (_member("x.PTH", b"\x80\x04."), r"holds 'x.PTH', a pickle"),
    "pyd": (_member("x.input.pyd", b"\x80\x04."), r"holds 'x.input.pyd', a pickle"),
    "symlink": (_member("x.json", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd"), r"'x.json', a symlink"),
    "hard link": (_member("x.json", b"", type=tarfile.LNKTYPE, linkname="000000001.json"), r"'x.json', a hard link"),
    "pipe": (_member("x.json", b"", type=tarfile.FIFOTYPE), r"'x.json', no plain file"),
    "absolute": (_member("/tmp/x.json"), r"'/tmp/x.json', a path outside its folder"),
    "parent": (_member("a/../../x.json"), r"'a/../../x.json', a path outside its folder"),
    "no suffix": (_member("README"), r"'README' with no suffix"),
    "no key": (_member(".json"), r"'.json' with suffix"),
    "key again": (_member("000000001.json"), r"two samples of the key '000000001'"),
    "key side by side": (_member("000000009.json"), r"two samples of the key '000000009'"),
    "ends in a member": (_edit(lambda raw: raw[:5000]), r"not a complete tar .unexpected end of data"),
    "ends at a member": (_edit(lambda raw: raw[: raw.index(b"000000005.json")]), r"without the zeros .*truncated"),
    "ends in a header": (_edit(lambda raw: raw[: raw.index(b"000000005.json") + 100]), r"is damaged: bytes \d+ to"),
    "broken header": (_edit(lambda raw: raw.replace(b"005.json", b"005.jsoN")), r"is damaged: bytes \d+ to"),
    "tail": (_edit(lambda raw: raw[:-1] + b"x"), r"is damaged: bytes \d+ to"),
    "no tar": (_edit(lambda raw: b"no tar at all"), r"is not a complete tar"),
    "empty": (_edit(lambda raw: bytes(10240)), r"holds no sample"),
}  # fmt: skip


@pytest.mark.parametrize("name", CRIMES)
def test_what_must_not_be_in_a_tar_is_named_and_nothing_is_indexed(tmp_path: Path, name: str) -> None:
    commit, message = CRIMES[name]
    pack_rows(task_rows(10), tmp_path / "shards")
    path = tmp_path / "shards" / "shard-000000.tar"
    before = (tmp_path / "shards" / "index.json").read_bytes()
    commit(path)
    with pytest.raises(DataError, match=rf"^shard shard-000000.tar .*{message}") as caught:
        index_folder(tmp_path / "shards")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "shards" / "index.json").read_bytes() == before
    # A run that has the old index hears the same reason, whether the size gives it away or only a checksum.
    with pytest.raises(DataError, match=rf"shard-000000.tar .*{message}"):
        read_all(tmp_path / "shards")


@pytest.mark.parametrize("processes", [1, 2])
def test_an_index_stays_usable_where_the_next_one_fails(tmp_path: Path, processes: int) -> None:
    rows = [{"source": f"s{number}", "target": "t", "question": f"a longer one {number}"} for number in range(10)]
    pack_rows(rows, tmp_path / "s", samples_per_shard=5)
    files = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    before = read_all(tmp_path / "s")
    bad = tmp_path / "s" / "shard-000002.tar"
    # The first two are accepted, with other tables than before.
    for content, words in ((b"no tar", "is not a complete tar"), (files["shard-000000.tar"], "hold the same samples")):
        bad.write_bytes(content)
        with pytest.raises(DataError, match=words):
            index_folder(tmp_path / "s", fields={"source": "question"}, processes=processes)
        assert read_all(tmp_path / "s") == before
    bad.unlink()
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == files
    index_folder(tmp_path / "s", fields={"source": "question"}, processes=processes)
    assert [sample["source"] for sample in read_all(tmp_path / "s")] == [row["question"] for row in rows]
    assert {path.name for path in (tmp_path / "s").iterdir()} == files.keys()


def test_compressed_tars_and_folders_without_any_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no .tar"):
        index_folder(tmp_path)
    with pytest.raises(DataError, match=r"is no folder"):
        index_folder(tmp_path / "nowhere")
    (tmp_path / "a.tar").touch()
    (tmp_path / "b.tar.gz").touch()
    with pytest.raises(DataError, match=r"holds b.tar.gz, a compressed tar"):
        index_folder(tmp_path)


def test_indexing_what_was_packed_gives_the_same_index(tmp_path: Path) -> None:
    pack_rows(task_rows(20), tmp_path / "s", samples_per_shard=8)
    before = {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()}
    (tmp_path / "s" / "index.json").write_text(json.dumps({"version": 1, "shards": []}))
    index_folder(tmp_path / "s", processes=2)
    assert {path.name: path.read_bytes() for path in (tmp_path / "s").iterdir()} == before
