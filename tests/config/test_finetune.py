"""What `bridge-ds finetune` makes of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_ds.commands import finetune
from bridge_ds.config.effect import idle
from bridge_ds.config.finetune import finetune_config, first_config
from bridge_ds.config.load import flatten, load_config
from bridge_ds.errors import ConfigError
from bridge_ds.training_options import parse_train


def test_a_bridges_recipe_gives_the_data_and_finetune_what_is_trained() -> None:
    bridge, ours = flatten(load_config("testbed")), flatten(finetune_config("testbed"))
    assert {key: ours[key] for key in ours if ours[key] != bridge[key]} == {
        "model.encoder": "none", "run.output": "runs/testbed_llm", "lora.rank": 16, "lora.alpha": 32, "train.lr": 2e-4,
        "evaluation.languages": ["en"],
    }  # fmt: skip
    whole = finetune_config("testbed", ["llm.trainable=true", "run.output=mine"])
    assert (whole.lora.rank, whole.train.lr, whole.llm.lr_scale, whole.run.output) == (0, 2e-5, 1, "mine")
    asked = finetune_config("testbed", ["model.encoder=x", "lora.rank=4", "train.lr=1e-3", "evaluation.languages=[si]"])
    assert not asked.model.has_encoder
    assert (asked.lora.rank, asked.lora.alpha, asked.train.lr) == (4, 16, 1e-3)
    assert asked.evaluation.languages == ("si",)


@pytest.mark.parametrize("form", ["every_layer", "gated_prompt"])
def test_the_llm_is_taught_without_what_is_injected(form: str) -> None:
    settings = [f"injection.form={form}", "llm.finetune=true"]
    assert load_config("testbed", settings).injection.form == form
    for found in (finetune_config("testbed", settings), first_config("testbed", settings, load_config("testbed"))):
        assert found.injection.spec is None and not found.model.has_encoder


def test_the_second_stage_of_a_bridge_does_not_begin_with_its_first() -> None:
    assert load_config("mindmerger_augmentation").run.start_from
    config = finetune_config("mindmerger_augmentation")
    assert config.run.start_from == "" and any(line.startswith("data.augment_prompt has no") for line in idle(config))


def test_a_recipe_without_an_encoder_is_taken_as_it_is(tmp_path: Path) -> None:
    config = finetune_config("xnli_llama1b_english")
    assert config == load_config("xnli_llama1b_english") and config.lora.targets == ("q_proj", "k_proj", "v_proj")
    assert (config.data.shards, config.train.lr) == (load_config("xnli_mt5xl_llama1b").data.shards, 2e-5)
    with pytest.raises(ConfigError, match=r"model.encoder is none, and nothing of the LLM is trained; expected lora"):
        finetune_config("xnli_llama1b_english", ["lora.rank=0"])


def test_the_command_is_the_trainers_with_an_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("os.execv", lambda _, words: started.append(words))
    monkeypatch.setenv("MASTER_PORT", "29111")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    finetune.main(["--recipe", "testbed", "--num_gpus", "2"])
    finetune.main(["--recipe", "testbed", "--", "--master_port", "29222"])
    assert started[0][5] == "--master_port=29111" and started[1][4:6] == ["--master_port", "29222"]
    assert not any("29111" in word for word in started[1])
    started.clear()
    monkeypatch.delenv("MASTER_PORT")
    finetune.main(["--recipe", "testbed", "--num_gpus", "2"])
    (words,) = started
    assert words[2:4] == ["-m", "deepspeed.launcher.runner"] and words[4] == "--num_gpus=2"
    assert words[5].endswith("bridge_ds/train.py") and words[6:] == ["--finetune", "--recipe", "testbed"]
    assert parse_train(words[6:]).finetune and not parse_train([]).finetune
    assert finetune.main(["--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "encoder: none" in said and "output: runs/testbed_llm" in said and "read from the models" not in said


def test_the_llm_that_is_to_teach_itself_is_taught_the_task_before() -> None:
    taught = ("data.objective=self_teaching", "llm.finetune=true")
    assert finetune_config("testbed", taught).data.objective == "task"
    assert first_config("testbed", taught, load_config("testbed", taught)).data.objective == "task"
    assert first_config("testbed", (), load_config("testbed")).data.objective == "task"
    kept = ("data.objective=prefix_lm",)
    assert finetune_config("testbed", kept).data.objective == "prefix_lm"
