"""Identity of base models and tokenizers: any one change is seen, nothing else is, and it costs one reading."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_ds.data.text.spiece import with_spiece
from bridge_ds.errors import ConfigError
from bridge_ds.frozen import digest
from bridge_ds.frozen.identity import (
    model_identity,
    published_config,
    tokenizer_identity,
    vocabulary_identity,
    weak_model_identity,
)
from bridge_ds.frozen.verify import loaded_files, weight_files
from bridge_ds.testbed import ENCODER_PATH, LLM_PATH
from tests import tiny


def read_so_far() -> int:
    """Bytes that this process has read, of whichever file."""
    return int(Path("/proc/self/io").read_text().split()[1])


def identity(folder: Path) -> str:
    return model_identity(published_config(str(folder)), str(folder))


def sharded(folder: Path) -> dict[str, torch.Tensor]:
    """Split the model's file in two with their index; returns its tensors."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    where = {name: f"model-{1 + number % 2:05d}-of-00002.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(where.values()):
        save_file({name: tensors[name] for name in where if where[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return tensors


def test_any_one_changed_tensor_is_another_model(tmp_path: Path) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    tensors = load_file(folder / "model.safetensors")
    seen = {identity(folder)}
    for name in tensors:
        changed = {**tensors, name: tensors[name].clone()}
        changed[name].view(-1)[-1] += 1
        save_file(changed, folder / "model.safetensors", metadata={"format": "pt"})
        seen.add(identity(folder))
    assert len(seen) == 1 + len(tensors)


@pytest.mark.parametrize("kind", ["whole", "shards", "bin", "bin shards"])
def test_of_the_files_that_lie_there_only_those_that_are_loaded_count(kind: str, tmp_path: Path) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    tensors = load_file(folder / "model.safetensors")
    if "shards" in kind:
        sharded(folder)
    if "bin" in kind:
        for file in sorted(folder.glob("*.safetensors")):
            name = file.name.replace("model", "pytorch_model").replace("safetensors", "bin")
            torch.save(load_file(file), folder / name)
            file.unlink()
    if kind == "bin shards":
        index = (folder / "model.safetensors.index.json").read_text()
        (folder / "model.safetensors.index.json").unlink()
        index = index.replace("model-", "pytorch_model-").replace("safetensors", "bin")
        (folder / "pytorch_model.bin.index.json").write_text(index)
    before, files = identity(folder), loaded_files(str(folder))
    assert len(files) == (2 if "shards" in kind else 1)
    for name in ("consolidated.safetensors", "model.fp16.safetensors", "z.safetensors"):
        save_file({"a": torch.zeros(2)}, folder / name)
    if "bin" not in kind:
        torch.save({}, folder / "pytorch_model.bin")
    assert identity(folder) == before and loaded_files(str(folder)) == files
    for file in files:
        data = bytearray(file.read_bytes())
        data[-40] ^= 1  # of the last tensor, or of the zip file's end: every byte counts
        kept = file.read_bytes()
        file.write_bytes(data)
        assert identity(folder) != before, file.name
        file.write_bytes(kept)
    assert identity(folder) == before and len(tensors) > 10


def test_a_file_that_the_index_names_and_nobody_has_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    sharded(folder)
    hub = tmp_path / "hub" / "models--some--llm"
    shutil.copytree(folder, hub / "snapshots" / ("0" * 40))
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("0" * 40)
    options: dict[str, Any] = {"cache_dir": str(tmp_path / "hub"), "local_files_only": True}
    assert len(weight_files("some/llm", None, options)) == 2
    missing = "model-00002-of-00002.safetensors"
    (hub / "snapshots" / ("0" * 40) / missing).unlink()
    (folder / missing).unlink()
    for name, more in ((str(folder), {}), ("some/llm", options)):
        with pytest.raises(ConfigError, match=f"lacks {missing}, which its model.safetensors.index.json names"):
            loaded_files(name, None, more)


def test_code_that_comes_along_counts(tmp_path: Path) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    before = identity(folder)
    (folder / "modeling.py").write_text("x = 1")
    assert identity(folder) == before, "nothing runs it"
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Model"}}))
    before = identity(folder)
    (folder / "modeling.py").write_text("x = 2")
    assert identity(folder) != before


def test_an_adapter_on_a_model_is_a_part_of_it(tmp_path: Path) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    before = identity(folder)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    save_file({"a": torch.zeros(2)}, adapter / "adapter_model.safetensors")
    one = identity(adapter)
    save_file({"a": torch.ones(2)}, adapter / "adapter_model.safetensors")
    other = identity(adapter)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert len({before, one, other, identity(adapter)}) == 4
    shutil.copy(adapter / "adapter_config.json", folder)
    assert [path.name for path in loaded_files(str(folder))] == ["model.safetensors", "adapter_config.json"]


def test_a_second_reading_of_an_unchanged_file_reads_nothing_and_any_change_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digest, "BLOCK", 5 << 20)
    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    size = 3 * digest.BLOCK + 12345
    file.write_bytes(os.urandom(size))
    begun = read_so_far()
    (first,) = digest.digests([file])
    assert read_so_far() - begun >= size
    begun = read_so_far()
    assert digest.digests([file]) == [first]
    assert read_so_far() - begun < 10_000
    link = tmp_path / "link.safetensors"
    link.symlink_to(file)
    assert digest.digests([link, file]) == [first, first] and read_so_far() - begun < 30_000

    seen = {first}
    for place in (0, digest.BLOCK - 1, digest.BLOCK, size - 1):  # the same size, and the old time put back
        stat = file.stat()
        with file.open("r+b") as opened:
            opened.seek(place)
            byte = opened.read(1)[0]
            opened.seek(place)
            opened.write(bytes([byte ^ 1]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        seen |= set(digest.digests([file]))
    assert len(seen) == 5

    # Written again and again within one tick of the file system's clock: what was kept is never of the content before.
    for number in range(6):
        data = bytes([number]) * size
        file.write_bytes(data)
        (now,) = digest.digests([file])
        file.write_bytes(bytes([number + 100]) * size)
        assert digest.digests([file]) != [now]

    kept = file.parent / digest.KEPT
    for text in ("", "[]", '{"block": 1}', json.dumps({"block": digest.BLOCK, "files": {file.name: 3}})):
        kept.write_text(text)
        assert digest.digests([file]) == digest.digests([file])
    with pytest.raises(ConfigError, match="cannot be read"):
        digest.digests([file.with_name("none")])


def test_where_the_folder_cannot_be_written_the_hash_is_kept_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "model" / "model.safetensors"
    file.parent.mkdir()
    file.write_bytes(b"x" * digest.KEPT_FROM)
    (file.parent / digest.KEPT).mkdir()  # so that root cannot write it either
    (first,) = digest.digests([file])
    assert len(list((tmp_path / "cache").rglob("*.json"))) == 1
    begun = read_so_far()
    assert digest.digests([file]) == [first] and read_so_far() - begun < 10_000
    file.write_bytes(b"y" * digest.KEPT_FROM)
    assert digest.digests([file]) != [first]


def test_small_files_leave_nothing_behind(tmp_path: Path) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    before = sorted(folder.iterdir())
    identity(folder)
    assert sorted(folder.iterdir()) == before


# ------------------------------------------------------------------------------------------------------- tokenizers


def loaded(folder: Path, part: str) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    return with_spiece(tokenizer, str(folder), None) if part == "encoder" else tokenizer


def edited(folder: Path, change: Callable[[dict[str, Any]], None], file: str = "tokenizer.json") -> None:
    values = json.loads((folder / file).read_text())
    change(values)
    (folder / file).write_text(json.dumps(values))


def merges(values: dict[str, Any]) -> None:
    model = values["model"]
    if "merges" in model:
        model["merges"] = model["merges"][:-1]
    else:
        model["vocab"][-1][1] -= 0.5


def special(folder: Path) -> None:
    edited(folder, lambda v: v.update(unk_token="<pad>"), "tokenizer_config.json")


CHANGES: dict[str, Callable[[Path], None]] = {
    "merge or score": lambda folder: edited(folder, merges),
    "normaliser": lambda folder: edited(folder, lambda v: v.update(normalizer={"type": "Lowercase"})),
    "pre-tokeniser": lambda folder: edited(folder, lambda v: v.update(pre_tokenizer={"type": "Whitespace"})),
    "post-processor": lambda folder: edited(folder, lambda v: v.update(post_processor=None)),
    "decoder": lambda folder: edited(folder, lambda v: v.update(decoder=None)),
    "added token": lambda folder: edited(folder, lambda v: v["added_tokens"][-1].update(lstrip=True)),
    "chat template": lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}") and None,
    "special token": special,
    "opening token": lambda folder: edited(folder, lambda v: v.update(add_bos_token=False), "tokenizer_config.json"),
}


@pytest.mark.parametrize("part", ["encoder", "llm", "pieces"])
@pytest.mark.parametrize("change", CHANGES)
def test_any_one_change_of_a_tokenizer_is_another_one(part: str, change: str, tmp_path: Path) -> None:
    """`pieces`: an encoder whose ids are those of its spiece.model, and whose class passes over parts of its file."""
    folder = tmp_path / "model"
    if part == "pieces":
        shutil.copytree(ENCODER_PATH, folder)
    else:
        (tiny.make_encoder if part == "encoder" else tiny.make_llm)("mt5" if part == "encoder" else "llama", folder)
    kind = "encoder" if part == "pieces" else part
    before = tokenizer_identity(loaded(folder, kind), str(folder))
    assert tokenizer_identity(loaded(folder, kind), str(folder), like=before) == before
    CHANGES[change](folder)
    assert tokenizer_identity(loaded(folder, kind), str(folder), like=before) != before


def test_of_the_same_files_a_tokenizer_is_not_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a tokenizer of 250,000 tokens does takes about as long to write down as all else of a start."""
    from bridge_ds.frozen import identity as module

    folder = tiny.make_llm("llama", tmp_path / "llm")
    before = tokenizer_identity(loaded(folder, "llm"), str(folder))
    assert not module.is_weak(before)
    monkeypatch.delattr(module, "_meaning_of")
    assert tokenizer_identity(loaded(folder, "llm"), str(folder), like=before) == before


def test_other_pieces_are_another_tokenizer(tmp_path: Path) -> None:
    """A score in spiece.model that changes no id and no vocabulary."""
    from sentencepiece import sentencepiece_model_pb2 as proto

    folder = shutil.copytree(ENCODER_PATH, tmp_path / "model")
    before = tokenizer_identity(loaded(folder, "encoder"), str(folder))
    model = proto.ModelProto()
    model.ParseFromString((folder / "spiece.model").read_bytes())
    model.pieces[-1].score -= 0.5
    (folder / "spiece.model").write_bytes(model.SerializeToString())
    assert vocabulary_identity(loaded(folder, "encoder")) == vocabulary_identity(loaded(ENCODER_PATH, "encoder"))
    assert tokenizer_identity(loaded(folder, "encoder"), str(folder), like=before) != before


@pytest.mark.parametrize("part", ["encoder", "llm"])
def test_saved_again_it_is_the_same_and_calls_change_nothing(part: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    path = ENCODER_PATH if part == "encoder" else LLM_PATH
    tokenizer = loaded(path, part)
    before = tokenizer_identity(tokenizer, str(path))
    folder = shutil.copytree(path, tmp_path / "again")
    again = AutoTokenizer.from_pretrained(folder)
    again.save_pretrained(folder)
    files = {name: (folder / name).read_bytes() != (path / name).read_bytes() for name in ("tokenizer_config.json",)}
    assert any(files.values()), "saving wrote other bytes"
    assert tokenizer_identity(loaded(folder, part), str(folder), like=before) == before
    inner = getattr(tokenizer, "tokenizer", tokenizer)
    inner(["a b c"], truncation=True, max_length=2, padding="max_length")
    assert tokenizer_identity(tokenizer, str(path)) == before
    assert inner.backend_tokenizer.truncation["max_length"] == 2, "left as it was"


def test_what_was_recorded_before_is_taken_where_it_still_holds(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.make_llm("llama", tmp_path / "llm")
    config, tokenizer = published_config(str(folder)), loaded(folder, "llm")
    weak = weak_model_identity(config, str(folder))
    assert model_identity(config, str(folder), like=weak) == weak
    assert "does not see every change" in caplog.text
    assert model_identity("{}", str(folder), like=weak, first=config) == weak
    assert model_identity(config, str(folder), like="0" * 64) == model_identity(config, str(folder))
    words = vocabulary_identity(tokenizer)
    assert tokenizer_identity(tokenizer, str(folder), like=words) == words
    assert tokenizer_identity(tokenizer, str(folder), like="0" * 64) == tokenizer_identity(tokenizer, str(folder))
