"""Recipes, overrides and DeepSpeed files: what is accepted, and the one sentence for what is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bridge_ds.config.load import RECIPES, flatten, from_dict, load_config, load_run_config, save_config, to_dict
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config, TrainConfig
from bridge_ds.config.zero import (
    accumulation,
    engine_config,
    read_ds_config,
    resolve_micro_batch,
    shard_config,
    stage,
)
from bridge_ds.errors import ConfigError, LaunchError


@pytest.mark.parametrize("recipe", sorted(path.stem for path in RECIPES.glob("*.yaml")))
def test_every_recipe_resolves(recipe: str) -> None:
    config = load_config(recipe)
    assert from_dict(to_dict(config)) == config
    assert stage(read_ds_config(config.run.ds_config)) in (2, 3)
    assert accumulation(resolve_micro_batch(config, 1), 1) >= 1


def test_the_papers_recipe_has_the_papers_numbers() -> None:
    config = load_config("xnli_mt5xl_llama1b")
    assert (config.train.lr, config.train.betas, config.train.weight_decay) == (3e-5, (0.8, 0.999), 3e-7)
    assert (config.train.global_batch, config.train.max_grad_norm, config.train.warmup_ratio) == (8, 1.0, 0.05)
    assert config.train.steps * config.train.global_batch == 300_000


def test_recipes_of_the_peers_start_the_end_vector_as_their_code_does_and_old_runs_as_they_did(tmp_path: Path) -> None:
    for recipe in ("xnli_mt5xl_llama1b", "mindmerger_mapping", "mindmerger_augmentation"):
        mapping = load_config(recipe).mapping
        assert (mapping.end_init, mapping.match_embedding_rms) == ("zeros", False)
    for recipe in ("testbed", "mt5xl_13b", "mt5xl_70b"):
        assert load_config(recipe).mapping.end_init == "normal"
    recorded = to_dict(load_config("testbed"))
    recorded["mapping"] = {"kind": "linear", "calibrate": True}  # of before
    del recorded["lora"]["bias"]
    assert from_dict(recorded) == load_config("testbed")


def test_overrides_have_the_types_of_the_schema() -> None:
    texts = ["train.lr=1e-3", "train.steps=7", "train.betas=[0.5, 0.6]", "model.activation_checkpointing=true",
             "run.output=runs/x=y", "evaluation.tasks=xnli,testbed_news", "model.llm_revision=null"]  # fmt: skip
    config = load_config("testbed", texts)
    assert (config.train.lr, config.train.steps, config.train.betas) == (1e-3, 7, (0.5, 0.6))
    assert config.model.activation_checkpointing is True
    assert config.run.output == "runs/x=y"
    assert config.evaluation.tasks == ("xnli", "testbed_news")
    assert config.model.llm_revision is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rate=1", "unknown key 'train.learning_rate'"),
        ("train.stpes=1", "did you mean 'train.steps'"),
        ("optim.lr=1", "did you mean 'train.lr'"),
        ("train.steps=many", "train.steps is 'many'; expected a whole number"),
        ("train.steps=1.5", "expected a whole number"),
        ("train.steps=0", "train.steps is 0; expected from 1 to 1,000,000,000"),
        ("mapping.end_init=zero", "did you mean 'zeros'"),
        ("mapping.kind=latents", "did you mean 'latent'"),
        ("mapping.latents=0", "mapping.latents is 0; expected from 1 to 16,384"),
        ("injection.llm_layers=[2, 0]", "injection.llm_layers is '[2, 0]'; expected ascending numbers, each once"),
        ("injection.llm_layers=[1, 1]", "expected ascending numbers, each once"),
        ("mapping.dropout=1", "mapping.dropout is 1; expected from 0 to below 1"),
        ("lora.bias=lora", "lora.bias is 'lora'; expected one of none, all, lora_only"),
        ("lora.bias=lora_only", "lora.bias is lora_only and lora.rank 0"),
        ("model.dtype=float16", "expected one of bfloat16, float32"),
        ("fusion.name=transformer_softmx", "did you mean 'transformer_softmax'"),
        ("fusion.dropout=1", "from 0 to below 1"),
        ("fusion.heads=0", "from 1 to 100,000"),
        ("fusion.state_norm=rmsnorm", "did you mean 'rms'"),
        ("train.betas=[1]", "expected 2"),
        ("model.activation_checkpointing=perhaps", "expected true or false"),
        ("lr=1", "not of the form part.key=value"),
        ("train=3", "not of the form"),
    ],
)
def test_wrong_overrides(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("testbed", [text])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [("a: [", "not readable as YAML"), ("- 1", "holds a list"), ("train: 3", "expected keys under it")],
)
def test_wrong_recipes(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError, match=words):
        load_config(str(path))


def test_unknown_recipe_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="testbed"):
        load_config("tetsbed")


def test_run_config_round_trip(tmp_path: Path) -> None:
    config = load_config("testbed", ["run.seed=3"])
    save_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == config
    assert flatten(config)["run.seed"] == 3
    with pytest.raises(ConfigError, match=r"there is no folder .*elsewhere"):
        load_run_config(tmp_path / "elsewhere")


ZERO = {"stage": 3}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"zero_optimization": ZERO | {"reduce_bucket_size": "auto"}}, "zero_optimization.reduce_bucket_size"),
        ({"zero_optimization": ZERO, "elasticity": {}}, "elasticity, which DeepSpeed has removed"),
        ({"zero_optimization": ZERO | {"mics_shard_size": 2}}, "mics_shard_size"),
        ({"zero_optimization": ZERO, "train_batch_size": 8}, "train_batch_size, which the recipe owns"),
        (
            {"optimizer": {"params": {"lr": "auto"}}, "train_batch_size": "auto", "fp16": {"enabled": "auto"}},
            "train_batch_size, optimizer, fp16, which the recipe owns; take them out and set train.global_batch",
        ),
        ({"zero_optimization": ZERO | {"stage": "auto"}, "a": 1}, 'stage = "auto", which only'),
        ({"zero_optimisation": ZERO}, "did you mean zero_optimization?"),
        ({"zero_optimization": {}}, "has no zero_optimization.stage"),
        ({"zero_optimization": ZERO, "bf16": {"enabled": True}}, "set model.dtype"),
        ({"zero_optimization": {"stage": 1}}, "expected 2 or 3"),
        ({}, "expected 2 or 3"),
        ([], "holds a list"),
    ],
)
def test_wrong_ds_configs(tmp_path: Path, values: object, words: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError) as caught:
        read_ds_config(str(path))
    assert words in str(caught.value)


def test_ds_config_that_is_not_json_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_ds_config(str(path))
    with pytest.raises(ConfigError, match=r"zero3\.json"):
        read_ds_config("zero9.json")


def test_batches_that_do_not_divide_name_worlds_that_do() -> None:
    config = Config(train=TrainConfig(global_batch=24, micro_batch=4))
    assert [accumulation(config, world) for world in (1, 2, 3, 6)] == [6, 3, 2, 1]
    with pytest.raises(LaunchError, match="start 1, 2, 3, 6 ranks"):
        accumulation(config, 4)
    with pytest.raises(LaunchError, match="no multiple"):
        accumulation(Config(train=TrainConfig(global_batch=10, micro_batch=4)), 1)


def test_no_micro_batch_means_the_whole_share_of_a_rank() -> None:
    config = Config(train=TrainConfig(global_batch=24, micro_batch=0))
    for world in (1, 2, 3):
        resolved = resolve_micro_batch(config, world)
        assert resolved.train.micro_batch == 24 // world
        assert accumulation(resolved, world) == 1
    with pytest.raises(LaunchError, match="24 does not divide over 5 ranks"):
        resolve_micro_batch(config, 5)
    assert resolve_micro_batch(Config(), 4) == Config()


def test_merged_ds_config() -> None:
    config = load_config("mt5xl_13b")
    values = read_ds_config("zero3.json")
    merged = engine_config(config, values, 16)
    assert merged["train_micro_batch_size_per_gpu"] * merged["gradient_accumulation_steps"] * 16 == 128
    assert "bf16" not in merged
    assert shard_config(config, values)["bf16"] == {"enabled": True}


def test_embedded_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve("google/mt5-xl") == "google/mt5-xl"
    assert Path(resolve("testbed/llm")).parts[-2:] == ("weights", "llm")
    (tmp_path / "testbed" / "llm").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve("testbed/llm") == "testbed/llm"


def test_data_of_tasks_is_a_mapping_of_its_own(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("evaluation:\n  data:\n    xnli: {source: data/xnli, fields: {premise: sentence1}}\n")
    config = load_config(str(recipe), ["evaluation.data.xnli.revision=v1", "evaluation.data.mgsm={source: m}"])
    given = config.evaluation.data
    assert (given["xnli"].source, given["xnli"].revision, given["xnli"].fields) == (
        "data/xnli", "v1", {"premise": "sentence1"}
    )  # fmt: skip
    assert given["mgsm"].source == "m" and given["mgsm"].revision is None
    save_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == config
    changed = load_run_config(tmp_path, ["evaluation.data.xnli.source=other"])
    assert changed.evaluation.data["xnli"].source == "other"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("evaluation.data.xnli.feilds={}", "did you mean 'evaluation.data.xnli.fields'"),
        ("evaluation.data=here", "evaluation.data is 'here'; expected names with values"),
        ("evaluation.data.xnli=here", "expected keys under it, such as evaluation.data.xnli.source"),
        ("evaluation.data.xnli.fields=[a]", "evaluation.data.xnli.fields is ['a']; expected names with values"),
        ("evaluation.max_new_tokens=0", "evaluation.max_new_tokens is 0; expected from 1 to 1,000,000"),
        ("evaluation..x=1", "is not of the form part.key=value"),
        ("evaluation.tasks.x=1", "expected keys under it"),
    ],
)
def test_wrong_data_of_tasks(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as found:
        load_config("testbed", [text])
    assert words in str(found.value)


def write(folder: Path, **recipes: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in recipes.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


def test_a_recipe_inherits_key_by_key_along_a_chain(tmp_path: Path) -> None:
    data = (
        "evaluation:\n  tasks: [xnli, xcopa]\n  data:\n    xnli: {source: here, fields: {premise: a, hypothesis: b}}\n"
    )
    write(tmp_path, first=f"base: mt5xl_13b\ntrain: {{lr: 1.0, steps: 5}}\n{data}")
    write(tmp_path / "of", second="base: ../first.yaml\ntrain: {steps: 7}\nevaluation: {tasks: [xnli]}\n",
          third="base: second.yaml\nevaluation: {data: {xnli: {fields: {premise: c}}}}\n")  # fmt: skip
    config, shipped = load_config(str(tmp_path / "of" / "third.yaml"), ["train.lr=2"]), load_config("mt5xl_13b")
    assert (config.train.lr, config.train.steps, config.train.betas) == (2.0, 7, shipped.train.betas)
    assert config.model == shipped.model and config.evaluation.tasks == ("xnli",)
    xnli = config.evaluation.data["xnli"]
    assert (xnli.source, xnli.fields) == ("here", {"premise": "c", "hypothesis": "b"})
    save_config(config, tmp_path / "config.yaml")
    assert "base:" not in (tmp_path / "config.yaml").read_text() and load_run_config(tmp_path) == config


@pytest.mark.parametrize(
    ("recipes", "words"),
    [
        ({"a": "base: b.yaml", "b": "base: a.yaml"}, "b.yaml has base: a.yaml, which leads back to {}/a.yaml"),
        ({"a": "base: a.yaml"}, "a.yaml has base: a.yaml, which leads back to"),
        ({"a": "base: c.yaml"}, "a.yaml has base: c.yaml, but there is neither {}/c.yaml nor"),
        ({"a": "base: [b]", "b": ""}, "has base: ['b'], but that is no name"),
        ({"a": "base: b.yaml", "b": "train: {stpes: 3}"}, "b.yaml: unknown key 'train.stpes'; did you mean"),
        (
            {"a": "train.steps: 3"},
            "a.yaml: unknown key 'train.steps'; a file has no dots in its keys; write steps under train",
        ),
        ({"a": "base: b.yaml\ntrain: {stpes: 3}", "b": ""}, "a.yaml: unknown key 'train.stpes'"),
        ({"a": "base: b.yaml", "b": "train: 3"}, "b.yaml: train is 3; expected keys under it"),
        ({"a": "base: b.yaml", "b": "- 1"}, "b.yaml holds a list"),
    ],
)
def test_wrong_bases_are_one_sentence_with_the_file(tmp_path: Path, recipes: dict[str, str], words: str) -> None:
    write(tmp_path, **recipes)
    with pytest.raises(ConfigError) as found:
        load_config(str(tmp_path / "a.yaml"))
    assert words.format(tmp_path) in str(found.value) and "\n" not in str(found.value)


def test_a_value_of_older_runs_is_what_it_became() -> None:
    assert load_config("testbed", ["fusion.backend=native"]).fusion.backend == "torch"
