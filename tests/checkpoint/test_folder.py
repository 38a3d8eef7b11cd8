"""Checkpoint folders: whole or refused, each fault named, the newest valid one found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bridge_ds.checkpoint import format as layout
from bridge_ds.checkpoint.load import Checkpoint, find, load_bridge, newest, refuse_other_run
from bridge_ds.checkpoint.save import prune
from bridge_ds.errors import CheckpointError


def write(root: Path, step: int, tensors: dict[str, torch.Tensor] | None = None) -> Path:
    temporary, final = root / ".tmp", layout.step_folder(root, step)
    temporary.mkdir(parents=True)
    save_file(tensors or {"fusion.a": torch.arange(3.0)}, temporary / layout.BRIDGE)
    save_file({"exp_avg/fusion.a": torch.zeros(3)}, temporary / layout.OPTIMIZER)
    (temporary / layout.STATE).write_text(json.dumps({"step": step, "consumed": 8 * step, "seed": 0}))
    layout.seal(temporary, final, {"base": {"llm": "abc"}})
    return final


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (layout.BRIDGE, cut, "bytes; expected"),
        (layout.BRIDGE, flip, "another sha256"),
        (layout.OPTIMIZER, Path.unlink, "lacks optimizer.safetensors"),
        (layout.MANIFEST, Path.unlink, "no readable manifest.json"),
        (layout.MANIFEST, cut, "no readable manifest.json"),
    ],
)
def test_damage_is_named_and_passed_over(tmp_path: Path, name: str, damage: object, words: str) -> None:
    write(tmp_path, 5)
    broken = write(tmp_path, 10)
    damage(broken / name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.read(broken)
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None
    assert found.step == 5
    assert len(said) == 1
    assert words in said[0]


def test_what_resume_may_be(tmp_path: Path) -> None:
    said: list[str] = []
    assert find("auto", tmp_path, said.append) is None
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        find("must", tmp_path, said.append)
    folder = write(tmp_path, 5)
    for resume in ("auto", "must", str(folder)):
        found = find(resume, tmp_path, said.append)
        assert found is not None
        assert found.folder == folder
    with pytest.raises(CheckpointError, match="never expects none"):
        find("never", tmp_path, said.append)
    flip(folder / layout.BRIDGE)
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        find("auto", tmp_path, said.append)


def test_a_leftover_temporary_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / ".step-00000010.tmp").mkdir()
    (tmp_path / "step-x").mkdir()
    assert layout.folders(tmp_path) == []


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step)
    assert [path.name for path in prune(tmp_path, 2)] == ["step-00000002", "step-00000001"]
    assert [step for step, _ in layout.folders(tmp_path)] == [4, 3]
    assert prune(tmp_path, 0) == []


def test_the_best_is_kept_too(tmp_path: Path) -> None:
    for step, loss in ((1, 0.9), (2, 0.1), (3, 0.5), (4, None), (5, 0.7)):
        folder = write(tmp_path, step)
        (folder / layout.STATE).write_text(json.dumps({"step": step, "loss": loss}))
    assert [path.name for path in prune(tmp_path, 1, best=1)] == ["step-00000004", "step-00000003", "step-00000001"]
    assert [step for step, _ in layout.folders(tmp_path)] == [5, 2]


def test_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(write(tmp_path, 5))
    refuse_other_run(checkpoint, {"seed": 0}, {"llm": "abc"})
    with pytest.raises(CheckpointError, match="seed 0; this run has 1"):
        refuse_other_run(checkpoint, {"seed": 1}, {})
    with pytest.raises(CheckpointError, match="base llm 'abc'"):
        refuse_other_run(checkpoint, {}, {"llm": "xyz"})


class Model(torch.nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.fusion = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.zeros(size))})


def test_tensors_must_match(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(write(tmp_path, 5))
    model = Model(3)
    load_bridge(checkpoint, model)
    assert model.fusion["a"].tolist() == [0, 1, 2]
    with pytest.raises(CheckpointError, match="shape"):
        load_bridge(checkpoint, Model(4))
    with pytest.raises(CheckpointError, match="differ in bias"):
        load_bridge(checkpoint, torch.nn.Linear(2, 2))
