"""Encoder states on disk: what was written is read, by other processes too, and nothing else is."""

from __future__ import annotations

import logging
import os
import resource
from pathlib import Path

import pytest
import torch

from bridge_ds.errors import LaunchError
from bridge_ds.states.files import StatesFiles, key_of, used_bytes

N, D = 3, 8


def states(tokens: int, seed: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(N, tokens, D, generator=torch.Generator().manual_seed(seed)).to(dtype)


def opened(root: Path, limit: int = 1 << 20) -> StatesFiles:
    folder = root / "key"
    folder.mkdir(parents=True, exist_ok=True)
    files = StatesFiles(folder, limit)
    files.refresh()
    return files


def read(files: StatesFiles, key: str, tokens: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor | None:
    batch = torch.zeros(N, 2, tokens + 3, D, dtype=dtype)  # a row of a padded batch
    there = files.read(key, batch[:, 1, :tokens])
    assert not batch[:, 0].any() and not batch[:, :, tokens:].any()
    assert there or not batch.any()
    return batch[:, 1, :tokens] if there else None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_what_is_written_is_read_by_all(tmp_path: Path, dtype: torch.dtype) -> None:
    one, other = opened(tmp_path), opened(tmp_path)
    first, second, third = (states(tokens, tokens, dtype) for tokens in (4, 7, 5))
    assert one.add([("a", first), ("b", second)]) and other.add([("c", third)])
    assert "c" not in one and other.count == 1
    for files in (one, other, opened(tmp_path)):
        files.refresh()
        for key, wanted in (("a", first), ("b", second), ("c", third)):
            assert torch.equal(read(files, key, wanted.shape[1], dtype), wanted)
        assert read(files, "d", 4, dtype) is None
    # The first one of a key stays.
    assert one.add([("a", second), ("c", first)])
    assert used_bytes(tmp_path) == sum(each.nbytes for each in (first, second, third))
    one.close()
    assert torch.equal(read(one, "a", 4, dtype), first)


def test_few_files_are_open_and_a_process_without_more_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bridge_ds.states.files._MOST_OPEN", 3)
    wanted = {str(number): states(4, number) for number in range(5)}
    for key, each in wanted.items():  # a file of its own each, as after restarts
        opened(tmp_path).add([(key, each)])
    files = opened(tmp_path)
    files.refresh()
    for _ in range(2):
        for key, each in wanted.items():
            assert torch.equal(read(files, key, 4, each.dtype), each)
            assert len(files._open) <= 3
    files.close()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (os.open(os.devnull, os.O_RDONLY), hard))
    try:
        with pytest.raises(LaunchError, match=r"cannot be read .Too many open files.; .* raise the limit"):
            read(files, "0", 4, wanted["0"].dtype)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert torch.equal(read(files, "0", 4, wanted["0"].dtype), wanted["0"])  # not forgotten


def test_a_flipped_byte_anywhere_is_found(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "bridge_ds")
    wanted = states(2, 0)
    opened(tmp_path).add([("a", wanted), ("b", wanted)])
    blocks, index = (next((tmp_path / "key").glob(f"*.{kind}")) for kind in ("states", "index"))
    for path in (blocks, index):
        good = path.read_bytes()
        half = len(good) // 2
        for place in range(half):  # of a's block, and of its line
            path.write_bytes(good[:place] + bytes([good[place] ^ 32]) + good[place + 1 :])
            files = opened(tmp_path)
            found = read(files, "a", 2)
            # A line may still mean the same: white space became another kind of it.
            assert found is None or (path == index and torch.equal(found, wanted)), place
            assert path == index or torch.equal(read(files, "b", 2), wanted)
            if found is None:
                assert files.add([("a", wanted)])  # is computed and written again, and found from then on
                assert torch.equal(read(files, "a", 2), wanted)
                again = opened(tmp_path)
                assert torch.equal(read(again, "a", 2), wanted)
                for more in (tmp_path / "key").iterdir():
                    if more.stem != blocks.stem:
                        more.unlink()
            files.close()
        path.write_bytes(good)
    assert "is damaged; such states are computed again" in caplog.text


def test_a_killed_writer_leaves_nothing_that_is_found(tmp_path: Path) -> None:
    files = opened(tmp_path)
    files.add([("a", states(2, 0)), ("b", states(3, 1))])
    blocks, index = (next((tmp_path / "key").glob(f"*.{kind}")) for kind in ("states", "index"))
    lines = index.read_bytes()
    index.write_bytes(lines[:-5])
    assert opened(tmp_path).count == 1
    reader = opened(tmp_path)
    index.write_bytes(lines)  # the rest of the line came
    reader.refresh()
    assert reader.count == 2
    blocks.write_bytes(blocks.read_bytes()[:-1])
    assert read(reader, "b", 3) is None and read(reader, "a", 2) is not None
    blocks.unlink()
    index.unlink()
    gone = opened(tmp_path)
    assert gone.count == 0 and read(gone, "a", 2) is None


def test_the_limit_holds_for_all_keys_together(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "bridge_ds")
    size = states(2, 0).nbytes
    other = StatesFiles(tmp_path / "other", 1 << 20)
    other.folder.mkdir()
    assert other.add([("a", states(2, 0))])
    files = opened(tmp_path, 3 * size)
    assert files.add([("a", states(2, 1))])
    assert not files.add([("b", states(2, 2)), ("c", states(2, 3))])  # all or none
    assert files.count == 1 and used_bytes(tmp_path) == 2 * size
    assert "data.states_cache_gib" in files.full and "the rest is computed" in caplog.text
    assert not files.add([("b", states(2, 2))])  # for good: which texts are kept must not depend on their lengths


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "bridge_ds")
    files = opened(tmp_path)
    files.folder.rmdir()
    for key in "ab":
        assert not files.add([(key, states(2, 0))])
    assert [record.getMessage() for record in caplog.records] == [
        f"note: no more encoder states are kept in {files.folder}, as it cannot be written (No such file or directory);"
        " the rest is computed."
    ]


def test_a_key_is_of_the_ids_alone() -> None:
    padded = torch.tensor([[5, 6, 1, 0], [5, 6, 1, 9]])
    assert key_of(padded[0, :3]) == key_of(padded[1, :3]) == key_of(torch.tensor([5, 6, 1]))
    assert len({key_of(torch.tensor(ids)) for ids in ([5, 6], [6, 5], [5], [5, 6, 0], [5 + 256, 6])}) == 5
