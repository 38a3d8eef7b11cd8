"""Tampered checkpoints, exports, predictions and metrics: what was written, or one sentence; never another exception.

Seeded; BRIDGE_DS_FUZZ multiplies the number of cases. A failure names the case: run it alone with BRIDGE_DS_FUZZ_CASE.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bridge_ds import BridgeForCausalLM, BridgeProcessor
from bridge_ds.bridge import BridgeModel
from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.best import find_folder
from bridge_ds.checkpoint.load import Checkpoint, put_trained, trained_tensors
from bridge_ds.checkpoint.origin import find_origin
from bridge_ds.config.load import load_run_config
from bridge_ds.engine.setup import build_model
from bridge_ds.errors import BridgeError
from bridge_ds.hub.config import settings_sha256, to_run
from bridge_ds.hub.source import open_source
from bridge_ds.inference.load import open_run
from bridge_ds.metrics import read_results
from bridge_ds.report.results import study_results
from bridge_ds.report.study import read_study
from bridge_ds.track.metrics_file import read_metrics
from bridge_ds.track.tracker import TrackerState, numbers, score_points
from tests import tiny
from tests.made import make_run
from tests.report.studies import write_run
from tests.track.records import record, results

FACTOR = float(os.environ.get("BRIDGE_DS_FUZZ", "1"))
ONLY = os.environ.get("BRIDGE_DS_FUZZ_CASE")
SEED = 17
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 12345\n"
VALUES: list[str] = [
    "null", "true", "false", "0", "-1", "1", "3", "1.5", "-0.0", "1e308", "1e999", "NaN", "Infinity", "-Infinity",
    "9" * 30, "9" * 400, "9" * 5000, '""', '"x"', '"../../x"', '"/etc/passwd"', '"a\\u0000b"', '"\\ud83d"', '"NaN"',
    '"' + "x" * 5000 + '"', "[]", "[1]", "[[]]", "[null]", "{}", '{"a": 1}', '{"a": {"b": []}}',
    "[" * 3000 + "]" * 3000,
    "9007199254740993", "2147483648", "-9223372036854775809", '{"a": 1, "a": 2}', '"\\u202e"', "[1e999]",
]  # fmt: skip


@dataclass(frozen=True)
class Whole:
    """What is tampered with, copied for each case."""

    run: Path
    export: Path
    study: Path
    model: BridgeModel
    tensors: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    root = tmp_path_factory.mktemp("whole")
    encoder, llm = tiny.make_encoder("mt5", root / "encoder"), tiny.make_llm("llama", root / "llm")
    run = make_run(root / "run", [f"model.encoder={encoder}", f"model.llm={llm}"])
    BridgeForCausalLM.from_pretrained(run).save_pretrained(root / "export")
    config = load_run_config(run)
    model = build_model(config, None)
    (step,) = (run / "checkpoints").iterdir()
    tensors = load_file(step / layout.BRIDGE)
    put_trained([step / layout.BRIDGE], model, "")
    for name in ("a-0", "b-0"):
        write_run(
            root / "study" / name, "last_layer" if name == "a-0" else "global_softmax", 0, 6, {"xnli": ("en", "sw")}
        )
    tracked = root / "study" / "a-0"
    (tracked / "evaluation.json").write_text(json.dumps(results()))
    (tracked / "metrics.jsonl").write_text("".join(json.dumps(record(step)) + "\n" for step in (1, 2, 3)))
    state = {
        "run_id": "a" * 32,
        "uri": "sqlite",
        "experiment": "x",
        "logged_step": 3,
        "attempts": 1,
        "status": "killed",
    }
    (tracked / "mlflow.json").write_text(json.dumps(state))
    return Whole(run, root / "export", root / "study", model, tensors)


def tampered_json(text: str, draw: random.Random) -> str:
    """One value replaced, or one key taken out, renamed, doubled or added; the text of a value is put in as it is."""
    value = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
            places.append((node, key))
            walk(node[key])

    walk(value)
    if not places or draw.random() < 0.03:
        return draw.choice(VALUES)
    node, key = draw.choice(places)
    new = draw.choice(VALUES)
    how = draw.randrange(8) if isinstance(node, dict) else draw.randrange(5)
    if how == 5:
        del node[key]
        return json.dumps(value)
    if how == 6:
        node[key + "x" if draw.random() < 0.5 else draw.choice(["../x", "..", "a/b", "", "x" * 300])] = node.pop(key)
        return json.dumps(value)
    old, node[key] = node[key], "<HERE>"
    if how == 7:
        name = json.dumps(key)
        return json.dumps(value).replace('"<HERE>"', f"{json.dumps(old)}, {name}: {new}")
    return json.dumps(value).replace('"<HERE>"', new)


def tampered_bytes(path: Path, draw: random.Random) -> None:
    """A file with other bytes, or something else in its place."""
    data = bytearray(path.read_bytes())
    how = draw.randrange(9)
    if how == 0:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif how == 1:
        del data[draw.randrange(len(data)) :]
    elif how == 2:
        at = draw.randrange(len(data))
        data[at:at] = draw.randbytes(draw.randrange(1, 20))
    elif how == 3:
        at = draw.randrange(len(data))
        data[at : at + 16] = bytes(len(data[at : at + 16]))
    elif how == 4:
        data[:] = POINTER
    elif how == 5:
        data[:] = draw.choice([b"", b"\x80\x04.", b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b"\xff" * 40, b"PK\x03\x04"])
    elif how == 6:  # a header of safetensors that promises much
        data[:8] = draw.choice([0, 2**31, 2**62, 99_999_999]).to_bytes(8, "little")
    path.unlink()
    if how == 7:
        path.symlink_to(draw.choice(["nowhere", ".", path.name, "/dev/null"]))
    elif how == 8:
        path.mkdir()
    else:
        path.write_bytes(data)


def tampered_tensors(path: Path, draw: random.Random) -> None:
    """One tensor of another value, shape, dtype or name, more than there were, or fewer."""
    tensors = load_file(path)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    change: Callable[[], dict[str, torch.Tensor]] = draw.choice([
        lambda: {name: torch.full_like(tensor, draw.choice([float("nan"), float("inf"), 1e30]))},
        lambda: {name: tensor[None].clone()},
        lambda: {name: torch.zeros(3, 3)},
        lambda: {name: tensor.to(draw.choice([torch.float64, torch.bfloat16, torch.int32, torch.bool]))},
        lambda: {name + "x": tensor.clone()},
        lambda: {draw.choice(["encoder.x", "llm.x", "llm.lora_a", "mapping", "..", ""]): tensor.clone()},
        lambda: {name: torch.zeros(0)},
    ])  # fmt: skip
    if draw.random() < 0.2:
        del tensors[name]
    else:
        tensors |= change()
    save_file(tensors, path, metadata={"format": "pt"})


def reseal(folder: Path) -> None:
    """Make every hash that can be made right."""
    path, config = folder / layout.MANIFEST, folder / "config.json"
    try:
        if path.is_file():
            values = json.loads(path.read_text())
            for name in values["files"]:
                values["files"][name] = layout.entry_of(folder / name)
            path.write_text(json.dumps(values | {"sha256": layout.manifest_sha256(values)}))
        elif config.is_file():
            values = json.loads(config.read_text())
            for name in values["files"]:
                values["files"][name] = layout.entry_of(folder / name)
            config.write_text(json.dumps(values | {"settings_sha256": settings_sha256(values)}))
    except (ValueError, OSError, KeyError, TypeError, AttributeError, RecursionError):
        pass  # no hash is right for this one


def tamper(folder: Path, names: list[str], draw: random.Random) -> str:
    """Change a file of a folder; returns which."""
    path = folder / draw.choice(names)
    resealed = draw.random() < 0.8
    if path.suffix == ".safetensors" and draw.random() < 0.6:
        tampered_tensors(path, draw)
    elif path.suffix in (".json", ".jsonl") and draw.random() < 0.85:
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        number = draw.randrange(len(lines))
        lines[number] = tampered_json(lines[number], draw)
        path.write_text("\n".join(lines) + "\n")
    else:
        tampered_bytes(path, draw)
    if resealed:
        reseal(folder)
    return f"{path.name}, {'resealed' if resealed else 'as it is'}"


def put(whole: Whole, paths: list[Path]) -> None:
    """Load the tensors; they are those of the files."""
    put_trained(paths, whole.model, "the {} differ")
    there = {name: tensor for path in paths for name, tensor in load_file(path).items()}
    ours = trained_tensors(whole.model)
    assert ours.keys() == there.keys() == whole.tensors.keys()
    assert all(torch.equal(ours[name], there[name]) and torch.isfinite(there[name]).all() for name in ours)


def checkpoint(whole: Whole, folder: Path, draw: random.Random) -> str:
    """A run whose newest checkpoint, of two, or whose config.yaml was tampered with."""
    run = shutil.copytree(whole.run, folder / "run")
    (older,) = (run / "checkpoints").iterdir()
    newer = shutil.copytree(older, older.with_name("step-00000002"))
    state = json.loads((newer / layout.STATE).read_text())
    (newer / layout.STATE).write_text(json.dumps(state | {"step": 2, "loss": 0.5, "bad_samples": {"long": 1}}))
    reseal(newer)
    assert Checkpoint.read(newer).step == 2
    names = [layout.MANIFEST, layout.STATE, layout.MANIFEST, layout.STATE, layout.BRIDGE, layout.OPTIMIZER]
    if draw.random() < 0.1:
        what, wanted = tamper(run, ["config.yaml"], draw), 2
    else:
        what, wanted = tamper(newer, names, draw), 0
    config = load_run_config(whole.run)
    for door in (
        lambda: open_run(run, note=lambda _: None)[1],
        lambda: find_origin(config, run).checkpoint,
        lambda: Checkpoint.read(find_folder(run / "checkpoints" / "best")),
    ):
        try:
            found = door()
            assert found is not None and (not wanted or found.step == wanted), what
            put(whole, layout.trained_files(found.folder))
        except BridgeError as error:
            sentence(error)
    return what


def export(whole: Whole, folder: Path, draw: random.Random) -> str:
    """An exported folder; every eighth is loaded whole."""
    export = shutil.copytree(whole.export, folder / "export")
    what = tamper(export, ["config.json", "config.json", "generation_config.json", layout.BRIDGE, "README.md"], draw)
    try:
        source = open_source(str(export))
        to_run(source.config)
        source.card(source.config)
        if draw.random() < 0.125:
            BridgeProcessor.from_pretrained(export)
            BridgeForCausalLM.from_pretrained(export)
        put(whole, source.tensors())
    except BridgeError as error:
        sentence(error)
    return what


def study(whole: Whole, folder: Path, draw: random.Random) -> str:
    """Predictions, their index, evaluation.json, metrics.jsonl, mlflow.json."""
    root = shutil.copytree(whole.study, folder / "study")
    run = root / "a-0"
    what = tamper(run, ["evaluation/bridge/index.json", "evaluation/bridge/xnli/sw.jsonl", "evaluation/llm/index.json",
                        "evaluation.json", "metrics.jsonl", "mlflow.json"], draw)  # fmt: skip
    for door in (
        lambda: study_results(read_study([str(run), str(root / "b-0")], "last_layer")),
        lambda: score_points(read_results(run)[0]),
        lambda: [numbers(each) for each in read_metrics(run / "metrics.jsonl")],
        lambda: TrackerState.load(run / "mlflow.json"),
    ):
        try:
            json.dumps(getattr(door(), "__dict__", None))
        except BridgeError as error:
            sentence(error)
    return what


def sentence(error: BridgeError) -> None:
    """One line that is not endless."""
    text = str(error)
    assert "\n" not in text and len(text) < 1500, text


@pytest.mark.parametrize(
    ("kind", "count"), [(checkpoint, 90), (export, 70), (study, 40)], ids=lambda v: getattr(v, "__name__", "")
)
def test_tampered(kind: Callable[[Whole, Path, random.Random], str], count: int, whole: Whole, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    failed: list[str] = []
    for case in [int(ONLY)] if ONLY else range(int(count * FACTOR)):
        folder = tmp_path / str(case)
        folder.mkdir()
        began = time.monotonic()
        try:
            kind(whole, folder, random.Random(f"{SEED} {kind.__name__} {case}"))
            assert time.monotonic() - began < 10
        except BaseException as error:
            if ONLY or isinstance(error, KeyboardInterrupt):
                raise
            failed.append(f"case {case} of {kind.__name__} (seed {SEED}): {type(error).__name__}: {str(error)[:300]}")
        shutil.rmtree(folder)
    assert not failed, f"{len(failed)} failed\n" + "\n".join(failed[:40])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20, "KiB"
