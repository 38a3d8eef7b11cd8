"""Settings that were given and have no effect, because of another setting: one table, reported when a run starts.

A setting counts as given where it differs from its default, whether a recipe or the command line said so. What no run
could mean is refused instead (:mod:`bridge_ds.config.build`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from bridge_ds.config.build import flatten
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config, FusionConfig, MappingConfig
from bridge_ds.config.schema.injection import reads_all_layers
from bridge_ds.fusion import FUSIONS
from bridge_ds.mapping import MAPPINGS
from bridge_ds.objectives import OBJECTIVES

__all__ = ["RULES", "NoEffect", "idle", "why_no_states"]


@dataclass(frozen=True)
class NoEffect:
    """Settings that mean nothing in some configs."""

    keys: tuple[str, ...]
    """As a user types them."""
    why: Callable[[Config], str]
    """Why they mean nothing in this config, in the words of the setting that decides; empty = they do."""
    met: tuple[Any, ...] = ()
    """Values that ask for what happens anyway."""


def idle(config: Config) -> list[str]:
    """One line for each reason why settings that were given have no effect."""
    given, default = flatten(config), flatten(Config())
    lines = []
    for rule in RULES:
        found = [key for key in rule.keys if given[key] != default[key] and given[key] not in rule.met]
        if found and (why := rule.why(config)):
            lines.append(_line(found, why))
    for task, data in config.evaluation.data.items():
        if config.evaluation.tasks and task not in config.evaluation.tasks:
            lines.append(_line([f"evaluation.data.{task}"], f"evaluation.tasks has no {task}"))
        elif data.revision is not None and data.source and Path(data.source).is_dir():
            lines.append(_line([f"evaluation.data.{task}.revision"], f"{data.source} is a folder"))
    for name, own in config.tasks.items():
        if own.revision is not None and Path(own.source).is_dir():
            lines.append(_line([f"tasks.{name}.revision"], f"{own.source} is a folder"))
    return lines


def _line(keys: Sequence[str], why: str) -> str:
    return f"{', '.join(keys)} {'has' if len(keys) == 1 else 'have'} no effect, as {why}."


def _keys(part: str, *keys: str) -> tuple[str, ...]:
    return tuple(f"{part}.{key}" for key in keys)


def _all_keys(part: str, of: type) -> tuple[str, ...]:
    return _keys(part, *(field.name for field in fields(of)))


def _only_some_take(part: str, choice: str, specs: Mapping[str, Any]) -> list[NoEffect]:
    """A rule for each key of `part` that only some of its variants take."""

    def why(key: str, config: Config) -> str:
        name = getattr(getattr(config, part), choice)
        return "" if key in specs[name].options else f"{part}.{choice} is {name}"

    keys = dict.fromkeys(key for spec in specs.values() for key in spec.options)
    return [NoEffect((f"{part}.{key}",), partial(why, key), (0.0,) if key == "dropout" else ()) for key in keys]


def _folder(key: str) -> Callable[[Config], str]:
    def why(config: Config) -> str:
        name = getattr(config.model, key)
        return f"model.{key} is a folder" if Path(resolve(name)).is_dir() else ""

    return why


def _encodes_apart(config: Config) -> str:
    if config.encoder.trainable:
        return "encoder.trainable is true"
    if config.encoder.dropout:
        return "encoder.dropout is true"
    return "" if config.train.encode_once else "train.encode_once is false"


def _none_compiled(config: Config) -> str:
    encoder = config.model.has_encoder and not (config.encoder.trainable or config.encoder.dropout)
    llm = not (config.llm.trainable or config.lora.rank)
    return "" if encoder or llm else "no base model is frozen, without dropout and without LoRA"


def _not_every_layer(config: Config) -> str:
    return "" if config.injection.form == "every_layer" else f"injection.form is {config.injection.form}"


def _no_cache(config: Config) -> str:
    data = config.data
    if data.stage_dir:
        return "data.stage_dir is where all shards go"
    sources = data.mixture or (data.shards,)
    return "" if any("://" in source for source in sources) else "no data set is a URL"


def why_no_states(config: Config) -> str:
    """Why no encoder states can be kept (`data.states_cache`); empty = they can."""
    if not config.model.has_encoder:
        return "model.encoder is none"
    if not config.model.has_llm:
        return "model.llm is none"
    if config.encoder.trainable:
        return "encoder.trainable is true"
    if config.encoder.dropout:
        return "encoder.dropout is true"
    if config.data.mix_words:
        return "data.mix_words changes the sources in each epoch"
    return "data.objective prefix_lm splits a text anew in each epoch" * (config.data.objective == "prefix_lm")


def _when(holds: Callable[[Config], bool], why: str) -> Callable[[Config], str]:
    return lambda config: why if holds(config) else ""


RULES: tuple[NoEffect, ...] = (
    NoEffect(
        _keys("encoder", "train_embeddings", "lr_scale", "weight_decay", "activation_checkpointing"),
        _when(lambda c: not c.encoder.trainable, "encoder.trainable is false"),
        (False,),
    ),
    NoEffect(
        _keys("llm", "train_embeddings", "lr_scale", "weight_decay", "dropout"),
        _when(lambda c: not c.llm.trainable, "llm.trainable is false"),
        (False,),
    ),
    NoEffect(
        _keys("lora", "alpha", "dropout", "targets", "lr_scale"),
        _when(lambda c: not c.lora.rank, "lora.rank is 0"),
    ),
    *_only_some_take("fusion", "name", FUSIONS),
    *_only_some_take("mapping", "kind", MAPPINGS),
    NoEffect(
        _keys("data", "augment_share", "augment_cipher", "replay"),
        _when(lambda c: not (c.data.augment_prompt and c.model.has_encoder), "data.augment_prompt is false"),
    ),
    NoEffect(_keys("injection", "mlp", "soft_prompt"), _not_every_layer),
    NoEffect(
        _keys("injection", "llm_layers", "lr_scale"),
        _when(lambda c: c.injection.spec is None, "injection.form is none"),
    ),
    NoEffect(
        (*_all_keys("fusion", FusionConfig), *_all_keys("mapping", MappingConfig)),
        _when(lambda c: not c.injection.makes_prompt, "injection.soft_prompt is false"),
        (True,),
    ),
    NoEffect(
        _keys("mapping", "end_init", "match_embedding_rms"),
        _when(lambda c: c.mapping.init == "embeddings", "mapping.init is embeddings"),
    ),
    NoEffect(("mapping.init_samples",), _when(lambda c: c.mapping.init == "random", "mapping.init is random")),
    NoEffect(
        ("fusion.lr_scale",),
        lambda c: "" if FUSIONS[c.fusion.name].mixes_layers else f"fusion.name is {c.fusion.name}",
    ),
    NoEffect(
        ("fusion.include_embeddings",),
        lambda c: "" if reads_all_layers(c.fusion, c.injection) else f"fusion.name is {c.fusion.name}",
    ),
    NoEffect(
        ("encoder.trainable", "data.augment_prompt", "data.source_language"),
        _when(lambda c: not c.model.has_encoder, "model.encoder is none"),
    ),
    NoEffect(
        (
            "encoder.lr_scale",
            "encoder.weight_decay",
            "llm.trainable",
            "data.augment_prompt",
            "data.mix_words",
            "train.packing",
            "train.encode_once",
            "train.encode_once_gib",
            "train.compile",
            *_keys("data", "bos", "separator", "target_space", "target_end", "chat_template", "system_prompt"),
            *_keys("data", "max_prompt_tokens"),
            *_keys("model", "activation_checkpointing", "llm_revision"),
            *_all_keys("fusion", FusionConfig),
            *_all_keys("mapping", MappingConfig),
        ),
        _when(lambda c: not c.model.has_llm, "model.llm is none"),
    ),
    NoEffect(
        ("encoder.dropout",),
        _when(lambda c: not (c.model.has_llm or c.encoder.trainable), "model.llm is none and encoder.trainable false"),
    ),
    NoEffect(
        _keys("adapt", "mask_share", "span_tokens"),
        _when(lambda c: not OBJECTIVES[c.data.objective].denoises, "data.objective does not have denoise"),
    ),
    NoEffect(
        _keys("adapt", "temperature", "layers", "english_share", "token_weight"),
        _when(lambda c: not OBJECTIVES[c.data.objective].aligns, "data.objective does not have align"),
    ),
    NoEffect(
        ("adapt.pair_weight",),
        _when(lambda c: c.data.objective != "denoise_and_align", "data.objective is not denoise_and_align"),
    ),
    NoEffect(("adapt.english", "adapt.new_rows_only"), _when(lambda c: c.model.has_llm, "model.llm is not none")),
    NoEffect(
        ("llm.finetune_settings",), _when(lambda c: c.model.has_encoder and not c.llm.finetune, "llm.finetune is false")
    ),
    NoEffect(
        ("mapping.init",),
        _when(lambda c: bool(c.run.start_from), "run.start_from names the mapping to begin with"),
        ("random",),
    ),
    NoEffect(("data.mix_words",), _when(lambda c: not c.model.has_encoder, "model.encoder is none")),
    NoEffect(
        _keys("data", "mix_words_share", "mix_words_languages"),
        _when(lambda c: not c.data.mix_words, "data.mix_words is empty"),
    ),
    NoEffect(
        ("train.teaching_weight",),
        _when(
            lambda c: not (OBJECTIVES[c.data.objective].predicts and c.data.taught_share(c.model.has_bridge)),
            "data.objective is not task_and_self_teaching and no sample is replayed",
        ),
    ),
    NoEffect(
        ("train.teaching_temperature",),
        _when(
            lambda c: not c.data.taught_share(c.model.has_bridge),
            "the LLM alone teaches no sample (data.objective, data.replay)",
        ),
    ),
    NoEffect(("model.encoder_revision",), _folder("encoder")),
    NoEffect(("model.llm_revision",), _folder("llm")),
    NoEffect(("data.shards",), _when(lambda c: bool(c.data.mixture), "data.mixture names the data sets")),
    NoEffect(_keys("data", "cache_dir", "cache_gib"), _no_cache),
    NoEffect(_keys("data", "states_cache", "states_cache_gib"), why_no_states),
    NoEffect(("data.states_cache_gib",), _when(lambda c: not c.data.states_cache, "data.states_cache is empty")),
    NoEffect(
        ("data.target_space",),
        _when(lambda c: c.data.chat_template, "data.chat_template is true, which an answer follows at once"),
        ("none",),
    ),
    NoEffect(("data.length_chunk",), _when(lambda c: c.data.length_window == 1, "data.length_window is 1")),
    NoEffect(("data.prefetch",), _when(lambda c: not c.data.workers, "data.workers is 0")),
    NoEffect(("train.encode_once_gib",), _encodes_apart),
    NoEffect(("train.compile",), _none_compiled),
    NoEffect(
        ("train.micro_batch",),
        _when(lambda c: c.data.tokens_per_micro_batch > 0, "data.tokens_per_micro_batch cuts micro-batches"),
        (0,),
    ),
    NoEffect(
        ("train.validate_every", "train.validation_samples"),
        _when(lambda c: not c.data.validation_percent, "data.validation_percent is 0"),
        (0,),
    ),
    NoEffect(("train.validation_samples",), _when(lambda c: c.train.validate_every == 0, "train.validate_every is 0")),
    NoEffect(
        ("checkpoint.keep_best",),
        _when(lambda c: not c.checkpoint.keep_last, "checkpoint.keep_last is 0, which keeps all"),
    ),
    NoEffect(
        _keys("track", "experiment", "name"),
        _when(lambda c: c.track.uri.lower() == "none" and set(c.track.to) <= {"mlflow"}, "track.uri is none"),
    ),
    NoEffect(
        _keys(
            "evaluation",
            "languages",
            "limit",
            "batch",
            "null_scores",
            "max_new_tokens",
            "llm_from",
            "data",
            "choose",
        ),
        _when(lambda c: not c.evaluation.tasks, "evaluation.tasks is empty: nothing is scored after training"),
    ),
)
"""The table."""
