"""The command that submits a planned run: launcher, recipe, nodes, and every setting that the plan stands on."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from pathlib import Path
from typing import Any

from bridge_ds.config.finetune import first_config
from bridge_ds.config.load import flatten, load_config
from bridge_ds.fusion import FUSIONS
from bridge_ds.mapping import MAPPINGS
from bridge_ds.plan.job import ENCODE_ONCE, Job, planned

__all__ = ["command", "first_stage"]

_LAUNCHERS = (
    (4e9, "train_1b.sh", "mt5xl_1b"),
    (40e9, "train_13b.sh", "mt5xl_13b"),
    (math.inf, "train_70b.sh", "mt5xl_70b"),
)
"""Parameters of the LLM up to which a script of slurm/ is named, and the recipe that such runs begin with. The scripts
differ in name, nodes and recipe alone; the recipe of train_1b.sh is the paper's XNLI run, which is not any 1B run."""
_WHAT = ("model.encoder", "model.llm", "fusion.name", "mapping.kind", "mapping.latents", "lora.rank", "lora.bias",
         "lora.targets", "encoder.trainable", "encoder.train_embeddings", "llm.trainable", "llm.train_embeddings",
         "data.augment_prompt")  # fmt: skip
"""Settings that make it another run, and not the same one in other batches or on other nodes."""


def command(job: Job, ds_config: str, recipe: str = "") -> str:
    """The shell command, several lines, that submits `job` under the DeepSpeed file `ds_config` from the checkout.

    Args:
        job: what was planned.
        ds_config: value of run.ds_config.
        recipe: what everything that the plan does not touch comes from; empty = the shipped one for LLMs of
            this size.

    Raises:
        ConfigError: no such recipe.
    """
    recipe = recipe or _launcher(job)[2]
    known, settings = _given(job, ds_config, recipe)
    if Path(recipe).is_file():
        recipe = os.path.abspath(recipe)
    values = known | {key: value for keys in settings for key, value in keys.items()}
    # A run folder holds one run.
    output = known["run.output"] if all(values[key] == known[key] for key in _WHAT) else f"runs/{_name(job)}"
    lines = [
        f"RECIPE={shlex.quote(recipe)} OUTPUT={shlex.quote(output)} sbatch --nodes={job.nodes} "
        f"--gpus-per-node={job.gpus} slurm/{_launcher(job)[1]}"
    ]
    lines += [" ".join(f"--set {shlex.quote(text)}" for text in _texts(keys)) for keys in settings if keys]
    return " \\\n    ".join(lines)


def first_stage(job: Job, ds_config: str, recipe: str = "") -> Job | None:
    """What the same command does first where the recipe says llm.finetune: the LLM alone is taught. None = nothing.

    Raises:
        ConfigError: no such recipe, or its llm.finetune_settings cannot be used.
    """
    recipe = recipe or _launcher(job)[2]
    values = [text for keys in _given(job, ds_config, recipe)[1] for text in _texts(keys)]
    asked = load_config(recipe, values)
    if not asked.llm.finetune:
        return None
    found = planned(first_config(recipe, values, asked), job.nodes, job.gpus)
    return found.having(process=job.process, copies=job.copies)


def _given(job: Job, ds_config: str, recipe: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """All values of the recipe by key, and the settings of the command, a line of them each."""
    known = flatten(load_config(recipe))
    named, modes = _settings(job, ds_config)
    if any(known[key] != value for key, value in named[0].items()):
        modes |= {"model.encoder_revision": None, "model.llm_revision": None}
    return known, [*named, {key: value for key, value in modes.items() if known.get(key, False) != value}]


def _texts(values: dict[str, Any]) -> list[str]:
    """As --set takes them."""
    return [f"{key}={_text(value)}" for key, value in values.items()]


def _name(job: Job) -> str:
    mapping = job.mapping.kind + str(job.mapping.fixed_length or "")
    parts = [job.encoder.name, job.llm.name, job.fusion.name, mapping] if job.source else [job.llm.name, "alone"]
    parts += ["trained-encoder"] * job.encoder_trained + ["trained-llm"] * job.llm_trained
    parts += [f"lora{job.lora}"] * (job.lora > 0)
    parts += ["prompt"] * (job.prompt > 0 and job.source > 0)
    return "_".join(re.sub(r"[^\w.-]+", "-", part) for part in parts)


def _launcher(job: Job) -> tuple[float, str, str]:
    return next(launcher for launcher in _LAUNCHERS if job.llm.parameters <= launcher[0])


def _settings(job: Job, ds_config: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Settings that are always named, a line of them each; and those named where the recipe has another value."""
    of_bridge = {"fusion.name": job.fusion.name, "mapping.kind": job.mapping.kind}
    source = {"data.max_source_tokens": job.source}
    named: list[dict[str, Any]] = [
        {"model.encoder": job.encoder.source, "model.llm": job.llm.source},
        of_bridge if job.source else {},
        {"run.ds_config": ds_config, "model.activation_checkpointing": job.checkpointing},
        {"train.global_batch": job.global_batch, "train.micro_batch": job.micro_batch},
        (source if job.source else {}) | {"data.max_target_tokens": job.target},
    ]
    modes: dict[str, Any] = {
        "model.dtype": "float32" if job.bytes == 4 else "bfloat16",
        "train.tf32": job.tf32,
        ENCODE_ONCE: job.encode_once or not job.may_encode_once,
        "train.encode_once_gib": job.encode_once_gib,
        "lora.rank": job.lora,
        "lora.bias": job.lora_bias if job.lora else "none",
        "lora.targets": list(job.lora_targets) if job.lora else [],
        "encoder.trainable": job.encoder_trained,
        "encoder.train_embeddings": job.encoder_embeddings,
        "encoder.dropout": job.encoder_dropout,
        "llm.trainable": job.llm_trained,
        "llm.train_embeddings": job.llm_embeddings,
        "encoder.activation_checkpointing": job.encoder_checkpointing,
        "data.augment_prompt": job.prompt > 0,
        "data.tokens_per_micro_batch": 0,
    }
    fusion, mapping = FUSIONS[job.fusion.name], MAPPINGS[job.mapping.kind]
    sizes = {f"fusion.{key}": getattr(job.fusion, key) for key in fusion.options}
    sizes |= {f"mapping.{key}": getattr(job.mapping, key) for key in mapping.options}
    modes |= {key: value for key, value in sizes.items() if type(value) is int}  # the plan depends on these alone
    if not job.source:  # the LLM alone
        kept = ("model.", "train.", "lora.", "llm.", "data.tokens_per_micro_batch")
        modes = {key: value for key, value in modes.items() if key.startswith(kept)}
    if job.reads_all_layers:
        modes["fusion.include_embeddings"] = job.fusion.include_embeddings
    if job.prompt:
        modes["data.max_prompt_tokens"] = job.prompt
    return named, modes


def _text(value: Any) -> str:
    """`value` as --set reads it back: text stays as it is."""
    return value if isinstance(value, str) else json.dumps(value)
