"""A DeepSpeed file as DeepSpeed's own config classes read it, before a model is loaded with it."""

from __future__ import annotations

import difflib
import enum
import types
import typing
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import PurePath
from typing import Any

from pydantic import BaseModel, ValidationError

from bridge_ds.config.ds_file import is_number, read_by_engine
from bridge_ds.config.schema import Config
from bridge_ds.config.text import one_line, shown
from bridge_ds.config.zero import engine_config, stage
from bridge_ds.errors import ConfigError

__all__ = ["check_kernels", "check_with_deepspeed"]

_QUANTIZED = ("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients")
"""Keys of ZeRO++ that need the quantizer's kernel."""


def check_with_deepspeed(config: Config, values: dict[str, Any], world_size: int) -> None:
    """Build DeepSpeed's config from the file's values, completed as for a run. Imports deepspeed (seconds).

    DeepSpeed would do so while a model loads, and its refusal would be taken for one of the model. Its models read a
    text as a number, and a number as true or false; here each value has the type that it stands for.

    Args:
        config: with `train.micro_batch` resolved.
        values: of the file, with the size of hpZ resolved.
        world_size: ranks.

    Raises:
        ConfigError: DeepSpeed refuses a key or a value, which is named.
    """
    from bridge_ds.compat.deepspeed import import_deepspeed

    import_deepspeed()
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.utils.config import DeepSpeedThroughputTimerConfig

    models: dict[str, type[BaseModel]] = {
        "zero_optimization": DeepSpeedZeroConfig,
        "comms_logger": CommsLoggerConfig,
    }
    name, full, values = config.run.ds_config, engine_config(config, values, world_size), read_by_engine(values)
    for key, model in models.items():
        for fault in _faults(model, values.get(key, {}), key):
            raise ConfigError(f"{name} {fault}")
    for key, value in values.get("timers", {}).items():
        if key != "throughput":
            raise ConfigError(f"{name} has timers.{shown(key)[1:-1]}; expected timers.throughput alone; take it out.")
        for fault in _faults(DeepSpeedThroughputTimerConfig, value, "timers.throughput"):
            raise ConfigError(f"{name} {fault}")
    if refusal := _refusal(DeepSpeedConfig, full):
        ours = {key: full[key] for key in ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps")}
        alone = {"zero_optimization": {"stage": stage(values)}}
        at = next((key for key in values if _refusal(DeepSpeedConfig, ours | alone | {key: values[key]})), "a value")
        raise ConfigError(f"{name} has {at}, which deepspeed {version('deepspeed')} refuses ({refusal}); change it.")


def check_kernels(config: Config, values: dict[str, Any]) -> None:
    """Load the kernels of DeepSpeed that the file asks for: where the job runs, not on a login node without a GPU.

    DeepSpeed would do so while a model loads, and its refusal would be taken for one of the model.

    Raises:
        ConfigError: one cannot be built or loaded on this machine.
    """
    from bridge_ds.compat.deepspeed import import_deepspeed

    deepspeed = import_deepspeed()
    name, zero = config.run.ds_config, values["zero_optimization"]
    for key in ("offload_param", "offload_optimizer"):
        if (zero.get(key) or {}).get("device") == "nvme" and not deepspeed.ops.__compatible_ops__.get("async_io"):
            raise ConfigError(
                f"{name} has zero_optimization.{key}.device = 'nvme', which needs DeepSpeed's async_io; expected "
                "libaio on this machine; install it (libaio-dev), or offload to cpu."
            )
    if key := next((key for key in _QUANTIZED if zero.get(key)), ""):
        try:
            deepspeed.accelerator.get_accelerator().create_op_builder("QuantizerBuilder").load()
        except Exception as error:  # of a compiler, or that there is none
            raise ConfigError(
                f"{name} has zero_optimization.{key}, whose kernel deepspeed {version('deepspeed')} cannot load here "
                f"({one_line(error) or type(error).__name__}); expected a GPU and nvcc; take the key out."
            ) from None


def _refusal(make: Any, values: dict[str, Any]) -> str:
    """Why DeepSpeed cannot make a config; empty = it can."""
    try:
        make(values)
    except ValidationError as error:
        first = error.errors()[0]
        return one_line(ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}"))
    except Exception as error:  # of DeepSpeed: its checks are assertions, and what it does not check fails anyhow
        return one_line(error) or type(error).__name__
    return ""


def _fields(model: type[BaseModel]) -> Iterator[tuple[str, Any]]:
    """Fields of a model under the names that a file has for them."""
    for name, field in model.model_fields.items():
        yield field.alias or name, field


def _faults(model: type[BaseModel], values: Any, where: str) -> Iterator[str]:
    """Unknown keys and values of another type, to follow the file's name."""
    if not isinstance(values, Mapping):
        yield f"has {where} = {shown(values)}; expected an object."
        return
    fields = dict(_fields(model))
    for key, value in values.items():
        if key not in fields:
            alias = getattr(model.model_fields.get(key), "alias", None)
            near = [alias] if alias else difflib.get_close_matches(key, fields, 1, 0.6)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(list(fields)[:12])} ..."
            yield f"has {where}.{shown(key)[1:-1]}, which deepspeed {version('deepspeed')} does not know; {hint}"
        else:
            yield from _mistyped(fields[key], value, f"{where}.{key}")


def _mistyped(field: Any, value: Any, where: str) -> Iterator[str]:
    hint = field.annotation
    optional = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    kind = next(of for of in typing.get_args(hint) if of is not type(None)) if optional else hint
    if optional and value is None:
        return
    least = max((getattr(bound, "ge", getattr(bound, "gt", 0)) for bound in field.metadata), default=None)
    expected = ""
    if not isinstance(kind, type):  # a list or mapping with types in it: DeepSpeed's model looks into it
        return
    if issubclass(kind, BaseModel):
        yield from _faults(kind, value, where)
    elif issubclass(kind, enum.Enum):
        choices = [member.value for member in kind]
        if type(value) is bool or value not in choices:
            expected = f"one of {', '.join(map(str, choices))}"
    elif kind is bool:
        expected = "" if isinstance(value, bool) else "true or false"
    elif issubclass(kind, int):
        if not is_number(value) or value != value // 1 or (least is not None and value < least):
            expected = "a whole number" + ("" if least is None else f" of {least} or more")
    elif issubclass(kind, float):
        expected = "" if is_number(value) else "a number"
    elif issubclass(kind, str | PurePath):
        expected = "" if isinstance(value, str) else "text"
    if expected:
        yield f"has {where} = {shown(value)}; expected {expected}."
