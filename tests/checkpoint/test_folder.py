"""Checkpoint folders: whole or refused, each fault named, the newest valid one found."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.bases import refuse_other_bases
from bridge_ds.checkpoint.best import find_folder, ranked
from bridge_ds.checkpoint.hook import CheckpointHook, _Losses
from bridge_ds.checkpoint.layout import manifest_sha256
from bridge_ds.checkpoint.load import (
    CONTINUED,
    Checkpoint,
    find,
    find_start,
    goes_on_from_best,
    load_bridge,
    load_optimizer,
    newest,
    put_trained,
    refuse_other_run,
)
from bridge_ds.checkpoint.origin import Origin, config_in
from bridge_ds.checkpoint.save import prune, set_aside
from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.disk import atomic_folder
from bridge_ds.engine.hooks import HookList
from bridge_ds.errors import CheckpointError
from bridge_ds.world import World


def write(
    root: Path, step: int, tensors: dict[str, torch.Tensor] | None = None, more: dict[str, Any] | None = None
) -> Path:
    final = layout.step_folder(root, step)
    with atomic_folder(final) as temporary:
        save_file(tensors or {"fusion.a": torch.arange(3.0)}, temporary / layout.BRIDGE)
        save_file({"exp_avg/fusion.a": torch.zeros(3)}, temporary / layout.OPTIMIZER)
        (temporary / layout.STATE).write_text(json.dumps({"step": step, "consumed": 8 * step, "seed": 0}))
        layout.seal(temporary, {"base": {"llm": "abc"}} | (more or {}))
    return final


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (layout.BRIDGE, truncate, "bytes; expected"),
        (layout.BRIDGE, flip, "another sha256"),
        (layout.OPTIMIZER, Path.unlink, "lacks optimizer.safetensors"),
        (layout.MANIFEST, Path.unlink, "no readable manifest.json"),
        (layout.MANIFEST, truncate, "manifest.json is not readable as JSON"),
    ],
)
def test_damage_is_named_and_passed_over(
    tmp_path: Path, name: str, damage: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, 5)
    broken = write(tmp_path, 10)
    damage(broken / name)  # type: ignore[operator]
    with pytest.raises(CheckpointError, match=words):
        Checkpoint.read(broken)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 5
    (record,) = caplog.records
    assert record.levelname == "WARNING" and words in record.getMessage()


def test_what_resume_may_be(tmp_path: Path) -> None:
    assert find("auto", tmp_path) is None
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        find("must", tmp_path)
    folder = write(tmp_path, 5)
    for resume in ("auto", "must", str(folder)):
        found = find(resume, tmp_path)
        assert found is not None
        assert found.folder == folder
    with pytest.raises(CheckpointError, match="never expects none"):
        find("never", tmp_path)
    flip(folder / layout.BRIDGE)
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        find("auto", tmp_path)


def test_a_folder_that_is_named_begins_another_future(tmp_path: Path) -> None:
    """run.resume=PATH sets what comes after PATH aside, and a second start of the same command goes on from its own."""
    root, named = tmp_path / "checkpoints", None
    for step in (2, 5, 6):
        named = named or write(root, step)
        write(root, step) if step > 2 else None
    assert named is not None
    asked = find(str(named), root)
    assert asked is not None and asked.step == 2
    lines = set_aside(root, 2)
    assert [step for step, _ in layout.folders(root)] == [2] and len(lines) == 2
    assert "step-00000006 is step-00000006.set-aside now: this start goes on from step 2" in lines[0]
    first = Origin(asked, None, Config(), (), anew=True)
    assert first.continued() == asked.manifest["sha256"]
    write(root, 4, more={CONTINUED: first.continued()})
    again = find(str(named), root)
    assert again is not None and again.step == 4
    assert Origin(again, None, Config(), ()).continued() == first.continued()
    # Pruning leaves what the next start looks for, and a better `best` does not begin anew.
    config = {"run": {"resume": str(root / "best")}}
    for step in (7, 8, 9):
        write(root, step, more={CONTINUED: first.continued(), "config": config})
    prune(root, 2, spared=named)
    assert [step for step, _ in layout.folders(root)] == [9, 8, 2]
    assert find(str(named), root) == find(str(root / "best"), root) == find("auto", root)
    own = find("auto", root)
    assert own is not None and goes_on_from_best(own, str(root / "best"))
    assert not goes_on_from_best(own, str(named))
    # What another command has continued is no reason to pass over the best one.
    assert not goes_on_from_best(again, str(root / "best"))
    # An older manifest has no hash: nothing says that a newer checkpoint continues it.
    old = tmp_path / "old"
    write(old, 3, more={CONTINUED: ""})
    first_of_old = write(old, 1)
    manifest = json.loads((first_of_old / layout.MANIFEST).read_text())
    manifest = {key: manifest[key] for key in ("format", "files", "base")} | {"config": {}, "versions": {}}
    (first_of_old / layout.MANIFEST).write_text(json.dumps(manifest))
    found = find(str(first_of_old), old)
    assert found is not None and found.step == 1
    # Of another run's folder, what is here of a training of its own is not taken.
    other = write(tmp_path / "other", 3, more={"base": {"llm": "b"}})
    found = find(str(other), root)
    assert found is not None and found.folder == other


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
        (folder / layout.STATE).write_text(json.dumps({"step": step, "consumed": 0, "loss": loss}))
    assert [path.name for path in prune(tmp_path, 1, best=1)] == ["step-00000004", "step-00000003", "step-00000001"]
    assert [step for step, _ in layout.folders(tmp_path)] == [5, 2]


def test_the_loss_of_a_checkpoint_between_regular_saves_decides_only_alone(tmp_path: Path) -> None:
    """It is the mean of a few steps, of which one may be lucky."""
    losses = {1: 0.9, 2: 0.5, 3: 0.1}
    for step, loss in losses.items():
        folder = write(tmp_path, step)
        more = {layout.LOSS_SUM: 0.1, layout.LOSS_STEPS: 1} if step == 3 else {}
        (folder / layout.STATE).write_text(json.dumps({"step": step, "consumed": 0, "loss": loss} | more))
    folders = [path for _, path in layout.folders(tmp_path)]
    assert [path.name[-1] for path in ranked(folders)] == ["2", "1"]
    assert ranked(folders[:1]) == folders[:1]


def test_what_was_named_may_be_gone_once_the_run_has_gone_on(tmp_path: Path) -> None:
    """As run.resume names a folder of another run, which prunes it."""
    root, other = tmp_path / "run" / "checkpoints", tmp_path / "other" / "checkpoints"
    named = write(other, 2)
    for resume in (str(named), str(other / "best")):
        assert find(str(named), root) is not None
        write(
            root, 5, more={CONTINUED: Checkpoint.read(named).manifest["sha256"], "config": {"run": {"resume": resume}}}
        )
        shutil.rmtree(named)
        found = find(resume, root)
        assert found is not None and found.folder == layout.step_folder(root, 5)
        shutil.rmtree(root)
        with pytest.raises(CheckpointError):
            find(resume, root)
        write(root, 5)  # of another start
        with pytest.raises(CheckpointError):
            find(resume, root)
        shutil.rmtree(root)
        write(other, 2)


@pytest.mark.parametrize("unvalidated", [0, 1])
def test_the_running_loss_is_that_of_the_checkpoint_that_is_continued(unvalidated: int, tmp_path: Path) -> None:
    """Not of the one that run.resume names, from which an earlier start went on."""
    root, named = tmp_path / "checkpoints", write(tmp_path / "other", 2)
    for folder, losses in ((named, 7.0), (write(root, 5), 3.0)):
        state = json.loads((folder / layout.STATE).read_text()) | {layout.LOSS_SUM: losses, layout.LOSS_STEPS: 2}
        (folder / layout.STATE).write_text(json.dumps(state))
        layout.seal(folder, {"base": {"llm": "abc"}})
    origin = Origin(Checkpoint.read(layout.step_folder(root, 5)), None, Config(), (), named=named)
    of: dict[str, Any] = {"state": {}, "manifest": {}, "world": World(), "hooks": HookList(), "mark": print}
    hook = CheckpointHook(None, root, Config().checkpoint, origin=origin, **of)
    hook.on_start(step=5 - unvalidated, total_steps=10)
    assert hook._losses == _Losses(3.0, 2)


def test_losses_are_added_as_a_run_without_a_stop_adds_them() -> None:
    records = [{"loss": loss} for loss in (2.7, math.inf, 0.1, math.nan, 1e-9)]
    whole = _Losses()
    for record in records:
        whole = whole.and_of(record)
    assert whole.steps == 3 and whole.mean == (2.7 + 0.1 + 1e-9) / 3
    assert _Losses().mean is None and _Losses().and_those(whole) == whole


def test_another_run_is_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(write(tmp_path, 5))
    refuse_other_run(checkpoint, {"seed": 0})
    refuse_other_bases(checkpoint, {"llm": "abc"}, ModelConfig())
    with pytest.raises(CheckpointError, match="seed 0; this run has 1"):
        refuse_other_run(checkpoint, {"seed": 1})
    with pytest.raises(CheckpointError, match=r"the LLM 'testbed/llm' is not what \S+ was trained with \(its weights"):
        refuse_other_bases(checkpoint, {"llm": "xyz"}, ModelConfig())
    checkpoint.manifest["config"] = {"model": {"llm": "other/llm"}}
    with pytest.raises(CheckpointError, match=r"trained with \(that was 'other/llm'\).*set model\.encoder"):
        refuse_other_bases(checkpoint, {"llm": "xyz"}, ModelConfig())


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


def edited(folder: Path, change: Callable[[dict[str, Any]], Any], name: str = layout.MANIFEST) -> None:
    """Change a JSON file of a checkpoint, as a bug or a person would; of a manifest its own hash goes along."""
    values = json.loads((folder / name).read_text())
    result = change(values)
    values = result if isinstance(result, list) else values
    if name == layout.MANIFEST and "sha256" in values:
        values["sha256"] = manifest_sha256(values)
    (folder / name).write_text(json.dumps(values))


def test_every_flipped_bit_of_a_manifest_is_damage_and_the_older_checkpoint_is_used(tmp_path: Path) -> None:
    write(tmp_path, 5)
    newer = write(tmp_path, 10) / layout.MANIFEST
    whole = newer.read_bytes()
    said: list[str] = []
    for at in range(len(whole)):
        bit = 1 << at % 8
        newer.write_bytes(whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :])
        found = newest(tmp_path, said.append)
        same = _same(newer, whole)
        assert found is not None and found.step == (10 if same else 5), whole[at - 20 : at + 20]
    assert all("step-00000010" in line for line in said) and len(said) > 0.8 * len(whole)


def _same(path: Path, whole: bytes) -> bool:
    """Whether it still says the same: a bit in its white space, say."""
    try:
        return bool(json.loads(path.read_bytes()) == json.loads(whole))
    except ValueError:
        return False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.update(files={}), "does not list bridge.safetensors"),
        (lambda v: v["files"].pop("optimizer.safetensors"), "does not list optimizer.safetensors"),
        (lambda v: v.update(files=[1]), "has files [1]; expected an object"),
        (lambda v: v["files"].update({"../x": v["files"]["state.json"]}), "'../x'; expected a name without a folder"),
        (lambda v: v["files"].update({"..": v["files"]["state.json"]}), "'..'; expected a name without a folder"),
        (lambda v: v["files"].update({"/etc/x": v["files"]["state.json"]}), "expected a name without a folder"),
        (lambda v: v["files"]["state.json"].update(bytes="12"), "files.state.json.bytes '12'; expected a valid int"),
        (lambda v: v["files"]["state.json"].update(bytes=10**30), "files.state.json.bytes 10000000000000000000"),
        (lambda v: v["files"]["state.json"].update(sha256="0"), "has files.state.json.sha256 '0'; expected"),
        (lambda v: v["files"]["state.json"].pop("sha256"), "has no files.state.json.sha256"),
        (lambda v: v.pop("base"), "has no base"),
        (lambda v: v.update(base={"llm": 3}), "has base.llm 3; expected a valid string"),
        (lambda v: v.update(base={}), "has base {}; expected"),
        (lambda v: v.update(config=[]), "has config []; expected an object"),
        (lambda v: v.update(changes=5), "has changes 5; expected"),
        (lambda v: v.update(versions={"torch": 2}), "has versions.torch 2; expected a valid string"),
        (lambda v: v.update(format="1"), "has format '1'; expected a valid integer"),
        (lambda v: v.update(format=2), "use the version that wrote it"),
        (lambda v: [v], "holds list; expected"),
        (lambda v: v.pop("sha256"), "has no sha256 of itself, and no 'config'"),
    ],
)  # fmt: skip
def test_a_manifest_of_another_kind_is_damage(tmp_path: Path, change: Any, words: str) -> None:
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    edited(newer, change)
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None and found.folder == older and words in said[0], said


def test_a_file_that_is_read_and_not_listed_is_damage(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    (folder / "notes.txt").write_text("mine")
    Checkpoint.read(folder)
    save_file({"llm.a": torch.zeros(2)}, folder / "lora.safetensors")
    with pytest.raises(CheckpointError, match="does not list lora"):
        Checkpoint.read(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda v: v.pop("step"), "has no step"),
        (lambda v: v.update(step="10"), "has step '10'; expected a valid integer"),
        (lambda v: v.update(step=True), "has step True"),
        (lambda v: v.update(step=11), "has step 11; expected that of the folder, 10"),
        (lambda v: v.update(step=-10), "has step -10; expected a number greater than or equal to 0"),
        (lambda v: v.update(consumed=-1), "has consumed -1"),
        (lambda v: v.update(consumed=10**400), "has consumed 1000"),
        (lambda v: v.update(consumed=math.inf), "has consumed inf"),
        (lambda v: v.update(optimizer_step=1.5), "has optimizer_step 1.5"),
        (lambda v: v.update(optimizer_step=11), "has optimizer_step 11; expected at most the step, 10"),
        (lambda v: v.update(loss="low"), "has loss 'low'"),
        (lambda v: v.update(loss=-math.inf), "has loss -inf; expected a finite number"),
        (lambda v: v.update(validation_loss=[]), "has validation_loss []"),
        (lambda v: v.update(bad_samples=[1]), "has bad_samples"),
        (lambda v: v.update(bad_samples={"long": -1}), "has bad_samples.long -1"),
        (lambda v: v.update(unvalidated=3), "has unvalidated 3"),
        (lambda v: v.update(unvalidated={"step": 10}), "has no unvalidated."),
        (lambda v: [v], "holds list"),
    ],
)
def test_a_state_of_another_kind_is_damage(tmp_path: Path, change: Any, words: str) -> None:
    older, newer = write(tmp_path, 5), write(tmp_path, 10)
    edited(newer, change, layout.STATE)
    edited(newer, lambda v: v["files"].update({layout.STATE: layout.entry_of(newer / layout.STATE)}))
    said: list[str] = []
    found = newest(tmp_path, said.append)
    assert found is not None and found.folder == older and words in said[0], said
    prune(tmp_path, 1, best=1)


def test_a_whole_manifest_of_before_is_taken(tmp_path: Path) -> None:
    folder = write(tmp_path, 5, more={"config": {}, "versions": {"torch": "2"}, "converted": {"source": "x"}})
    edited(folder, lambda v: v.pop("sha256"))
    assert Checkpoint.read(folder).step == 5
    edited(folder, lambda v: v.update(sha356="0" * 64))
    with pytest.raises(CheckpointError, match="an unknown 'sha356'"):
        Checkpoint.read(folder)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_weights_that_are_not_finite_are_no_checkpoint_to_continue_begin_or_use(tmp_path: Path, value: float) -> None:
    root = tmp_path / "checkpoints"
    older = write(root, 5)
    newer = write(root, 10, {"fusion.a": torch.tensor([0.0, 1.0, value])})
    said: list[str] = []
    found = newest(root, said.append)
    assert found is not None and found.folder == older and "was not finite: fusion.a" in said[0]
    begun = find_start(str(tmp_path))
    assert begun is not None and begun.folder == older
    with pytest.raises(CheckpointError, match="not finite"):
        find_start(str(newer))
    with pytest.raises(CheckpointError, match="not finite"):
        find(str(newer), root)
    looked_at = newest(root, said.append, finite=False)  # the doctor says what is wrong with it
    assert looked_at is not None and looked_at.folder == newer


@pytest.mark.parametrize(
    ("moments", "words"),
    [
        ({"exp_avg/fusion.a": torch.zeros(3)}, r"exp_avg_sq/fusion\.a \(the file lacks it\)"),
        ({"exp_avg/fusion.b": torch.zeros(3)}, r"exp_avg/fusion\.b \(nothing of that name is trained\)"),
        ({"exp_avg_sq/fusion.a": torch.zeros(1, 3)}, r"exp_avg_sq/fusion\.a has shape \(1, 3\) in the file, expected"),
        ({"exp_avg/fusion.a": torch.zeros(2)}, r"exp_avg/fusion\.a has shape \(2,\) in the file, expected \(3,\)"),
        ({"exp_avg/fusion.a": torch.zeros(3).half()}, r"exp_avg/fusion\.a has dtype F16 in the file, expected"),
    ],
)
def test_the_state_of_another_optimizer_is_refused_before_anything_is_set(
    tmp_path: Path, moments: dict[str, torch.Tensor], words: str
) -> None:
    folder = write(tmp_path, 5)
    whole = {f"{moment}/fusion.a": torch.zeros(3) for moment in ("exp_avg", "exp_avg_sq")}
    if "lacks" in words:
        whole = {}
    save_file(whole | moments, folder / layout.OPTIMIZER)
    edited(folder, lambda v: v["files"].update({layout.OPTIMIZER: layout.entry_of(folder / layout.OPTIMIZER)}))
    with pytest.raises(CheckpointError, match=words):
        load_optimizer(Checkpoint.read(folder), SimpleNamespace(module=Model(3)))


def test_a_mean_of_squares_below_zero_is_damage(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    save_file({"exp_avg_sq/fusion.a": torch.tensor([1.0, -1e-9, 0.0])}, folder / layout.OPTIMIZER)
    edited(folder, lambda v: v["files"].update({layout.OPTIMIZER: layout.entry_of(folder / layout.OPTIMIZER)}))
    with pytest.raises(CheckpointError, match=r"exp_avg_sq/fusion\.a holds negative values"):
        Checkpoint.read(folder)


def test_a_tensor_in_two_files_and_a_manifest_without_config_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    save_file({"fusion.a": torch.ones(3)}, folder / layout.LORA)
    with pytest.raises(CheckpointError, match=r"differ in fusion\.a \(lora\.safetensors holds it too\)"):
        put_trained([folder / layout.BRIDGE, folder / layout.LORA], Model(3), "set {}")
    (folder / layout.LORA).unlink()
    with pytest.raises(CheckpointError, match=r"manifest\.json has no config; expected that of the training"):
        config_in(Checkpoint.read(folder))


def test_best_that_leads_nowhere_is_found_by_the_losses(tmp_path: Path) -> None:
    folder = write(tmp_path, 5)
    (folder / layout.STATE).write_text(json.dumps({"step": 5, "consumed": 0, "loss": 1.0}))
    (tmp_path / "best").symlink_to(tmp_path / "gone")
    assert find_folder(tmp_path / "best") == folder
    (folder / layout.STATE).write_text('{"step": 5, "consumed": 0, "loss": Infinity}')
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* has a loss"):
        find_folder(tmp_path / "best")


def test_integers_where_floats_belong_are_refused(tmp_path: Path) -> None:
    checkpoint = Checkpoint.read(write(tmp_path, 5, {"fusion.a": torch.arange(3, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match="dtype I32 in the file, expected torch"):
        load_bridge(checkpoint, Model(3))
