"""Whatever config.yaml says by now, a run is used as its checkpoint was trained: in every door that loads one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from bridge_ds.config.load import load_run_config, save_config
from bridge_ds.errors import CheckpointError, ConfigError
from bridge_ds.inference.load import load_trained, open_run
from tests.made import make_run

OTHERS = {
    "fusion": {"state_norm": "rms", "heads": 3},
    "mapping": {"kind": "mlp"},
    "data": {"max_source_tokens": 3, "augment_prompt": True, "max_target_tokens": 2},
    "model": {"dtype": "bfloat16"},
}
"""Settings of the function, all of them other than the checkpoint's."""
TEXT = "the cat sat on the mat"


@pytest.fixture(scope="module")
def runs(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, and a copy whose config.yaml is that of a start whose settings are all others."""
    root = tmp_path_factory.mktemp("used")
    settings = [f"model.{part}={folder}" for part, folder in models.items()]
    made = {"own": make_run(root / "own", settings), "other": root / "other"}
    shutil.copytree(made["own"], made["other"])
    path = made["other"] / "config.yaml"
    values: dict[str, Any] = yaml.safe_load(path.read_text())
    for part, keys in OTHERS.items():
        values[part] |= keys
    values["evaluation"]["tasks"] = ["testbed_news"]
    path.write_text(yaml.safe_dump(values))
    return made


def test_the_checkpoints_function_and_the_last_starts_places(runs: dict[str, Path]) -> None:
    said: list[str] = []
    own, _ = open_run(runs["own"], note=pytest.fail)
    used, checkpoint = open_run(runs["other"], note=said.append)
    assert (used.fusion, used.mapping, used.data, used.model) == (own.fusion, own.mapping, own.data, own.model)
    assert used.evaluation.tasks == ("testbed_news",)  # what is scored is no part of it
    assert len(said) == sum(map(len, OTHERS.values()))
    assert f"{checkpoint.folder.name} was written with fusion.state_norm 'none', config.yaml has 'rms'" in "".join(said)
    # What is asked for by name is done, and said.
    said.clear()
    assert open_run(runs["own"], ["data.max_source_tokens=9"], note=said.append)[0].data.max_source_tokens == 9
    assert said == ["data.max_source_tokens is 9 as asked; step-00000001 was written with 48."]


def test_every_door_gives_the_same_with_another_record(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval")
    from bridge_ds.doctor.diagnose import diagnose
    from bridge_ds.doctor.load import load_run
    from bridge_ds.doctor.measure import examine
    from bridge_ds.generate.pipeline import GenerateOptions, Pipeline
    from bridge_ds.harness.model import BridgeLM
    from bridge_ds.hub.source import open_source

    def shared(run: Path) -> dict[str, Any]:
        values = json.loads(open_source(str(run)).config.to_json_string())
        return values

    assert shared(runs["other"]) == shared(runs["own"])
    answers, harness, losses = {}, {}, {}
    for name, run in runs.items():
        answerer = Pipeline.load(str(run), GenerateOptions(max_new_tokens=6))  # generate and serve
        answers[name] = answerer.write([answerer.row(TEXT)]), answerer.identity()
        opened = BridgeLM(run=str(run), device="cpu")
        harness[name] = opened.config, opened.answerer.prompts.limits, opened.window
        losses[name] = examine(load_run(run, torch.device("cpu")), 8)[0]
    assert answers["other"] == answers["own"]
    assert harness["other"][1:] == harness["own"][1:] and harness["other"][0].fusion == harness["own"][0].fusion
    assert losses["other"].loss_right == losses["own"].loss_right
    assert "config.yaml has 'rms'" in str(diagnose(losses["other"]))


def test_base_models_that_moved_are_found_where_the_last_start_found_them(
    runs: dict[str, Path], models: dict[str, Path], tmp_path: Path
) -> None:
    run = shutil.copytree(runs["own"], tmp_path / "run")
    moved = shutil.copytree(models["llm"], tmp_path / "moved")
    config = load_run_config(run, [f"model.llm={moved}"])
    save_config(config, run / "config.yaml")
    used, checkpoint = open_run(run, note=pytest.fail)
    assert used.model.llm == str(moved)
    load_trained(run, used, torch.device("cpu"), checkpoint=checkpoint, note=pytest.fail)


def test_a_folder_without_a_run_or_a_checkpoint_is_one_sentence(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config"):
        open_run(tmp_path, note=pytest.fail)
    shutil.copyfile(runs["own"] / "config.yaml", tmp_path / "config.yaml")
    with pytest.raises(CheckpointError, match="no valid checkpoint"):
        open_run(tmp_path, note=pytest.fail)
