"""A start that is refused, for whatever reason there is, leaves the run folder as it was: names, bytes, times."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from bridge_ds.checkpoint.layout import entry_of, manifest_sha256
from bridge_ds.data.packing.write import pack_rows
from tests import launch, tiny
from tests.data.test_languages import save_tagged

pytestmark = pytest.mark.slow


def settings(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def snapshot(root: Path) -> dict[str, object]:
    """All that is under a folder, and the folder itself: kind, time of change, bytes or the link's target."""
    if not os.path.lexists(root):
        return {}
    found: dict[str, object] = {}
    for path in [root, *sorted(root.rglob("*"))]:
        facts = path.lstat()
        content: object = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        found[str(path.relative_to(root))] = stat.S_IFMT(facts.st_mode), facts.st_mtime_ns, content
    return found


@dataclass
class Place:
    """A used run folder, and what a reason for refusal needs beside it."""

    run: Path
    beside: Path
    models: dict[str, Path]
    shards: Path


@dataclass
class Reason:
    """Why a start is refused."""

    words: str
    """In its sentence."""
    set: dict[str, object] = field(default_factory=dict)
    make: Callable[[Place], dict[str, object]] | None = None
    """Breaks something first; gives more settings."""
    options: tuple[str, ...] = ()
    ranks: int = 1
    new: bool = False
    """Also into a new folder, which must not be made."""


def other_model(part: str, **more: int) -> Callable[[Place], dict[str, object]]:
    def make(place: Place) -> dict[str, object]:
        folder = place.beside / part
        made = tiny.make_llm("llama", folder, **more) if part == "llm" else tiny.make_encoder("mt5", folder, **more)
        return {f"model.{part}": made}

    return make


def other_tokenizer(place: Place) -> dict[str, object]:
    folder = place.beside / "tokenizer"
    shutil.copytree(place.models["llm"], folder)
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = [token for token in vocabulary if len(token) > 2][:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    return {"model.llm": folder}


def other_shards(place: Place) -> dict[str, object]:
    rows = [{"source": f"the cat {n}", "target": "good day"} for n in range(40)]
    pack_rows(rows, place.beside / "shards", samples_per_shard=20)
    return {"data.shards": place.beside / "shards"}


def torn_shard(place: Place) -> dict[str, object]:
    folder = place.beside / "torn"
    shutil.copytree(place.shards, folder)
    for tar in folder.glob("*.tar"):
        tar.write_bytes(tar.read_bytes().replace(b'"target":', b'"target";'))
    return {"data.shards": folder}


def torn_index(place: Place) -> dict[str, object]:
    folder = place.beside / "torn-index"
    shutil.copytree(place.shards, folder)
    (folder / "index.json").write_text("{")
    return {"data.shards": folder}


def torn_checkpoints(place: Place) -> dict[str, object]:
    for path in place.run.rglob("bridge.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    return {}


def no_checkpoints(place: Place) -> dict[str, object]:
    shutil.rmtree(place.run / "checkpoints")
    return {"run.resume": "must"}


def never_trained(place: Place) -> dict[str, object]:
    shutil.rmtree(place.run / "checkpoints")
    return {}


def language_that_names_no_file(place: Place) -> dict[str, object]:
    (place.beside / "test.csv").write_text("text,label,lang\na,0,en\nb,1,Dari/Persian\n", encoding="utf-8")
    task = {
        "source": place.beside, "prompt": "News: {text} Topic:", "labels": "{0: Business, 1: Sports}",
        "fields": "{language: lang}",
    }  # fmt: skip
    return {f"tasks.mine.{key}": value for key, value in task.items()} | {"evaluation.tasks": "mine"}


def first_stage(place: Place) -> dict[str, object]:
    place.run.rename(place.beside / "first")
    return {"run.start_from": place.beside / "first"}


def other_end_ids(place: Place) -> dict[str, object]:
    folder = shutil.copytree(place.models["llm"], place.beside / "ends")
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [1, 262]}))
    return {"model.llm": folder}


def told_a_language(place: Place) -> dict[str, object]:
    folder = tiny.make_encoder("m2m_100", place.beside / "nllb", vocab=300)
    for path in folder.glob("*token*"):
        path.unlink()
    return {"model.encoder": save_tagged("nllb", folder)}


def without_bos(place: Place) -> dict[str, object]:
    return {"model.llm": tiny.make_llm("qwen2", place.beside / "qwen")}


def not_finite(place: Place) -> dict[str, object]:
    for path in place.run.glob("checkpoints/*/bridge.safetensors"):
        tensors = load_file(path)
        tensors["mapping.end"][0] = float("nan")
        save_file(tensors, path)
        reseal(path.parent)
    return {}


def of_a_later_version(place: Place) -> dict[str, object]:
    for path in place.run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["config"]["fusion"]["invented"] = 1
        path.write_text(json.dumps(manifest))
        reseal(path.parent)
    return {}


def of_an_older_version_with_an_unknown_key(place: Place) -> dict[str, object]:
    for path in place.run.glob("checkpoints/*/manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["config"]["fusion"]["nane"] = manifest["config"]["fusion"].pop("name")  # a flipped bit
        old = ("format", "files", "base", "config", "versions")  # it had no hash of itself
        path.write_text(json.dumps({key: manifest[key] for key in old}))
    return {}


def reseal(folder: Path) -> None:
    """Let a checkpoint's manifest say what is there now."""
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {name: entry_of(folder / name) for name in manifest["files"]}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"sha256": manifest_sha256(manifest)}))


def ds_file(content: object) -> Callable[[Place], dict[str, object]]:
    def make(place: Place) -> dict[str, object]:
        path = place.beside / "ds.json"
        path.write_text(json.dumps(content))
        return {"run.ds_config": path}

    return make


def allowed(key: str, value: object, *more: str) -> dict[str, object]:
    """A changed setting of the function that run.allow_changes names, with a step left to go on."""
    return {key: value, "run.allow_changes": ",".join([key, *more]), "train.steps": 3}


def dangling_config(place: Place) -> dict[str, object]:
    """The record is a link to another folder; the start is refused for another reason."""
    moved = place.beside / "elsewhere.yaml"
    (place.run / "config.yaml").rename(moved)
    (place.run / "config.yaml").symlink_to(moved)
    return {"fusion.state_norm": "rms"}


REASONS = {
    "unknown key": Reason("unknown key", {"train.batch": 9}, new=True),
    "value out of range": Reason("train.lr is -1; expected from 0 to", {"train.lr": -1}),
    "value of another type": Reason("expected a whole number", {"train.steps": "many"}),
    "no recipe": Reason("no recipe", options=("--recipe", "nothing")),
    "no DeepSpeed file": Reason("no DeepSpeed config", {"run.ds_config": "zero9.json"}),
    "wrong DeepSpeed file": Reason("expected 2 or 3", make=ds_file({"zero_optimization": {"stage": 1}})),
    "variable that is not set": Reason("the environment has no NOT_SET", {"data.shards": "$NOT_SET/data"}),
    "world that does not divide the batch": Reason("start 1, 2, 4 ranks", ranks=3),
    "unknown task": Reason("did you mean", {"evaluation.tasks": "testbed_newz"}, new=True),
    "unknown language": Reason("which no task has", {"evaluation.tasks": "testbed_news", "evaluation.languages": "zz"}),
    "language that names no file": Reason("'Dari/Persian'; expected what can", make=language_that_names_no_file),
    "unscored run": Reason("nowhere", {"evaluation.tasks": "testbed_news", "evaluation.llm_from": "nowhere"}),
    "resume never": Reason("expects none", {"run.resume": "never"}),
    "resume must without a checkpoint": Reason("no valid checkpoint", make=no_checkpoints),
    "resume from nothing": Reason("no readable manifest", {"run.resume": "nowhere/step-00000001"}),
    "damaged checkpoints": Reason("no valid checkpoint", make=torn_checkpoints),
    "start_from nothing": Reason("run.start_from is nowhere", {"run.start_from": "nowhere"}, make=never_trained),
    "start_from another bridge": Reason("run.start_from leads to", {"fusion.heads": 2}, make=first_stage),
    "seed": Reason("seed 0; this run has 1", {"run.seed": 1}),
    "global batch": Reason("global_batch 8; this run has 4", {"train.global_batch": 4}),
    "order": Reason("validation_percent", {"data.validation_percent": 10}),
    "fusion": Reason("fusion.name", {"fusion.name": "global_softmax"}),
    "function": Reason("allow_changes=fusion.state_norm", {"fusion.state_norm": "rms", "run.seed": 1}),
    "function of a finished run": Reason(
        "raise train.steps", {"data.max_source_tokens": 20, "run.allow_changes": "data.max_source_tokens"}
    ),
    "function of a run that was shortened": Reason(
        "raise train.steps", {"train.steps": 1, "fusion.state_norm": "rms", "run.allow_changes": "fusion.state_norm"}
    ),
    "chat template": Reason("cannot render a chat", allowed("data.chat_template", "true"), new=True),
    "language": Reason("sinn", allowed("data.source_language", "sinn"), make=told_a_language, new=True),
    "BOS": Reason("has no BOS", {"data.bos": "always"}, make=without_bos, new=True),
    "how a target is written": Reason(
        "data.target_space 'space'; this start has 'none'", {"data.target_space": "none"}
    ),
    "nothing held out": Reason("holds nothing out", {"train.validate_every": 1}),
    "trained LLM": Reason("llm.trainable False", {"llm.trainable": "true"}),
    "trained LLM, allowed": Reason("llm.safetensors and the model differ", allowed("llm.trainable", "true")),
    "trained LLM and LoRA": Reason("lora.rank is 2 and llm.trainable", {"lora.rank": 2, "llm.trainable": "true"}),
    "bias without LoRA": Reason("lora.bias is all and lora.rank 0", {"lora.bias": "all"}),
    "bias of an LLM without any": Reason(
        "has no bias at all", {"lora.bias": "all", **allowed("lora.rank", 2, "lora.bias")}
    ),
    "latents": Reason("mapping.kind 'linear'", {"mapping.kind": "latent", "mapping.latents": 4}),
    "weights that are not finite": Reason("mapping.end holds NaN", make=not_finite),
    "settings of a later version": Reason("another version of bridge_ds", make=of_a_later_version),
    "a damaged key in a manifest without a hash": Reason(
        "or its manifest is damaged", make=of_an_older_version_with_an_unknown_key
    ),
    "end ids": Reason("the set of end ids of the LLM", make=other_end_ids),
    "dtype": Reason("model.dtype", {"model.dtype": "bfloat16"}),
    "no shards": Reason("nowhere", {"data.shards": "nowhere"}, new=True),
    "other shards": Reason("shards_sha256", make=other_shards),
    "embedded shards": Reason("shards_sha256", {"data.shards": "testbed/english"}, ranks=2),
    "damaged index": Reason("index.json", make=torn_index, new=True),
    "damaged shards": Reason("checksum", {"run.resume": "auto"}, make=torn_shard, new=True),
    "no model": Reason("nowhere", {"model.llm": "./nowhere"}, new=True),
    "other LLM": Reason("error: the LLM '", make=other_model("llm", num_hidden_layers=3)),
    "other encoder": Reason("error: the encoder '", make=other_model("encoder", vocab=400)),
    "other tokenizer": Reason("the tokenizer of the LLM", make=other_tokenizer),
    "vocabulary": Reason("100 embedding rows", make=other_model("encoder", vocab=100), new=True),
    "linked record": Reason("allow_changes", make=dangling_config),
}


IN_A_NEW_FOLDER_ALONE = ("damaged shards",)
"""A finished run reads no sample; in a new folder the mapping's scale is measured on the first ones."""


@pytest.fixture(scope="module")
def used(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps."""
    run = tmp_path_factory.mktemp("used") / "run"
    arguments = [*small_run, *settings(run__output=run, train__steps=2, checkpoint__every=1)]
    launch.succeed(launch.train(arguments, 1, run.parent / "logs"))
    return run


@pytest.mark.parametrize("name", REASONS)
def test_a_refused_start_changes_nothing(
    used: Path, small_run: list[str], models: dict[str, Path], shards: Path, tmp_path: Path, name: str
) -> None:
    reason = REASONS[name]
    place = Place(tmp_path / "run", tmp_path, models, shards)
    shutil.copytree(used, place.run)
    more = dict(reason.set) | (reason.make(place) if reason.make else {})
    given = settings(train__steps=2, checkpoint__every=1) + settings(**more)
    for folder in [place.run, tmp_path / "new" / "run"][name in IN_A_NEW_FOLDER_ALONE : 1 + reason.new]:
        before = snapshot(folder)
        output = settings(run__output=folder)
        outcome = launch.train([*small_run, *given, *output, *reason.options], reason.ranks, tmp_path / "logs")
        assert set(outcome.codes) == {2}, outcome.text[-4000:]
        assert reason.words in outcome.outputs[0] and "Traceback" not in outcome.text, outcome.text[-4000:]
        assert snapshot(folder) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("by_script", [False, True])
def test_a_port_that_is_taken(by_script: bool, small_run: list[str], tmp_path: Path) -> None:
    """A user error; under a job script the status that makes it start again with another port."""
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        env = {"MASTER_PORT": str(taken.getsockname()[1])}
        env |= {"BRIDGE_DS_LAST_WORDS": str(tmp_path / "words")} if by_script else {}
        output = settings(run__output=tmp_path / "run")
        outcome = launch.train([*small_run, *output], 1, tmp_path / "logs", env)
    assert outcome.codes == [74 if by_script else 2], outcome.text
    assert "error: another process uses the port" in outcome.text and "Traceback" not in outcome.text


def test_ranks_that_were_started_differently(small_run: list[str], tmp_path: Path) -> None:
    """Each reads its own command, as on nodes whose recipes are not the same."""
    run = tmp_path / "run"
    given = launch.train_command([*small_run, *settings(run__output=run)])
    command = ["bash", "-c", 'exec "$@" --set train.lr=0.00$((RANK + 1))', "rank", *given]
    outcome = launch.Job(command, 2, tmp_path / "logs").wait()
    assert outcome.codes == [2, 2] and "Traceback" not in outcome.text, outcome.text[-4000:]
    assert "rank 1 was started with train.lr 0.002, rank 0 with 0.001" in outcome.outputs[0]
    assert not run.exists()
