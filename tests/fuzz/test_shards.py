"""Mutations of index, tables and tars: the samples that were packed, or one sentence; within 10 s and 1 GiB.

Half of the cases reseal the index (sizes and hashes of the changed file), as a program would that writes such files, so
that the checks behind the hashes are met too. `BRIDGE_DS_FUZZ=20` runs 20 times as many.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import io
import json
import os
import random
import resource
import signal
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.loading.corpus import Corpus, CorpusRows, open_corpus
from bridge_ds.data.packing.index_folder import index_folder
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.samples import FIELDS, BadSample
from bridge_ds.data.shards.table import TABLE_DTYPE, table_name
from bridge_ds.data.shards.verify import verify
from bridge_ds.errors import BridgeError, DataError
from bridge_ds.world import World
from tests.data.conftest import task_rows

SEED = int(os.environ.get("BRIDGE_DS_FUZZ_SEED", "17"))
CASES = int(500 * float(os.environ.get("BRIDGE_DS_FUZZ", "1")))
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 0.5, 16.0, 1e18, 10**18, 2**31, 2**32, 2**63, 2**64, -(2**63), 10**400, float("nan"),
    float("inf"), float("-inf"), "", "0", "16", "\0", "a\0.tar", "\ud83d", "../x.tar", "/etc/passwd", "pipe:ls",
    "https://h/x.tar", "x" * 300, "..", ".", "a\nb.tar", "shard-000001.tar", "index.json", "json", "members", [], {},
    [[]], [1] * 100, [0.16] * 100, ["1"] * 100, {"a": 1}, {"source": "target"}, {"source": 3}, {"source": "en"},
]  # fmt: skip


class TooSlow(BaseException):
    """Not an Exception: nothing that is tested may catch it."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[tuple[str, int], dict[str, Any]]]:
    """Two packed shards, and foreign ones with PAX headers, long names, folders and several members a sample."""
    folder = tmp_path_factory.mktemp("fuzz") / "shards"
    pack_rows(task_rows(24), folder, samples_per_shard=12)
    for name, form in (("x-pax.tar", tarfile.PAX_FORMAT), ("y-gnu.tar", tarfile.GNU_FORMAT)):
        with tarfile.open(folder / name, "w", format=form) as tar:
            for row, sample in enumerate(task_rows(5)):
                key = f"{name}/\u00e9{row}" + "k" * 120 * (row % 2)
                for end, text in (("source.txt", sample["source"]), ("target.txt", sample["target"])):
                    member = tarfile.TarInfo(f"{key}.{end}")
                    member.size = len(text)
                    tar.addfile(member, io.BytesIO(text.encode()))
    assert not index_folder(folder)[1]
    return folder, dict(_samples(open_corpus(_data(folder), 0, World())))


def _data(folder: Path) -> DataConfig:
    return DataConfig(shards=str(folder), shuffle_shards=2, validation_percent=20)


def _samples(corpus: Corpus) -> Iterator[tuple[tuple[str, int], dict[str, Any]]]:
    held_out = corpus.held_out()
    for part in [corpus, *([held_out] if held_out else [])]:
        rows: CorpusRows = part.once()
        assert (part.lengths(rows) >= 0).all()
        part.rows(np.arange(40))
        for which, (shard, row) in enumerate(zip(rows.shards.tolist(), rows.shard_rows.tolist(), strict=True)):
            yield (part.sets[0].shards[shard].name, row), part.read(rows, which)


def _is_right(folder: Path, wanted: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Every sample of the shards that the index lists, as it was packed, once."""
    corpus = open_corpus(_data(folder), 0, World())
    (index,) = corpus.sets
    found = list(_samples(corpus))
    assert len(dict(found)) == len(found) == index.samples
    assert {name for name, _ in dict(found)} == {shard.name for shard in index.shards}
    for place, sample in found:
        kept = wanted[place] | {
            name: wanted[place][there] for name, there in index.fields.items() if there in wanted[place]
        }
        assert {name: sample[name] for name in FIELDS if name in sample} == kept, (place, sample)
    assert list(verify(index)) == [shard.name for shard in index.shards]


def _is_honest(folder: Path) -> None:
    """A tar that was changed and indexed again: samples, or bad samples that are named, and an index that is true."""
    index, _ = index_folder(folder)
    assert list(verify(index)) == [shard.name for shard in index.shards]
    from bridge_ds.data.shards.reader import SampleReader

    reader = SampleReader(index, "task")
    for shard, size in enumerate(index.sizes.tolist()):
        for row in range(size):
            with contextlib.suppress(BadSample):
                assert reader.read(shard, row)["source"]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield (*path, key)
            yield from _places(value[key], (*path, key))


def _mutate_json(draw: random.Random, content: Any) -> str:
    """Another index: a value of another type or size, keys or shards swapped, lost, doubled or renamed."""
    for _ in range(draw.choice([1, 1, 1, 2, 4])):
        places = [place for place in _places(content) if place[-1] != "buckets" or draw.random() < 0.5]
        places = [p for p in places if "buckets" not in p[:-1] or draw.random() < 0.05] or places
        *above, last = draw.choice(places)
        at = content
        for key in above:
            at = at[key]
        kind = draw.randrange(7)
        if kind == 0:
            del at[last]
        elif kind == 1 and isinstance(at, list):
            at.insert(draw.randrange(len(at) + 1), json.loads(json.dumps(at[last])))
        elif kind == 2 and isinstance(at, dict):
            at[draw.choice(["", "x", "samples", last.upper()])] = at.pop(last)
        elif kind == 3:
            other = draw.choice(list(at) if isinstance(at, dict) else range(len(at)))
            at[last], at[other] = at[other], at[last]
        elif kind == 4 and type(at[last]) is int:
            at[last] += draw.choice([-1, 1, 512, 2**32, -(2**40), 10**18])
        elif kind == 5 and isinstance(at[last], dict | list):
            value = at[last]
            at[last] = list(value.items()) if isinstance(value, dict) else dict(enumerate(value))
        else:
            at[last] = copy.deepcopy(draw.choice(ODD))
        if not isinstance(content, dict) or not list(_places(content)):
            break
    return json.dumps(content)


def _mutate_bytes(draw: random.Random, raw: bytes) -> bytes:
    """Flipped bits, lost, doubled, zeroed or moved ranges, cut or grown."""
    raw, size = bytearray(raw), len(raw)
    for _ in range(draw.choice([1, 1, 2, 5])):
        at, other, length = draw.randrange(size), draw.randrange(size), draw.choice([1, 8, 40, 512, 1024])
        kind = draw.randrange(7)
        if kind == 0:
            raw[at % max(1, len(raw)) : at + 1] = bytes([(raw[at : at + 1] or b"\0")[0] ^ (1 << draw.randrange(8))])
        elif kind == 1:
            del raw[at:]
        elif kind == 2:
            del raw[at : at + length]
        elif kind == 3:
            raw[at : at + length] = bytes(length)
        elif kind == 4:
            raw[at : at + length] = raw[other : other + length]
        elif kind == 5:
            raw[at:at] = raw[other : other + length]
        else:
            raw += draw.choice([bytes(512), bytes(raw), b"x"])
    return bytes(raw)


def _mutate_table(draw: random.Random, raw: bytes) -> bytes:
    table = np.load(io.BytesIO(raw)).copy()
    kind = draw.randrange(8)
    if kind < 4:
        for _ in range(draw.choice([1, 2])):
            name = draw.choice(TABLE_DTYPE.names)
            most = 2 ** (8 * TABLE_DTYPE[name].itemsize) - 1
            now = int(table[name][row := draw.randrange(len(table))])
            values = [0, 1, 512, most, most - 511, most // 2, now + 512, now - 512, now + 1, int(table[name][0])]
            table[name][row] = draw.choice(values) % (most + 1)
        if draw.random() < 0.3:
            table = table[draw.sample(range(len(table)), len(table))]
    elif kind == 4:
        return _with_header(draw, raw)
    elif kind == 5:
        table = draw.choice([
            table[:-1], table[:0], table.reshape(-1, 1), table["offset"], table.astype(object), np.array(3),
            np.repeat(table, 2), table.astype([(name, "<f8") for name in TABLE_DTYPE.names]), table.newbyteorder()
            if hasattr(table, "newbyteorder") else table.view(TABLE_DTYPE.newbyteorder()),
            np.asfortranarray(np.ones((4, 5))),
        ])  # fmt: skip
    else:
        return _mutate_bytes(draw, raw)
    file = io.BytesIO()
    if draw.random() < 0.1:
        np.savez(file, table)
    else:
        np.save(file, table, allow_pickle=True)
    return file.getvalue()


def _with_header(draw: random.Random, raw: bytes) -> bytes:
    text = raw[10:128].decode().strip()
    for _ in range(draw.choice([1, 1, 3])):
        old, new = draw.choice([
            ("(12,)", "(1000000000000000000,)"), ("(12,)", "(-12,)"), ("(12,)", "(12"), ("(12,)", "12"), ("<u8", "O"),
            ("(12,)", f"({10**300},)"), ("(12,)", "(3, 4)"), ("False", "True"), ("<u4", "<f4"), ("'descr'", "'desc'"),
            ("{", "{" * 90), ("(", "(" * 3000), ("[(", "[()," * 50 + "("), ("'<u8'", "('<u8', (10000000,))"),
            (",", "\n"),
            ("'offset'", "'offset', 'id'"), ("(12,)", "(12,)" * 4000), ("(12,)", "(12, 0)"), ("'", ""), ("<u8", "\0"),
        ])  # fmt: skip
        text = text.replace(old, new, draw.choice([1, -1]))
    header = (text + "\n").encode()[:65000]
    version = draw.choice([b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"])
    size = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    if draw.random() < 0.1:
        size = b"\xff" * len(size)
    return b"\x93NUMPY" + version + size + header + raw[128:]


def _mutate_tar(draw: random.Random, raw: bytes) -> bytes:
    """Headers with other fields and right checksums, and members that no data set has."""
    kind = draw.randrange(6)
    if kind == 0:
        return _mutate_bytes(draw, raw)
    starts = [at for at in range(0, len(raw), 512) if raw[at + 257 : at + 262] == b"ustar"]
    if kind in (1, 2):
        raw, at = bytearray(raw), draw.choice(starts)
        field, length = draw.choice(
            [(0, 100), (124, 12), (124, 12), (156, 1), (156, 1), (157, 100), (345, 155), (482, 13)]
        )
        values = [
            b"\0" * length, b"\xff" * length, b"\x80" + b"\xff" * 11, b"\x80" + bytes(7) + b"\1" + bytes(3),
            b"-0000001",
            b"77777777777", b"/etc/passwd", b"../../x.json", b"1", b"2", b"3", b"5", b"6", b"S", b"L", b"K", b"x", b"g",
            b"D", b"M", b"V", b"7", b"\0", raw[draw.choice(starts) :][:length],
        ]  # fmt: skip
        raw[at + field : at + field + length] = draw.choice(values)[:length].ljust(length, b"\0")
        return bytes(_summed(raw, at))
    at = draw.choice(starts)
    text = draw.choice([b"", b"x" * 600, b"\0", b"a\0.json", b"b.json", b"\xed\xa0\xbd.json", b"y" * 5000 + b".json"])
    records = b"".join(
        _record(draw.choice([b"path", b"size", b"linkpath", b"mtime", b"hdrcharset", b"GNU.sparse.major",
                             b"GNU.sparse.minor", b"GNU.sparse.size", b"GNU.sparse.map", b"\xff", b"path\0"]),
                draw.choice([b"-512", b"0", b"1", b"nan", b"inf", b"1e9", b"9" * 30, b"0,1,2", b"BINARY", text]))
        for _ in range(draw.choice([1, 1, 2, 3]))
    )  # fmt: skip
    if draw.random() < 0.2:
        records = records[: draw.randrange(len(records) + 1)] or b"99999999 path=x\n"
    typed = draw.choice([b"L", b"K", b"x", b"g", b"X", b"S"])
    body = records if typed in b"xgX" else text
    size = draw.choice([len(body)] * 6 + [2**33 - 1, 1 << 40, 0])
    made = _header(draw.choice([b"././@LongLink", b"n.json"]), typed, size) + body + bytes(-len(body) % 512)
    return raw[:at] + made * draw.choice([1, 1, 1, 2, 3000]) + raw[at:]


def _record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    return b"%d %s=%s\n" % (next(n for n in range(size, size + 9) if len(str(n)) + size == n), key, value)


def _header(name: bytes, kind: bytes, size: int) -> bytes:
    member = tarfile.TarInfo(name.decode())
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


def _summed(raw: bytearray, at: int) -> bytearray:
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    return raw


@contextlib.contextmanager
def _limits(seconds: float = 10, memory: int = 1 << 30) -> Iterator[None]:
    def late(*_: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, late)
    limit = resource.getrlimit(resource.RLIMIT_AS)
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + memory, limit[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        resource.setrlimit(resource.RLIMIT_AS, limit)
        signal.signal(signal.SIGALRM, before)


def _case(draw: random.Random, original: Path, folder: Path, wanted: dict[tuple[str, int], Any]) -> Callable[[], None]:
    """Write one mutated data set; returns the check."""
    for path in original.iterdir():
        os.link(path, folder / path.name)
    index = json.loads((original / "index.json").read_text())
    shard = draw.choice(index["shards"])
    what = draw.choice(["index", "index bytes", "table", "table", "tar", "tar", "indexed tar"])
    name = {"i": "index.json", "t": table_name(shard["name"])}.get(what[0], "") if "tar" not in what else shard["name"]
    raw = (original / name).read_bytes()
    if what == "index":
        # surrogatepass would be needed for a lone surrogate: json.dumps escapes it.
        new = _mutate_json(draw, index).encode()
    else:
        mutate = {"index bytes": _mutate_bytes, "table": _mutate_table}.get(what, _mutate_tar)
        new = mutate(draw, raw)
    (folder / name).unlink()
    (folder / name).write_bytes(new)
    if what in ("table", "tar") and draw.random() < 0.7:
        prefix = "table_" if what == "table" else ""
        shard |= {f"{prefix}bytes": len(new), f"{prefix}sha256": hashlib.sha256(new).hexdigest()}
        (folder / "index.json").unlink()
        (folder / "index.json").write_text(json.dumps(index))
    return (lambda: _is_honest(folder)) if what == "indexed tar" else (lambda: _is_right(folder, wanted))


def test_mutations_give_the_samples_or_one_sentence(
    originals: tuple[Path, dict[tuple[str, int], dict[str, Any]]], tmp_path: Path
) -> None:
    original, wanted = originals
    refused, faults = 0, []
    for number in range(CASES):
        draw = random.Random(f"{SEED} {number}")
        folder = tmp_path / str(number)
        folder.mkdir()
        check = _case(draw, original, folder, wanted)
        try:
            with _limits():
                check()
        except BridgeError as error:
            refused += 1
            if not isinstance(error, DataError) or "\n" in str(error) or len(str(error)) > 2500:
                faults.append((number, error))
        except (Exception, TooSlow) as error:
            faults.append((number, error))
        if not any(at == number for at, _ in faults):
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
    message = "\n".join(f"case {number}: {type(error).__name__}: {error}"[:600] for number, error in faults[:20])
    assert not faults, f"BRIDGE_DS_FUZZ_SEED={SEED}, {len(faults)} of {CASES} cases in {tmp_path}:\n{message}"
    assert refused > CASES // 2
