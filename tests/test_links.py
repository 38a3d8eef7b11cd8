"""A symlink where something is to be written stays one: what it leads to is written, also where it is not there yet."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_run_config
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.disk import real, remove, write_text
from bridge_ds.errors import BridgeError
from bridge_ds.hub.export import export
from bridge_ds.track.metrics_file import MetricsLog
from tests import launch
from tests.convert import peers, saved
from tools.convert import main as convert
from tools.pack_shards import main as pack

ROWS = [{"source": f"the cat {n}", "target": "good day"} for n in range(6)]


def linked(root: Path, kind: str) -> tuple[Path, Path]:
    """A link in one folder, and the place in another to which it leads."""
    (root / "home").mkdir(parents=True)
    (root / "disk").mkdir()
    target, link = root / "disk" / "target", root / "home" / "link"
    if kind == "to an empty folder":
        target.mkdir()
    if kind == "relative":
        target.mkdir()
        link.symlink_to(Path("..") / "disk" / "target")
    elif kind == "of links":
        (root / "home" / "second").symlink_to(target)
        link.symlink_to("second")
    else:
        link.symlink_to(target)
    return link, target


KINDS = ("to an empty folder", "to nothing yet", "relative", "of links")


def rows_packed(root: Path, output: Path) -> str:
    pack_rows(ROWS, output)
    return "index.json"


def file_packed(root: Path, output: Path) -> str:
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    pack(["pack", "--input", str(root / "rows.jsonl"), "--output", str(output)])
    return "index.json"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [rows_packed, file_packed])
def test_a_linked_output_folder_of_packing(tmp_path: Path, kind: str, make: Callable[[Path, Path], str]) -> None:
    link, target = linked(tmp_path, kind)
    written = make(tmp_path, link)
    assert link.is_symlink() and (target / written).is_file()
    assert [path.name for path in target.parent.iterdir()] == ["target"]  # nothing left beside it
    if make is rows_packed:
        pack_rows(ROWS[:3], link, overwrite=True)
        assert link.is_symlink() and json.loads((target / written).read_text())["samples"] == 3


@pytest.mark.parametrize("kind", ["to an empty folder", "to nothing yet"])
def test_a_linked_output_folder_of_converting_and_exporting(tmp_path: Path, models: dict[str, Path], kind: str) -> None:
    link, target = linked(tmp_path / "converted", kind)
    torch.manual_seed(0)
    peer = peers.MindMerger(models["encoder"], models["llm"])
    checkpoint = saved.wrapped(peer.mapping.state_dict(), tmp_path / "peer")
    bases = ["--encoder", str(models["encoder"]), "--llm", str(models["llm"])]
    convert(["mindmerger", str(checkpoint), *bases, "--output", str(link), "--set", "model.dtype=float32"])
    assert link.is_symlink() and (target / "config.yaml").is_file()
    out, exported = linked(tmp_path / "exported", kind)
    export(str(link), out)
    assert out.is_symlink() and (exported / "bridge.safetensors").is_file()
    assert [path.name for path in exported.parent.iterdir()] == ["target"]


def test_a_link_to_a_folder_that_is_in_use_is_refused_and_left(tmp_path: Path, models: dict[str, Path]) -> None:
    link, target = linked(tmp_path, "to an empty folder")
    (target / "mine").write_text("")
    for write in (
        lambda: pack_rows(ROWS, link),
        lambda: export(str(tmp_path), link),
    ):
        with pytest.raises(BridgeError, match=r"not empty|is there already"):
            write()
    assert link.is_symlink() and [path.name for path in target.iterdir()] == ["mine"]


def test_a_linked_file_is_written_where_the_link_leads(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    for name, there in (("one", True), ("two", False)):
        target, link = tmp_path / "disk" / name, tmp_path / name
        if there:
            target.write_text("old")
        link.symlink_to(target)
        write_text(link, "new")
        assert link.is_symlink() and target.read_text() == "new"
        # What a run cuts back to its checkpoint is a file of the user's choice, too.
        target.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + "\n")
        log = MetricsLog(link)
        log.on_start(step=1, total_steps=2)
        log.on_end("finished")
        assert link.is_symlink() and target.read_text() == json.dumps({"step": 1}) + "\n"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["one", "two"]
    remove(tmp_path / "one")
    assert (tmp_path / "disk" / "one").is_file() and not (tmp_path / "one").is_symlink()
    assert real(tmp_path / "two") == tmp_path / "disk" / "two"


@pytest.mark.slow
def test_a_linked_run_folder_and_linked_parts_of_it(small_run: list[str], tmp_path: Path) -> None:
    """The folder leads to nothing yet; on resume its record, its metrics and its checkpoints are links elsewhere."""
    link, target = linked(tmp_path, "to nothing yet")
    settings = [f"run.output={link}", "train.steps=2", "checkpoint.every=1", "checkpoint.keep_last=1"]
    arguments = [*small_run, *(part for setting in settings for part in ("--set", setting))]
    launch.succeed(launch.train(arguments, 1, tmp_path / "logs"))
    assert link.is_symlink() and (target / "checkpoints" / "step-00000002" / "manifest.json").is_file()
    for name in ("config.yaml", "metrics.jsonl", "checkpoints"):
        shutil.move(target / name, tmp_path / "disk" / name)
        (target / name).symlink_to(tmp_path / "disk" / name)
    (tmp_path / "disk" / "plots").mkdir()
    shutil.rmtree(target / "plots")
    (target / "plots").symlink_to(tmp_path / "disk" / "plots")
    launch.succeed(launch.train([*arguments, "--set", "train.steps=3"], 1, tmp_path / "logs"))
    assert all((target / name).is_symlink() for name in ("config.yaml", "metrics.jsonl", "checkpoints", "plots"))
    assert load_run_config(link).train.steps == 3
    assert (tmp_path / "disk" / "checkpoints" / "step-00000003" / "manifest.json").is_file()
    assert (tmp_path / "disk" / "metrics.jsonl").read_text().count("\n") == 3
    assert (tmp_path / "disk" / "plots" / "loss.png").is_file()
    assert not list((tmp_path / "disk").glob(".*"))
