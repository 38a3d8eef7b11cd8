"""Index, tables, tars and caches that no bridge_ds wrote: refused in one sentence, before anything is allocated."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_ds.data.loading.corpus import Corpus, open_corpus
from bridge_ds.data.loading.loader import make_loader
from bridge_ds.data.packing.index_folder import index_folder
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import load_index
from bridge_ds.data.shards.samples import parse
from bridge_ds.data.shards.store import NodeCache, open_store
from bridge_ds.errors import BridgeError, ConfigError, DataError, LaunchError
from bridge_ds.world import World
from tests.data.conftest import make_config, task_rows
from tests.samples import read_all


def _set(*path: Any) -> Callable[[dict[str, Any]], object]:
    """Sets the place at all but the last of `path` to the last."""
    *above, key, value = path

    def change(content: Any) -> None:
        for step in above:
            content = content[step]
        content[key] = value

    return change


def _again(content: dict[str, Any]) -> None:
    content["shards"].append(content["shards"][1])
    content["samples"] += 16


INDICES: dict[str, tuple[Callable[[Any], object], str]] = {
    "infinity": (_set("shards", 0, "samples", float("inf")), r"holds Infinity; expected a finite number"),
    "NaN": (_set("shards", 0, "bytes", float("nan")), r"holds NaN; expected a finite number"),
    "float": (_set("shards", 0, "samples", 16.0), r"has samples 16.0; expected a whole number"),
    "text": (_set("shards", 0, "samples", "16"), r"has samples '16'; expected a whole number"),
    "bool": (_set("shards", 0, "tail_crc32", True), r"has tail_crc32 True; expected a whole number"),
    "negative": (_set("shards", 0, "bytes", -1), r"has bytes -1; expected 0 to"),
    "huge": (_set("shards", 0, "samples", 10**18), r"10{18} samples in 20480 bytes.*which cannot be"),
    "huge table": (_set("shards", 0, "table_bytes", 10**18), r"a table of 10{18} bytes.*which cannot be"),
    "sum": (_set("samples", 51), r"says 51 samples and lists shards of 50 together"),
    "version": (_set("version", True), r"has version True; this bridge_ds reads version 2"),
    "NUL": (_set("shards", 0, "name", "a\0.tar"), r"shard name 'a\\x00.tar' is no plain file name"),
    "line end": (_set("shards", 0, "name", "a\n.tar"), r"shard name 'a\\n.tar' is no plain file name"),
    "absolute": (_set("shards", 0, "name", "/etc/x.tar"), r"shard name '/etc/x.tar' is no plain"),
    "URL": (_set("shards", 0, "name", "https://h/x.tar"), r"shard name 'https://h/x.tar' is no plain"),
    "pipe": (_set("shards", 0, "name", "pipe:ls .tar"), r"shard name 'pipe:ls .tar' is no plain"),
    "no tar": (_set("shards", 0, "name", "index.json"), r"shard name 'index.json' is no plain"),
    "sha256": (_set("shards", 0, "sha256", "A" * 64), r"has no sha256 of 64 hex digits"),
    "list": (lambda c: c.update(shards={s["name"]: s for s in c["shards"]}), r"expected a list of `shards`"),
    "shard": (_set("shards", 1, ["shard-000001.tar", 16]), r"a shard is \[.*, 16\]; expected an object"),
    "unknown key": (_set("shards", 0, "weight", 2), r"a shard has the unknown key 'weight'"),
    "old layout": (lambda c: c["shards"][0].pop("buckets"), r"a shard has no 'buckets'"),
    "fields": (_set("fields", {"source": 3}), r"`fields` is .'source': 3.; expected texts"),
    "twice": (_again, r"the shard shard-000001.tar is listed twice"),
    "swapped": (lambda c: _set("shards", 0, "layout", "members")(c), r"does not describe .*multiples of 512"),
    "characters": (_set("shards", 0, "characters", 7), r"does not describe .*other than the 7 characters"),
}  # fmt: skip


@pytest.mark.parametrize("name", INDICES)
def test_an_index_that_cannot_be_is_refused(own_shards: Path, name: str) -> None:
    change, message = INDICES[name]
    path = own_shards / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message) as caught:
        read_all(load_index(own_shards))
    assert "\n" not in str(caught.value)


def test_a_copy_of_a_shard_is_refused_in_index_and_folder_and_mixture(own_shards: Path, tmp_path: Path) -> None:
    before = (own_shards / "index.json").read_bytes()
    shutil.copy(own_shards / "shard-000001.tar", own_shards / "z.tar")
    with pytest.raises(DataError, match=r"shards shard-000001.tar and z.tar hold the same samples.*data.mixture"):
        index_folder(own_shards)
    assert (own_shards / "index.json").read_bytes() == before
    content = json.loads(before)
    content["shards"].append(content["shards"][1] | {"name": "z.tar"})
    content["samples"] += 16
    shutil.copy(own_shards / "shard-000001.samples.npy", own_shards / "z.samples.npy")
    (own_shards / "index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"shards shard-000001.tar and z.tar hold the same samples"):
        load_index(own_shards)

    for name in ("one", "two"):
        pack_rows(task_rows(5), tmp_path / name)
    config = make_config("", mixture=(f"{tmp_path / 'one'}=1", f"{tmp_path / 'two'}=2"))
    with pytest.raises(ConfigError, match=r"data.mixture has .*one and .*two, copies of one data set"):
        open_corpus(config.data, 0, World())


def _reseal(folder: Path, raw: bytes) -> None:
    (folder / "shard-000000.samples.npy").write_bytes(raw)
    content = json.loads((folder / "index.json").read_text())
    content["shards"][0] |= {"table_bytes": len(raw), "table_sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "index.json").write_text(json.dumps(content))


def _column(name: str, row: int, value: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(table: np.ndarray) -> np.ndarray:
        table = table.copy()
        table[name][row] = value
        return table

    return change


TABLES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], str]] = {
    "wrapped": (_column("offset", 3, 2**64 - 512), r"an offset beyond the shard"),
    "beyond": (_column("length", 15, 2**32 - 1), r"samples that overlap or reach beyond the shard"),
    "overlap": (_column("offset", 3, 512), r"samples that overlap"),
    "order": (lambda table: table[::-1].copy(), r"samples that overlap"),
    "no block": (_column("offset", 15, 16001), r"no multiples of 512"),
    "long text": (_column("source", 2, 2**32 - 1), r"a text with more characters than its sample has bytes"),
    "ids": (_column("id", 2, 5), r"other buckets than those of the index"),
    "other dtype": (lambda table: table.view(">u8").reshape(16, 5).copy(), r"its columns or its number of rows"),
    "Fortran order": (lambda table: np.asfortranarray(table.view("<u8").reshape(16, 5)), r"its columns or its"),
    "shape": (lambda table: table.reshape(4, 4), r"its columns or its number of rows"),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_that_cannot_be_is_refused(own_shards: Path, name: str) -> None:
    change, message = TABLES[name]
    file = io.BytesIO()
    np.save(file, change(np.load(own_shards / "shard-000000.samples.npy")))
    _reseal(own_shards, file.getvalue())
    with pytest.raises(DataError, match=rf"table .* does not describe the 16 samples of shard-000000.tar .*{message}"):
        load_index(own_shards).table(0)


@pytest.mark.parametrize("shape", ["(10000000000000000,)", "(-16,)", "(" * 60, "16", "(16, 10000)"])
def test_a_table_header_that_lies_allocates_nothing(own_shards: Path, shape: str) -> None:
    raw = (own_shards / "shard-000000.samples.npy").read_bytes()
    header = raw[10:128].decode()
    text = header.replace("[('offset', '<u8'),", "[('offset','<u8'),").replace("(16,)", shape)
    _reseal(own_shards, raw[:8] + len(text).to_bytes(2, "little") + text.encode() + raw[128:])
    with pytest.raises(DataError, match=r"does not describe the 16 samples"):
        load_index(own_shards).table(0)
    _reseal(own_shards, b"")
    with pytest.raises(DataError, match=r"a table of 0 bytes"):
        load_index(own_shards)


def _block(name: str, kind: bytes, size: int, content: bytes = b"") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def _pax(key: str, value: str) -> bytes:
    record = f" {key}={value}\n"
    record = f"{len(record) + 2}{record}"
    assert len(record) in range(10, 100)
    return _block("x", tarfile.XHDTYPE, len(record), record.encode("utf-8", "surrogateescape"))


ONE = _block("one.json", tarfile.REGTYPE, 30, b'{"source": "a", "target": "b"}')
TARS: dict[str, tuple[bytes, str]] = {
    "sparse": (_block("x.json", tarfile.GNUTYPE_SPARSE, 0), r"holds 'x.json', a sparse file"),
    "PAX sparse": (_pax("GNU.sparse.map", "0,1,9") + ONE, r"holds 'one.json', a sparse file"),
    "PAX sparse 1.0": (_pax("GNU.sparse.major", "1") + ONE, r"holds 'one.json', a sparse file"),
    "PAX of 1 TiB": (_block("x", tarfile.XHDTYPE, 1 << 40), r"extended header at byte \d+ has 1099511627776 bytes"),
    "long name of 1 TiB": (_block("x", tarfile.GNUTYPE_LONGNAME, 1 << 40), r"extended header at byte \d+ has"),
    "long names": (_block("x", tarfile.GNUTYPE_LONGNAME, 2, b"a\0") * 3000 + ONE, r"two extended headers of one kind"),
    "PAX headers": (_pax("comment", "x") * 3000 + ONE, r"two extended headers of one kind"),
    "5 KB name": (_block("x", tarfile.GNUTYPE_LONGNAME, 5000, b"y" * 5000) + ONE, r"the name .* has 5000 bytes"),
    "NUL in a name": (_pax("path", "a\0b.json") + ONE, r"the name .* has a NUL in it"),
    "negative PAX size": (_pax("size", "-99999") + ONE, r"'one.json' at byte \d+ has the size '-99999'"),
    "huge PAX size": (_pax("size", "9" * 30) + ONE, r"has the size '9{30}'"),
    "PAX size beyond": (_pax("size", "99999999") + ONE, r"not a complete tar .unexpected end of data"),
    "no member": (_pax("path", "x.json"), r"an extended header without its member"),
    "record": (_block("x", tarfile.XHDTYPE, 11, b"99 path=xx\n") + ONE, r"PAX header at byte \d+ has a malformed"),
    "negative size": (_block("x.json", tarfile.REGTYPE, -512), r"'x.json' at byte \d+ has the size '-512'"),
    "size beyond": (_block("x.json", tarfile.REGTYPE, 1 << 62), r"has the size|not a complete tar"),
    "device": (_block("x.json", tarfile.BLKTYPE, 0), r"holds 'x.json', no plain file"),
    "two tars": (bytes(1024) + ONE, r"is damaged: bytes \d+ to .*two tars in one file"),
}  # fmt: skip


@pytest.mark.parametrize("name", TARS)
def test_a_tar_that_lies_is_refused_at_once(tmp_path: Path, name: str) -> None:
    raw, message = TARS[name]
    first = _block("zero.json", tarfile.REGTYPE, 30, b'{"source": "c", "target": "d"}')
    (tmp_path / "x.tar").write_bytes(first + raw + bytes(1024))
    with pytest.raises(DataError, match=rf"^shard x.tar .*{message}") as caught:
        index_folder(tmp_path)
    assert len(str(caught.value)) < 400
    assert not (tmp_path / "index.json").exists()


def test_names_that_are_not_utf8_and_shared_pax_headers_are_read(tmp_path: Path) -> None:
    comment = _block("g", tarfile.XGLTYPE, 13, b"13 comment=x\n")
    long = _block("x", tarfile.GNUTYPE_LONGNAME, 8, b"\xe9\xff.json\0")
    (tmp_path / "x.tar").write_bytes(comment + ONE + comment + long + ONE + bytes(1024))
    index, remarks = index_folder(tmp_path)
    assert (index.samples, remarks) == (2, [])
    assert read_all(index) == [{"source": "a", "target": "b"}] * 2
    (tmp_path / "a:b.tar").write_bytes((tmp_path / "x.tar").read_bytes())
    with pytest.raises(DataError, match=r"shard name 'a:b.tar' is no plain file name .*rename it"):
        index_folder(tmp_path)


def test_swapped_fields_are_swapped() -> None:
    swap = {"source": "target", "target": "source"}
    assert parse(b'{"source": "a", "target": "b"}', "json", swap) == {"source": "b", "target": "a"}


def test_a_shard_that_is_a_pipe_does_not_hang(own_shards: Path) -> None:
    (own_shards / "shard-000001.tar").unlink()
    os.mkfifo(own_shards / "shard-000001.tar")
    with pytest.raises(DataError, match=r"shard-000001.tar in .* is no plain file"):
        load_index(own_shards)


def test_a_damaged_cache_is_repaired_or_named(own_shards: Path, tmp_path: Path) -> None:
    def staged() -> list[dict[str, Any]]:
        return read_all(load_index(own_shards, NodeCache(str(own_shards), tmp_path / "disk", None)))

    assert staged() == task_rows(50)
    (tar,) = (tmp_path / "disk").rglob("*-shard-000001.tar")
    os.truncate(tar, 700)
    assert staged() == task_rows(50), "a file of another size is fetched again"
    raw = bytearray(tar.read_bytes())
    raw[600] ^= 1
    tar.write_bytes(raw)
    with pytest.raises(DataError, match=rf"has another checksum .*; remove {tar}, and it is fetched again"):
        staged()
    tar.unlink()
    tar.mkdir()
    with pytest.raises(DataError, match=r"the folder .*disk.* cannot be used .*choose another with data.cache_dir"):
        staged()
    (own_shards / "shard-000002.tar").unlink()
    with pytest.raises(DataError, match=r"shard-000002.tar cannot be fetched .FileNotFoundError"):
        read_all(load_index(own_shards, NodeCache(str(own_shards), tmp_path / "other", None)))


@pytest.mark.parametrize("url", ["https://", "https:///x", "http://[x/x", "http://h:port/x"])
def test_a_url_without_a_host_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a URL without a host; expected https?://HOST/FOLDER"):
        open_store(url, cache_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("workers", "error", "message"),
    [
        (1, OSError(5, "Input/output error", "x.tar"), r"^x.tar cannot be used .Input/output error"),
        (0, MemoryError(), r"^the memory ran out while the batches of step 1 were made"),
    ],
)
def test_errors_of_the_system_in_a_worker_are_sentences(
    shards: Path, tokenizers, monkeypatch: pytest.MonkeyPatch, workers: int, error: Exception, message: str
) -> None:
    def fails(*_: object) -> None:
        raise error

    loader = make_loader(make_config(shards, workers=workers), World(), tokenizers)
    monkeypatch.setattr(Corpus, "read", fails)  # a forked worker inherits it
    with pytest.raises(BridgeError, match=message) as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)


def test_workers_that_cannot_start_are_named(shards: Path, tokenizers) -> None:
    loader = make_loader(make_config(shards, workers=4), World(), tokenizers)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 3, limits[1]))
        with pytest.raises(LaunchError, match=r"4 data workers of this rank cannot be started .*lower data.workers"):
            iter(loader)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
