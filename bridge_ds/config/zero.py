"""The DeepSpeed config: a JSON file, completed with batch sizes and precision from the recipe."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bridge_ds.config.ds_file import faults, leaves, read_by_engine
from bridge_ds.config.files import is_file, read_text
from bridge_ds.config.schema import Config
from bridge_ds.config.text import named, short, shown
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.reading import NotText, json_value
from bridge_ds.shipped import shipped

__all__ = [
    "accumulation",
    "encoded_together",
    "engine_config",
    "fill_sizes",
    "gather_sizes",
    "hpz_size",
    "read_ds_config",
    "resolve_hpz",
    "resolve_micro_batch",
    "shard_config",
    "stage",
]

SHIPPED = shipped("ds_configs")
"""Folder of the shipped DeepSpeed files."""

_FITS = 12
"""Most numbers that a message offers."""
# Removed from DeepSpeed 0.19 (deepspeedai/DeepSpeed#8489): a leftover key is refused there too, but late.
_REMOVED = (
    "amp", "compression_training", "curriculum_learning", "eigenvalue", "elasticity", "graph_harvesting", "nebula",
    "progressive_layer_drop", "quantize_training", "sparse_attention", "sparse_gradients",
)  # fmt: skip
_REMOVED_ZERO = ("mics_shard_size", "mics_hierarchical_params_gather", "zeropp_loco_param")
_HPZ = "zero_hpz_partition_size"
_NODE = "node"
_SIZES = {"stage3_prefetch_bucket_size": 1, "stage3_max_live_parameters": 3, "stage3_max_reuse_distance": 1}
"""How far ZeRO-3 gathers ahead, in layers; see :func:`gather_sizes`."""
# Keys that need no number, and how that is written.
_OPEN = {_HPZ: f', or "{_NODE}" for the ranks of a node'} | dict.fromkeys(
    _SIZES, ", or leave it out: it then comes from the models' layers"
)
# Keys whose value comes from the recipe: two sources for one number is one too many.
_OURS = {
    "train_batch_size": "train.global_batch",
    "train_micro_batch_size_per_gpu": "train.micro_batch",
    "gradient_accumulation_steps": "train.global_batch, train.micro_batch",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "train.lr, train.betas, train.eps, train.weight_decay",
    "scheduler": "train.schedule, train.warmup_ratio",
    "fp16": "model.dtype",
    "bf16": "model.dtype",
}


def read_ds_config(name: str) -> dict[str, Any]:
    """Read a DeepSpeed JSON file by path, or by name in `ds_configs/`.

    What depends on the job may stay open: :func:`resolve_hpz` and :func:`fill_sizes` settle it.

    What DeepSpeed's own models check is left to :func:`bridge_ds.config.ds_models.check_with_deepspeed`.

    Raises:
        ConfigError: no such file, not JSON, a key twice, a stage other than 2 or 3, an "auto" value (only the HF
            Trainer resolves those; elsewhere DeepSpeed drops them in silence), a key that DeepSpeed removed or does not
            know, one the recipe owns, or a value of the wrong type or size.
    """
    found = _find(name)
    path = named(found)
    try:
        values = json_value(read_text(found))
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path} is not JSON (line {error.lineno}: {error.msg}); expected a DeepSpeed config, without comments and "
            "without a comma after the last value; mend it."
        ) from None
    except NotText as error:
        raise ConfigError(f"{path} {error}.") from None
    except ValueError as error:
        raise ConfigError(f"{path} cannot be used: {short(str(error), 300)}.") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds a {type(values).__name__}; expected an object with zero_optimization.")
    # First of all, and together: a file of another project has most of them, with "auto" in them.
    if owned := [key for key in _OURS if key in values]:
        them = "it" if len(owned) == 1 else "them"
        settings = ", ".join(dict.fromkeys(", ".join(_OURS[key] for key in owned).split(", ")))
        raise ConfigError(f"{path} sets {', '.join(owned)}, which the recipe owns; take {them} out and set {settings}.")
    zero = values.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(f'{path} has zero_optimization = {shown(zero)}; expected an object such as {{"stage": 3}}.')
    removed = [key for key in _REMOVED if key in values]
    removed += [f"zero_optimization.{key}" for key in _REMOVED_ZERO if key in zero]
    if removed:
        raise ConfigError(f"{path} has {', '.join(removed)}, which DeepSpeed has removed (issue #8489); take it out.")
    if auto := [named(where) for where, value in leaves(values) if value == "auto"]:
        also = f" (also {short(', '.join(auto[1:]))})" if auto[1:] else ""
        raise ConfigError(
            f'{path} has {auto[0]} = "auto"{also}, which only the Hugging Face Trainer resolves; write a value'
            f"{_OPEN.get(auto[0].split('.')[-1], ', or leave it out, for the default of DeepSpeed')}."
        )
    for fault in faults(values, _OURS):
        raise ConfigError(f"{path} {fault}")
    if "stage" not in zero:
        raise ConfigError(f'{path} has no zero_optimization.stage; expected 2 or 3; write {{"stage": 3}} there.')
    if type(zero["stage"]) is not int or zero["stage"] not in (2, 3):
        raise ConfigError(f"{path} has zero_optimization.stage = {shown(zero['stage'])}; expected 2 or 3.")
    size = zero.get(_HPZ, 1)
    if size != _NODE and (type(size) is not int or size < 1):
        raise ConfigError(f"{path} has zero_optimization.{_HPZ} = {shown(size)}; expected 1 or more{_OPEN[_HPZ]}.")
    return values


def stage(values: dict[str, Any]) -> int:
    """ZeRO stage, 2 or 3."""
    return int(values["zero_optimization"]["stage"])


def accumulation(config: Config, world_size: int) -> int:
    """Micro-batches per rank per optimizer step.

    Raises:
        LaunchError: micro_batch x ranks does not divide the global batch; the message names world sizes that would.
    """
    if not config.train.micro_batch:
        config = resolve_micro_batch(config, world_size)
    total, micro = config.train.global_batch, config.train.micro_batch
    if total % (micro * world_size) == 0:
        return total // (micro * world_size)
    if total % micro:
        raise LaunchError(
            f"train.global_batch {total} is no multiple of train.micro_batch {micro}; change one of them."
        )
    fits = [n for n in range(1, total // micro + 1) if (total // micro) % n == 0]
    near = sorted(sorted(fits, key=lambda n: abs(n - world_size))[:_FITS])
    raise LaunchError(
        f"train.global_batch {total} does not divide over {world_size} ranks of train.micro_batch {micro}; "
        f"start {', '.join(map(str, near))} ranks or change a batch size."
    )


def resolve_micro_batch(config: Config, world_size: int) -> Config:
    """The config with `train.micro_batch` = 0 replaced by a rank's whole share of the global batch.

    The same holds under `data.tokens_per_micro_batch`, which splits that share by tokens, step by step.

    Raises:
        LaunchError: the ranks do not divide the global batch, or a pair of translations has nothing beside it.
    """
    if config.train.micro_batch and not config.data.tokens_per_micro_batch:
        return config
    total = config.train.global_batch
    if total % world_size:
        raise LaunchError(
            f"train.global_batch {total} does not divide over {world_size} ranks; change one of the two numbers."
        )
    if total == world_size and OBJECTIVES[config.data.objective].aligns:
        raise LaunchError(
            f"train.global_batch {total} leaves one sample to each of {world_size} ranks, and data.objective is "
            f"{config.data.objective}, where the other English sentences of a micro-batch are the negatives; expected "
            "2 samples or more on each; raise train.global_batch, or start fewer ranks."
        )
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batch=total // world_size))


def resolve_hpz(values: dict[str, Any], world_size: int, local_size: int) -> dict[str, Any]:
    """The values with `zero_hpz_partition_size` as a number: ranks that together hold a second copy of the shards.

    "node" stands for the ranks of a node. 1 means none to DeepSpeed, and is the result where a second copy would
    serve nothing: all ranks are in one group (one node), or each would have a whole copy of its own.

    Args:
        values: as read; without the key nothing changes.
        world_size: ranks of the job.
        local_size: ranks of this node.

    Raises:
        LaunchError: the size does not divide the ranks.
    """
    zero = values["zero_optimization"]
    if _HPZ not in zero:
        return values
    size = local_size if zero[_HPZ] == _NODE else zero[_HPZ]
    if world_size % size:
        said = f'"{_NODE}", here {size}' if zero[_HPZ] == _NODE else str(size)
        near = sorted((n for n in range(2, world_size) if world_size % n == 0), key=lambda n: abs(n - local_size))
        fits = ", ".join(map(str, sorted(near[:_FITS]))) or "none"
        raise LaunchError(
            f"{_HPZ} is {said}, which does not divide {world_size} ranks; expected a number that does ({fits}); start "
            "as many ranks on every node, write such a number, or use zero3.json."
        )
    return values | {"zero_optimization": zero | {_HPZ: 1 if size == world_size else size}}


def hpz_size(values: dict[str, Any]) -> int:
    """Ranks that together hold a second copy of the shards (resolved values); 1 = there is none."""
    return int(values["zero_optimization"].get(_HPZ, 1))


def gather_sizes(layer: int) -> dict[str, int]:
    """What ZeRO-3 may gather ahead, by DeepSpeed's names, from what a layer holds; all in elements.

    A frozen layer is gathered whole. With a bucket below one layer a part of the next one is always asked for too late,
    and with a limit below two no prefetch begins while a layer is there. With one and three, everything that backward
    gathers was asked for ahead of the module that needs it (tests/engine/test_shipped.py counts it). Nothing is kept
    over a distance of more than one layer, so at most the limit and one tensor are there at any moment: prefetch
    looks at the limit before it takes a tensor, not after.

    Args:
        layer: elements of the largest layer of either model.
    """
    return {key: layers * layer for key, layers in _SIZES.items()}


def fill_sizes(values: dict[str, Any], layer: int) -> dict[str, Any]:
    """The values with :func:`gather_sizes` where they leave it open: a number in the file wins. Stage 2: as given."""
    if stage(values) != 3 or not layer:
        return values
    return values | {"zero_optimization": gather_sizes(layer) | values["zero_optimization"]}


def encoded_together(gib: float, tokens: int, layers: int, width: int, bytes_each: int) -> int:
    """Micro-batches that a frozen encoder reads together: their states take no more than a limit; at least 1.

    Each of these is a number of the config or of the model, so the answer is the same on every rank. It has to be: it
    decides how often layers are gathered.

    Args:
        gib: `train.encode_once_gib`.
        tokens: most encoder tokens of a micro-batch, padding included.
        layers: of the encoder; the embeddings are a state more.
        width: of the encoder.
        bytes_each: of a number in the states.
    """
    return max(1, int(gib * 2**30 // ((layers + 1) * tokens * width * bytes_each)))


def engine_config(config: Config, values: dict[str, Any], world_size: int) -> dict[str, Any]:
    """What `deepspeed.initialize` gets.

    Neither bf16 nor fp16 is enabled here on purpose: the frozen models are already in `model.dtype`, and the float32
    parameters of what is trained are themselves the masters, the same under stage 2 and stage 3. (With bf16 enabled
    stage 2 would round the bridge to bfloat16 and stage 3 would not: `_cast_module_mixed_precision` in DeepSpeed 0.19.)
    """
    # DeepSpeed's own clock waits for the device twice a micro-batch (utils/timer.py); ours is in engine/step.py.
    return (
        {"timers": {"throughput": {"enabled": False}}}
        | read_by_engine(values)
        | {
            "train_micro_batch_size_per_gpu": config.train.micro_batch,
            "gradient_accumulation_steps": accumulation(config, world_size),
            "gradient_clipping": config.train.max_grad_norm,
            "communication_data_type": values.get("communication_data_type", "fp32"),
        }
    )


def shard_config(config: Config, values: dict[str, Any], dtype: str = "") -> dict[str, Any]:
    """What `zero.Init` gets while a model loads.

    Args:
        dtype: the one its shards are kept in; empty = `model.dtype`.
    """
    return read_by_engine(values) | {
        "train_micro_batch_size_per_gpu": config.train.micro_batch,
        "bf16": {"enabled": (dtype or config.model.dtype) == "bfloat16"},
    }


def _find(name: str) -> Path:
    for path in (Path(name), SHIPPED / name, SHIPPED / f"{name}.json"):
        if is_file(path):
            return path
    names = ", ".join(sorted(p.name for p in SHIPPED.glob("*.json"))) or "none found"
    raise ConfigError(f"no DeepSpeed config {shown(name)}; expected a JSON file or one of ds_configs/ ({names}).")
