"""Settings under their old names: accepted everywhere, told where a person wrote them, the same setting as ever."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.config.build import from_dict, to_dict
from bridge_ds.config.changes import changes
from bridge_ds.config.load import flatten, load_config, load_run_config, overridden, save_config
from bridge_ds.config.renames import RENAMED, _note, with_new_names, with_old_names
from bridge_ds.config.schema import Config
from bridge_ds.errors import ConfigError

OLD = {
    "fusion.path": "torch",
    "fusion.normalize": "rms",
    "mapping.calibrate": "false",
    "train.clip": "0.5",
    "train.warmup": "0.1",
    "checkpoint.keep": "7",
    "evaluation.calibrate": "true",
}


@pytest.fixture(autouse=True)
def notes(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    _note.cache_clear()
    caplog.set_level(logging.INFO, logger="bridge_ds")
    return caplog


def test_an_old_name_is_the_new_setting_and_is_told_once(notes: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    assert OLD.keys() == RENAMED.keys() and set(RENAMED.values()) <= set(flatten(Config()))
    typed = [f"{key}={value}" for key, value in OLD.items()]
    config = load_config("testbed", [*typed, "run.allow_changes=fusion.normalize"])
    assert config.run.allow_changes == ("fusion.state_norm",)
    assert (config.fusion.backend, config.fusion.state_norm, config.mapping.match_embedding_rms) == (
        "torch", "rms", False
    )  # fmt: skip
    assert (config.train.max_grad_norm, config.train.warmup_ratio) == (0.5, 0.1)
    assert config.checkpoint.keep_last == 7 and config.evaluation.null_scores
    assert load_config("testbed", typed).train == config.train
    assert [record.message for record in notes.records] == [
        f"note: {old} is now called {new}; the old name still works." for old, new in RENAMED.items()
    ]
    notes.clear()
    _note.cache_clear()
    (tmp_path / "mine.yaml").write_text("base: testbed\ntrain: {clip: 3}\n")
    assert load_config(str(tmp_path / "mine.yaml")).train.max_grad_norm == 3
    assert load_config(str(tmp_path / "mine.yaml"), ["train.max_grad_norm=4"]).train.max_grad_norm == 4
    assert overridden(config, ["train.clip=5"]).train.max_grad_norm == 5
    assert [record.message.split()[1] for record in notes.records] == ["train.clip"]
    with pytest.raises(ConfigError, match=r"did you mean 'train\.max_grad_norm'\?"):
        load_config("testbed", ["train.clp=1"])


def test_both_names_are_an_error(tmp_path: Path) -> None:
    words = r"train\.clip and train\.max_grad_norm are both given, .* take train\.clip out"
    with pytest.raises(ConfigError, match=words):
        load_config("testbed", ["train.clip=1", "train.max_grad_norm=1"])
    (tmp_path / "mine.yaml").write_text("train: {clip: 3, max_grad_norm: 4}\n")
    with pytest.raises(ConfigError, match=rf"mine\.yaml: {words}"):
        load_config(str(tmp_path / "mine.yaml"))


def test_a_record_is_read_in_silence_and_is_no_change(notes: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    config = load_config("testbed", [f"{RENAMED[key]}={value}" for key, value in OLD.items()])
    old = with_old_names(to_dict(config))
    assert old["train"]["clip"] == 0.5 and "max_grad_norm" not in old["train"]
    assert list(with_new_names(old)["train"]) == list(to_dict(config)["train"]) and with_new_names(old) == to_dict(
        config
    )
    assert from_dict(old) == config and changes(from_dict(old), config) == []
    save_config(config, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text()
    assert not any(f"  {key.split('.')[1]}:" in text for key in OLD)
    for key, new in RENAMED.items():
        text = text.replace(f"  {new.split('.')[1]}:", f"  {key.split('.')[1]}:")
    (tmp_path / "config.yaml").write_text(text)
    assert load_run_config(tmp_path) == config and not notes.records


def test_an_export_and_scores_of_before_the_renames_are_what_they_were() -> None:
    from bridge_ds.evaluation.scoring import _stores
    from bridge_ds.hub.config import BridgeConfig, from_run, to_run

    config = load_config("testbed", ["fusion.state_norm=rms", "evaluation.null_scores=true"])
    shared: dict[str, Any] = json.loads(from_run(config, {}).to_json_string())
    shared["fusion"]["normalize"] = shared["fusion"].pop("state_norm")
    assert to_run(BridgeConfig.from_dict(shared)).fusion.state_norm == "rms"
    # Answers are taken up again where the hash of what decides them is the same, so it keeps the first names.
    llm = _stores(config, None, "", None)[1]
    model = to_dict(config.model)
    lengths = {"augment_prompt": False, "max_prompt_tokens": 512, "max_source_tokens": 48, "bos": "auto"}
    identity = {"model": model, "lengths": lengths, "scoring": {"calibrate": True, "max_new_tokens": 512}}
    assert llm._identity == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    bridge = _stores(config, None, "", None)[0]
    parts = ("encoder", "lora", "fusion", "mapping", "data", "train")
    old = with_old_names(to_dict(config))
    assert old["fusion"]["normalize"] == "rms" and old["mapping"]["calibrate"] and "clip" in old["train"]
    identity |= {"bridge": {part: old[part] for part in parts} | {"checkpoint": "", "base": {}}, "seed": 0}
    assert bridge._identity == hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
