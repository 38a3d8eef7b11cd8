"""Settings that change nothing beside another one: each is told by name, and none that does something is."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from bridge_ds.config.effect import RULES, idle
from bridge_ds.config.load import RECIPES, flatten, load_config
from bridge_ds.config.schema import Config

ROOT = Path(__file__).parents[2]
# (settings, what is said) and then what makes the same settings count.
CASES = {
    "encoder": (["encoder.lr_scale=0.5", "encoder.weight_decay=0.2"], "encoder.lr_scale, encoder.weight_decay have no "
                "effect, as encoder.trainable is false.", ["encoder.trainable=true"]),
    "llm": (["llm.dropout=true"], "llm.dropout has no effect, as llm.trainable is false.", ["llm.trainable=true"]),
    "lora": (["lora.alpha=32", "lora.targets=[q_proj]"], "lora.alpha, lora.targets have no effect, as lora.rank is 0.",
             ["lora.rank=4"]),
    "shown": (["data.augment_share=0.5", "data.augment_cipher=0.5"], "data.augment_share, data.augment_cipher have no "
              "effect, as data.augment_prompt is false.",
              ["data.augment_prompt=true"]),
    "form": (["injection.lr_scale=2"], "injection.lr_scale has no effect, as injection.form is none.",
             ["injection.form=gated_prompt"]),
    "every_layer": (["injection.form=gated_prompt", "injection.mlp=true"], "injection.mlp has no effect, as "
                    "injection.form is gated_prompt.", ["injection.form=every_layer"]),
    "no_prompt": (["injection.form=every_layer", "injection.soft_prompt=false", "fusion.name=global_softmax"],
                  "fusion.name has no effect, as injection.soft_prompt is false.", ["injection.soft_prompt=true"]),
    "fitted": (["mapping.init=embeddings", "mapping.end_init=zeros"], "mapping.end_init has no effect, as "
               "mapping.init is embeddings.", ["mapping.init=random"]),
    "init_samples": (["mapping.init_samples=5"], "mapping.init_samples has no effect, as mapping.init is random.",
                ["mapping.init=embeddings"]),
    "begun": (["mapping.init=embeddings", "run.start_from=runs/a"], "mapping.init has no effect, as run.start_from "
              "names the mapping to begin with.", ["run.start_from="]),
    "taught": (["llm.finetune_settings=[train.steps=3]"], "llm.finetune_settings has no effect, as llm.finetune is "
               "false.", ["llm.finetune=true"]),
    "choose": (["evaluation.choose=true"], "evaluation.choose has no effect, as evaluation.tasks is empty: nothing is "
               "scored after training.", ["evaluation.tasks=[xnli]"]),
    "heads": (["fusion.name=last_layer", "fusion.heads=2"], "fusion.heads has no effect, as fusion.name is last_layer.",
              ["fusion.name=transformer_softmax"]),
    "dropout": (["fusion.name=global_softmax", "fusion.dropout=0.2"],
                "fusion.dropout has no effect, as fusion.name is global_softmax.", ["fusion.name=transformer_softmax"]),
    "normalize": (["fusion.name=last_layer", "fusion.state_norm=rms"],
                  "fusion.state_norm has no effect, as fusion.name is last_layer.", ["fusion.name=global_softmax"]),
    "embeddings": (["fusion.name=last_layer", "fusion.include_embeddings=true"],
                   "fusion.include_embeddings has no effect, as fusion.name is last_layer.",
                   ["fusion.name=global_softmax"]),
    "embeddings beside a form": (["fusion.name=last_layer", "fusion.include_embeddings=true"],
                   "fusion.include_embeddings has no effect, as fusion.name is last_layer.",
                   ["injection.form=every_layer"]),
    "rate": (["fusion.name=last_layer", "fusion.lr_scale=2"], "fusion.lr_scale has no effect, as fusion.name is "
             "last_layer.", ["fusion.name=global_softmax"]),
    "revision": (["model.llm_revision=abc"], "model.llm_revision has no effect, as model.llm is a folder.",
                 ["model.llm=someone/model"]),
    "chat": (["data.target_space=space", "data.chat_template=true"], "data.target_space has no effect, as "
             "data.chat_template is true, which an answer follows at once.", ["data.chat_template=false"]),
    "mixture": (["data.shards=a", "data.mixture=[b=1]"], "data.shards has no effect, as data.mixture names the data "
                "sets.", ["data.mixture=[]"]),
    "cache": (["data.cache_dir=c"], "data.cache_dir has no effect, as no data set is a URL.",
              ["data.shards=https://a.b/c"]),
    "staged": (["data.shards=https://a.b/c", "data.cache_gib=9", "data.stage_dir=s"],
               "data.cache_gib has no effect, as data.stage_dir is where all shards go.", ["data.stage_dir="]),
    "states": (["encoder.trainable=true", "data.states_cache=s", "data.states_cache_gib=9"], "data.states_cache, "
               "data.states_cache_gib have no effect, as encoder.trainable is true.", ["encoder.trainable=false"]),
    "states limit": (["data.states_cache_gib=9"], "data.states_cache_gib has no effect, as data.states_cache is empty.",
                     ["data.states_cache=s"]),
    "chunk": (["data.length_chunk=16"], "data.length_chunk has no effect, as data.length_window is 1.",
              ["data.length_window=4"]),
    "prefetch": (["data.workers=0", "data.prefetch=9"], "data.prefetch has no effect, as data.workers is 0.",
                 ["data.workers=2"]),
    "together": (["encoder.dropout=true", "train.encode_once_gib=9"],
                 "train.encode_once_gib has no effect, as encoder.dropout is true.", ["encoder.dropout=false"]),
    "compile": (["encoder.dropout=true", "lora.rank=4", "train.compile=frozen"], "train.compile has no effect, as no "
                "base model is frozen, without dropout and without LoRA.", ["lora.rank=0"]),
    "micro": (["train.micro_batch=2", "data.tokens_per_micro_batch=9000"], "train.micro_batch has no effect, as "
              "data.tokens_per_micro_batch cuts micro-batches.", ["data.tokens_per_micro_batch=0"]),
    "samples": (["train.validation_samples=9"], "train.validation_samples has no effect, as data.validation_percent is "
                "0.", ["data.validation_percent=5"]),
    "never": (["data.validation_percent=5", "train.validate_every=0", "train.validation_samples=9"],
              "train.validation_samples has no effect, as train.validate_every is 0.", ["train.validate_every=3"]),
    "best": (["checkpoint.keep_last=0", "checkpoint.keep_best=2"],
             "checkpoint.keep_best has no effect, as checkpoint.keep_last is 0, which keeps all.",
             ["checkpoint.keep_last=1"]),
    "track": (["track.uri=none", "track.name=mine"], "track.name has no effect, as track.uri is none.", ["track.uri="]),
    "scoring": (["evaluation.tasks=[]", "evaluation.limit=9"], "evaluation.limit has no effect, as evaluation.tasks is "
                "empty: nothing is scored after training.", ["evaluation.tasks=[testbed_news]"]),
    "llm alone": (["model.encoder=none", "llm.trainable=true", "data.augment_prompt=true"],
                  "data.augment_prompt has no effect, as model.encoder is none.", ["model.encoder=testbed/encoder"]),
    "encoder alone": (["model.llm=none", "encoder.trainable=true", "data.objective=denoise", "data.mix_words=w.tsv",
                       "train.compile=frozen"], "data.mix_words, train.compile have no effect, as model.llm is none.",
                      ["model.llm=x", "data.objective=task"]),
    "bridge of none": (["model.llm=none", "encoder.trainable=true", "data.objective=denoise", "data.chat_template=true",
                        "mapping.kind=mlp"],
                       "data.chat_template, mapping.kind have no effect, as model.llm is none.",
                       ["model.llm=x", "data.objective=task"]),
    "states of it": (["model.llm=none", "encoder.trainable=true", "data.objective=denoise", "data.states_cache=s"],
                     "data.states_cache has no effect, as model.llm is none.",
                     ["model.llm=x", "encoder.trainable=false", "data.objective=task"]),
    "no pairs": (["model.llm=none", "encoder.trainable=true", "data.objective=denoise", "adapt.layers=[1]"],
                 "adapt.layers has no effect, as data.objective does not have align.", ["data.objective=align"]),
    "mixed alone": (["model.encoder=none", "llm.trainable=true", "data.mix_words=w.tsv"],
                    "data.mix_words has no effect, as model.encoder is none.", ["model.encoder=testbed/encoder"]),
    "mixed": (["data.mix_words_share=0.3", "data.mix_words_languages=[si]"], "data.mix_words_share, "
              "data.mix_words_languages have no effect, as data.mix_words is empty.", ["data.mix_words=w.tsv"]),
    "weight": (["train.teaching_weight=2", "data.objective=self_teaching"], "train.teaching_weight has no effect, as "
               "data.objective is not task_and_self_teaching and no sample is replayed.",
               ["data.objective=task_and_self_teaching"]),
    "temperature": (["train.teaching_temperature=2"], "train.teaching_temperature has no effect, as the LLM "
                    "alone teaches no sample (data.objective, data.replay).",
                    ["data.augment_prompt=true", "data.replay=0.5"]),
    "replay": (["data.replay=0.5"], "data.replay has no effect, as data.augment_prompt is false.",
               ["data.augment_prompt=true"]),
    "task": (["evaluation.tasks=[xnli]", "evaluation.data.xcopa.source=f"],
             "evaluation.data.xcopa has no effect, as evaluation.tasks has no xcopa.",
             ["evaluation.tasks=[xnli,xcopa]"]),
}  # fmt: skip


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    """Nothing of its own."""
    (tmp_path / "empty.yaml").write_text("")
    return str(tmp_path / "empty.yaml")


@pytest.mark.parametrize("name", CASES)
def test_a_setting_without_effect_is_told_and_one_with_effect_is_not(recipe: str, name: str) -> None:
    settings, said, counting = CASES[name]
    assert said in idle(load_config(recipe, settings))
    assert not any(said.split(" ")[0].rstrip(",") in line for line in idle(load_config(recipe, [*settings, *counting])))


def test_every_rule_is_of_real_settings_and_is_met_here(recipe: str) -> None:
    known = flatten(Config())
    fired = set()
    for name, (settings, _, _) in CASES.items():
        if name != "lora":
            config = load_config(recipe, settings)
            fired |= {rule.keys for rule in RULES if rule.why(config)}
    for rule in RULES:
        assert all(key in known for key in rule.keys)
        elsewhere = ("lora.", "encoder.dropout", "model.encoder_revision")
        assert rule.keys in fired or rule.keys[0].startswith(elsewhere), rule.keys


def test_a_wish_that_is_met_anyway_and_a_default_are_not_told(recipe: str) -> None:
    assert idle(Config()) == []
    met = ["fusion.name=last_layer", "fusion.dropout=0", "encoder.train_embeddings=false", "train.validate_every=0"]
    assert idle(load_config(recipe, met)) == []


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_say_nothing_without_effect(path: Path) -> None:
    config = load_config(path.stem)
    assert idle(config) == []
    # One that is the same but for the fusion has no line for what the recipe left alone.
    other = dataclasses.replace(config, fusion=dataclasses.replace(config.fusion, name="last_layer"))
    assert all("fusion.dropout" not in line for line in idle(other))


def test_it_is_told_before_anything_slow_begins() -> None:
    command = [sys.executable, "bridge_ds/train.py", "--dry-run", "--set", "lora.dropout=0.1"]
    # What the start itself makes of micro_batch 0 was given by nobody.
    command += ["--set", "data.tokens_per_micro_batch=9000"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    notes = [line for line in told.splitlines() if line.startswith("note: ")]
    assert notes == ["note: lora.dropout has no effect, as lora.rank is 0."]
