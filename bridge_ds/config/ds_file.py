"""What a DeepSpeed file may hold here: its keys, types and sizes, known without importing DeepSpeed.

DeepSpeed ignores keys that it does not know, and takes what stands beside its pydantic models as it is: a text where a
number is meant then ends a run somewhere else. What its models do check is asked of them, see
:mod:`bridge_ds.config.ds_models`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from bridge_ds.config.text import Unusable, named, printable, shown

__all__ = ["faults", "is_number", "leaves", "read_by_engine", "without_effect"]

_LARGEST = 2**63 - 1
_BUFFERS = {
    "reduce_bucket_size": 10**10,
    "allgather_bucket_size": 10**10,
    "buffer_size": 10**11,
    "buffer_count": 10_000,
    "block_size": 2**30,
    "queue_depth": 100_000,
    "intra_op_parallelism": 1024,
    "thread_count": 1024,
}
"""Key -> most, where DeepSpeed allocates as much at once (elements, buffers, bytes, threads)."""


def _whole(least: int) -> tuple[str, Callable[[Any], bool]]:
    return f"a whole number from {least} to {_LARGEST:,}", lambda v: is_number(v) and v == v // 1 and v >= least


def _or_null(takes: tuple[str, Callable[[Any], bool]]) -> tuple[str, Callable[[Any], bool]]:
    return f"{takes[0]}, or null", lambda v: v is None or takes[1](v)


_FLAG = "true or false", lambda v: isinstance(v, bool)
_SECTION = "an object", lambda v: isinstance(v, dict)
_DTYPES = ("fp32", "fp16", "bf16")
_LEVELS = ("debug", "info", "warning", "error", "critical")
_TAKEN: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "zero_optimization": _SECTION,
    "steps_per_print": _or_null(_whole(1)),
    "wall_clock_breakdown": _FLAG,
    "memory_breakdown": _FLAG,
    "dump_state": _FLAG,
    "disable_allgather": _FLAG,
    "disable_python_gc": _FLAG,
    "zero_allow_untested_optimizer": _FLAG,
    "zero_force_ds_cpu_optimizer": _FLAG,
    "communication_data_type": (f"one of {', '.join(_DTYPES)}", lambda v: v in _DTYPES),
    "log_level": (f"one of {', '.join(_LEVELS)}", lambda v: v in _LEVELS),
    "aio": _SECTION,
    "flops_profiler": _SECTION,
    "comms_logger": _SECTION,
    "timers": _SECTION,
}
"""Key -> what it takes, in words, and whether a value is that."""
_INSIDE: dict[str, dict[str, tuple[str, Callable[[Any], bool]]]] = {
    "aio": {
        **dict.fromkeys(("block_size", "queue_depth", "intra_op_parallelism", "thread_count"), _whole(1)),
        **dict.fromkeys(("single_submit", "overlap_events", "use_gds"), _FLAG),
    },
    "flops_profiler": {
        **dict.fromkeys(("enabled", "detailed"), _FLAG),
        **dict.fromkeys(("profile_step", "top_modules"), _whole(1)),
        "module_depth": _whole(-1),
        "recompute_fwd_factor": ("a number of 0 or more", lambda v: is_number(v) and v >= 0),
        "output_file": ("a path or null", lambda v: v is None or isinstance(v, str)),
    },
}
"""Section that no model of DeepSpeed checks -> its keys, as above."""
_UNREAD = {
    "activation_checkpointing": (_SECTION, "model.activation_checkpointing decides"),
    "autotuning": (_SECTION, "only DeepSpeed's launcher reads it, with --autotuning"),
    "checkpoint": (_SECTION, "the run writes its own checkpoints"),
    "compile": (_SECTION, "the engine is not compiled"),
    "dataloader_drop_last": (_FLAG, "the recipe's data.* makes the batches"),
    "datastates_ckpt": (_SECTION, "the run writes its own checkpoints"),
    "pipeline": (_SECTION, "the ranks share the data alone"),
    "vocabulary_size": (_whole(1), "the models' vocabularies decide"),
}
"""Key -> what it takes, and why it has no effect."""
_RECORDED = "track.to says where the run is recorded"
_ELSEWHERE = {
    **dict.fromkeys(("tensorboard", "wandb", "csv_monitor", "comet"), _RECORDED),
    "data_efficiency": "the recipe's data.* decides which samples are read",
    "data_types": "gradients are accumulated in float32 and model.dtype is the dtype of the models",
    "expert_parallel": "the ranks share the data alone",
    "gradient_allreduce_op": "the loss is made for the mean of the gradients over the ranks",
    "gradient_predivide_factor": "the loss is made for the mean of the gradients over the ranks",
    "hybrid_engine": "it serves training by reinforcement",
    "managed_gradient_accumulation": "train.global_batch and train.micro_batch decide how much is accumulated",
    "prescale_gradients": "the loss is made for the mean of the gradients over the ranks",
    "seq_parallel_communication_data_type": "the ranks share the data alone",
    "sequence_parallel_size": "the ranks share the data alone",
    "tensor_parallel": "the ranks share the data alone",
    "torch_autocast": "model.dtype is the dtype of the models",
    "use_data_before_expert_parallelism": "the ranks share the data alone",
    "weight_quantization": "it serves inference",
}
"""Key -> why no run here can use it."""
_SAME: dict[str, tuple[Any, ...]] = {
    "data_types": ({"grad_accum_dtype": "fp32"}, {"grad_accum_dtype": None}),
    "gradient_predivide_factor": (1,),
    "sequence_parallel_size": (1,),
    "tensor_parallel": ({"autotp_size": 0}, {"autotp_size": 1}),
}
"""Such a key -> values that ask for what a run does anyway."""
_ZERO_ELSEWHERE = {
    "compute_grad_norm": "the gradient norm is clipped and recorded",
    "cpu_offload": "DeepSpeed calls it offload_optimizer now",
    "cpu_offload_param": "DeepSpeed calls it offload_param now",
    "cpu_offload_use_pin_memory": "DeepSpeed has it as pin_memory of offload_param and offload_optimizer now",
    "elastic_checkpoint": "the run writes its own checkpoints",
    "legacy_stage1": "the stage is 2 or 3",
    "save_muon_momentum_buffer_in_memory": "the optimizer is AdamW",
    "stage3_gather_fp16_weights_on_model_save": "the run writes its own checkpoints",
    "zenflow": "it needs DeepSpeed's own optimizer, and the run has PyTorch's AdamW",
}
_ZERO_SIZES = (
    "reduce_bucket_size", "allgather_bucket_size", "sub_group_size", "stage3_prefetch_bucket_size",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_param_persistence_threshold",
)  # fmt: skip
"""Keys that the planner reads too, which does without DeepSpeed; each is a whole number of elements."""
_OFFLOADS = ("offload_param", "offload_optimizer")


def faults(values: Mapping[str, Any], owned: Mapping[str, str]) -> Iterator[str]:
    """Each fault of a DeepSpeed file, to follow the file's name; the first ones first.

    Args:
        values: of the file.
        owned: key -> settings of the recipe that it comes from; such a key has been refused already.
    """
    for key in values:
        if key in _ELSEWHERE and not _is_off(key, values[key]):
            yield f"sets {key}, which has no use here, for {_ELSEWHERE[key]}; take it out."
    known = _TAKEN | {key: takes for key, (takes, _) in _UNREAD.items()}
    yield from _misfits({key: v for key, v in values.items() if key not in _ELSEWHERE}, known, list(owned), "")
    for section, keys in _INSIDE.items():
        yield from _misfits(values.get(section, {}), keys, [], f"{section}.")
    for where, value in leaves(values):
        yield from _unfit(where, value)
    zero = values.get("zero_optimization")
    if isinstance(zero, dict):
        yield from _zero(values, zero)


def _misfits(
    values: Mapping[str, Any], known: Mapping[str, tuple[str, Callable[[Any], bool]]], others: list[str], where: str
) -> Iterator[str]:
    """Unknown keys, which may be meant for one of `others`, and values that are not what the known ones take."""
    for key, value in values.items():
        if key in known:
            words, fits = known[key]
            if not fits(value):
                yield f"has {where}{key} = {shown(value)}; expected {words}."
        else:
            near = difflib.get_close_matches(key, [*known, *others], 1, 0.6)
            some = ", ".join(list(known)[:4])
            hint = f"did you mean {where}{near[0]}?" if near else f"expected keys such as {some}; take it out."
            yield f"has the key {shown(where + key)}, which DeepSpeed does not know; {hint}"


def leaves(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """What JSON holds besides objects and lists, each with its keys on the way from the top (`a.b[0]`)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from leaves(inner, f"{where}[{index}]")
    else:
        yield where, value


def _unfit(where: str, value: Any) -> Iterator[str]:
    """A number that is none or too large, or a text that no file can hold."""
    key = named(where)
    if isinstance(value, str):
        try:
            printable(value)
        except Unusable as error:
            yield f"has {key} = {shown(value)}{error}."
        if len(value) > 4096:
            yield f"has {key} = {shown(value)}; expected at most 4,096 characters."
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = _BUFFERS.get(where.rsplit(".", 1)[-1], _LARGEST)
        if not is_number(value) or value > most:
            yield f"has {key} = {shown(value)}; expected a number of at most {most:,}."


def _zero(values: Mapping[str, Any], zero: Mapping[str, Any]) -> Iterator[str]:
    """Faults of zero_optimization that DeepSpeed reports late, or not at all."""
    for key in zero:
        if key in _ZERO_ELSEWHERE and not _is_off(key, zero[key]):
            yield f"sets zero_optimization.{key}, which has no use here, for {_ZERO_ELSEWHERE[key]}; take it out."
    for key in _ZERO_SIZES:
        words, fits = _whole(1 if key == "reduce_bucket_size" else 0)
        if key in zero and not fits(zero[key]):
            yield f"has zero_optimization.{key} = {shown(zero[key])}; expected {words}."
    for name in _OFFLOADS:
        part = zero.get(name)
        if part is None:
            continue
        where = f"zero_optimization.{name}"
        if not isinstance(part, dict):
            yield f'has {where} = {shown(part)}; expected an object such as {{"device": "cpu"}}.'
            continue
        device = part.get("device", "none")
        if device == "nvme" and not part.get("nvme_path"):
            yield f"has {where}.device = 'nvme' and no nvme_path; expected the folder of a local disk; name it there."
        if device in ("cpu", "nvme") and name == "offload_param" and zero.get("stage") == 2:
            yield f"has {where} with stage 2, which keeps the parameters whole; expected stage 3; take it out."
        if device in ("cpu", "nvme") and name == "offload_optimizer":
            if values.get("zero_force_ds_cpu_optimizer", True):
                yield (
                    f"has {where}.device = {device!r}, which DeepSpeed refuses for an optimizer of PyTorch; expected "
                    "zero_force_ds_cpu_optimizer = false beside it; add it, or take the offload out (the moments of a "
                    "bridge are small)."
                )
            for key in ("super_offload", "ratio"):
                if part.get(key, {"ratio": 1}.get(key, False)) not in (1, False):
                    yield f"sets {where}.{key}, which needs DeepSpeed's own optimizer; take it out."


def without_effect(values: Mapping[str, Any]) -> list[str]:
    """One line for each key of a DeepSpeed file that changes nothing in a run."""
    lines = [f"{key} of the DeepSpeed file has no effect, as {_UNREAD[key][1]}." for key in _UNREAD if key in values]
    zero = values["zero_optimization"]
    if zero.get("stage") == 2 and (found := [key for key in zero if key.startswith(("stage3_", "zero_hpz"))]):
        verb = "has" if len(found) == 1 else "have"
        lines.append(f"{', '.join(found)} of the DeepSpeed file {verb} no effect, as its stage is 2.")
    return lines


def read_by_engine(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values without the keys that have no effect here, and without those that no run can use and are off."""
    zero = {key: value for key, value in values["zero_optimization"].items() if key not in _ZERO_ELSEWHERE}
    left = {key: value for key, value in values.items() if key not in _UNREAD and key not in _ELSEWHERE}
    return left | {"zero_optimization": zero}


def _is_off(key: str, value: Any) -> bool:
    """Whether a key that no run here can use asks for nothing, as many files write it: false, `"enabled": false`."""
    if isinstance(value, dict) and value.get("enabled", bool(value)) is False:
        return True
    return value is None or value is False or (value is not True and value in _SAME.get(key, ()))


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number that fits 64 bits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and -_LARGEST <= value <= _LARGEST
