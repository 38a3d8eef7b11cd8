"""Rules on values, each with the key, what was found and what is allowed. Nothing is loaded to check them."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

from bridge_ds.config.schema import Config
from bridge_ds.config.schema.kinds import FUNCTION, KINDS
from bridge_ds.errors import ConfigError
from bridge_ds.fusion import BACKENDS, FUSIONS
from bridge_ds.mapping import END_INITS, MAPPINGS

__all__ = ["NO_PEFT", "check", "one_of"]

NO_PEFT = "lora.rank is {}, which needs the package peft; expected it to be installed; pip install 'bridge_ds[lora]'."
"""Said before anything slow begins, and where a run is loaded."""

_CHOICES: dict[str, tuple[str, ...]] = {
    "model.dtype": ("bfloat16", "float32"),
    "lora.bias": ("none", "all", "lora_only"),
    "fusion.name": tuple(FUSIONS),
    "fusion.backend": ("auto", *BACKENDS),
    "fusion.state_norm": ("none", "rms"),
    "mapping.kind": tuple(MAPPINGS),
    "mapping.end_init": END_INITS,
    "data.objective": ("task", "prefix_lm"),
    "data.bos": ("auto", "always", "never", "unless_eos"),
    "data.target_space": ("auto", "space", "none"),
    "data.truncation_side": ("right", "left"),
    "train.schedule": ("cosine", "linear", "constant"),
}
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run.seed": (lambda v: v >= 0, "0 or more"),
    "run.hang_seconds": (lambda v: v == 0 or v >= 5, "0, or 5 or more"),
    "encoder.lr_scale": (lambda v: v >= 0, "0 or more"),
    "encoder.weight_decay": (lambda v: v >= 0, "0 or more"),
    "llm.lr_scale": (lambda v: v >= 0, "0 or more"),
    "llm.weight_decay": (lambda v: v >= 0, "0 or more"),
    "lora.rank": (lambda v: v >= 0, "0 or more"),
    "lora.alpha": (lambda v: v > 0, "above 0"),
    "lora.dropout": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "lora.lr_scale": (lambda v: v >= 0, "0 or more"),
    "fusion.dropout": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "fusion.heads": (lambda v: v >= 1, "1 or more"),
    "fusion.feedforward": (lambda v: v >= 1, "1 or more"),
    "fusion.lr_scale": (lambda v: v >= 0, "0 or more"),
    "mapping.latents": (lambda v: v >= 1, "1 or more"),
    "mapping.depth": (lambda v: v >= 1, "1 or more"),
    "mapping.heads": (lambda v: v >= 1, "1 or more"),
    "mapping.head_width": (lambda v: v >= 1, "1 or more"),
    "mapping.feedforward": (lambda v: v >= 1, "1 or more"),
    "mapping.dropout": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "data.shuffle_shards": (lambda v: v >= 1, "1 or more"),
    "data.validation_percent": (lambda v: 0 <= v < 100, "from 0 to 99"),
    "data.cache_gib": (lambda v: v > 0, "above 0"),
    "data.max_characters": (lambda v: v >= 0, "0 or more"),
    "data.max_bad_samples": (lambda v: v >= 0, "0 or more"),
    "data.tokens_per_micro_batch": (lambda v: v >= 0, "0 or more"),
    "data.length_window": (lambda v: v >= 1, "1 or more"),
    "data.length_chunk": (lambda v: v >= 1, "1 or more"),
    "data.max_source_tokens": (lambda v: v >= 2, "2 or more"),
    "data.max_prompt_tokens": (lambda v: v >= 1, "1 or more"),
    "data.max_target_tokens": (lambda v: v >= 2, "2 or more"),
    "data.workers": (lambda v: v >= 0, "0 or more"),
    "data.prefetch": (lambda v: v >= 1, "1 or more"),
    "train.steps": (lambda v: v >= 1, "1 or more"),
    "train.global_batch": (lambda v: v >= 1, "1 or more"),
    "train.micro_batch": (lambda v: v >= 0, "0 or more"),
    "train.encode_once_gib": (lambda v: v >= 0, "0 or more"),
    "train.lr": (lambda v: v >= 0, "0 or more"),
    "train.betas": (lambda v: all(0 <= b < 1 for b in v), "two numbers from 0 to below 1"),
    "train.eps": (lambda v: v > 0, "above 0"),
    "train.weight_decay": (lambda v: v >= 0, "0 or more"),
    "train.warmup_ratio": (lambda v: 0 <= v <= 1, "from 0 to 1"),
    "train.max_grad_norm": (lambda v: v >= 0, "0 or more"),
    "train.validate_every": (lambda v: v is None or v >= 0, "0 or more"),
    "train.validation_samples": (lambda v: v >= 0, "0 or more"),
    "train.max_bad_steps": (lambda v: v >= 0, "0 or more"),
    "checkpoint.every": (lambda v: v >= 1, "1 or more"),
    "checkpoint.keep_last": (lambda v: v >= 0, "0 or more"),
    "checkpoint.keep_best": (lambda v: v >= 0, "0 or more"),
    "checkpoint.max_failed_saves": (lambda v: v >= 0, "0 or more"),
    "track.every": (lambda v: v >= 1, "1 or more"),
    "evaluation.limit": (lambda v: v >= 0, "0 or more"),
    "evaluation.batch": (lambda v: v >= 1, "1 or more"),
    "evaluation.max_new_tokens": (lambda v: v >= 1, "1 or more"),
}


def check(config: Config) -> None:
    """Raises ConfigError at the first value that no run could use."""
    for path, choices in _CHOICES.items():
        one_of(path, _get(config, path), choices)
    for path, (holds, wanted) in _RANGES.items():
        value = _get(config, path)
        if not holds(value):
            raise ConfigError(f"{path} is {value}; expected {wanted}.")
    data = config.data
    if data.length_window > 1 and config.train.global_batch % data.length_chunk:
        raise ConfigError(
            f"data.length_chunk {data.length_chunk} does not divide train.global_batch {config.train.global_batch}; "
            "expected a divisor; set it to train.micro_batch."
        )
    longest = data.max_source_tokens + data.max_target_tokens + data.max_prompt_tokens * data.augment_prompt
    if 0 < data.tokens_per_micro_batch < longest:
        raise ConfigError(
            f"data.tokens_per_micro_batch is {data.tokens_per_micro_batch}; one sample may have {longest} tokens; "
            "raise it, or lower the lengths in data.max_*_tokens."
        )
    if data.system_prompt and not data.chat_template:
        raise ConfigError(
            "data.system_prompt is set and data.chat_template is false; a system message is part of a chat; "
            "set data.chat_template=true, or leave the message out."
        )
    if data.chat_template and data.objective != "task":
        raise ConfigError(
            f"data.chat_template is true and data.objective is {data.objective!r}; expected task, for the rest of a "
            "text is no answer in a chat; set data.chat_template=false."
        )
    if config.train.validate_every and not data.validation_percent:
        raise ConfigError(
            f"train.validate_every is {config.train.validate_every}, but data.validation_percent is 0 and holds "
            "nothing out; expected 1 or more of it; a run that has begun without cannot change it."
        )
    if config.lora.rank and config.llm.trainable:
        raise ConfigError(
            f"lora.rank is {config.lora.rank} and llm.trainable is true; expected updates of a frozen LLM, or all of "
            "it trained; set one of them to 0 or false."
        )
    if config.lora.bias != "none" and not config.lora.rank:
        raise ConfigError(
            f"lora.bias is {config.lora.bias} and lora.rank 0, so that nothing of the LLM is trained; expected a rank; "
            "set lora.rank, or lora.bias=none."
        )
    if config.lora.rank and importlib.util.find_spec("peft") is None:
        raise ConfigError(NO_PEFT.format(config.lora.rank))
    for name in config.run.stop_signals:
        one_of("run.stop_signals", name, ("USR1", "USR2", "TERM", "HUP"))
    for name in config.run.allow_changes:
        one_of("run.allow_changes", name, (key for key, kind in KINDS.items() if kind == FUNCTION))
    if not config.track.experiment:
        raise ConfigError("track.experiment is empty; expected the name of an MLflow experiment.")
    if not config.run.output:
        raise ConfigError("run.output is empty; expected the path of the run folder.")


def one_of(path: str, value: str, choices: Iterable[str]) -> None:
    """Raises ConfigError, offering the nearest allowed value, unless `value` is among `choices`."""
    choices = list(choices)
    if value in choices:
        return
    near = difflib.get_close_matches(value, choices, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "choose one of them."
    raise ConfigError(f"{path} is {value!r}; expected one of {', '.join(choices)}; {hint}")


def _get(config: Config, path: str) -> Any:
    part, key = path.split(".")
    return getattr(getattr(config, part), key)
