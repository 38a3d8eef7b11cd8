"""Device maps for the two base models of a bridge, as accelerate takes one for a single model.

A device map is a device (`cpu`, `cuda:1`, 0), one of STRATEGIES, or a mapping from names of the LLM's modules to
devices and `disk`. In a mapping, `encoder` and `encoder.NAME` are the encoder and its modules; without them the whole
encoder goes to the first device that is named.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from bridge_ds.errors import ConfigError
from bridge_ds.reading import decoded, json_value, twice

__all__ = [
    "STRATEGIES", "describe_devices", "fitted", "input_device", "of_encoder", "of_llm", "read_device_map",
    "read_max_memory", "room_beside",
]  # fmt: skip

STRATEGIES = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of a device map that leave the choice to accelerate."""
_EXPECTED = (
    f"expected {', '.join(STRATEGIES)}, a device (cpu, cuda:1), or a JSON object (or a file of one) of module names "
    "and devices"
)


def read_device_map(given: Any) -> Any:
    """A device map that can be used on this machine, from the text of a command line or from Python.

    Args:
        given: text (a strategy, a device, a JSON object, the name of a JSON file), or what transformers takes.

    Raises:
        ConfigError: none of these, a device that this machine does not have, or accelerate is not installed.
    """
    if given is None:
        return None
    found = _from_text(given) if isinstance(given, str) else given
    if isinstance(found, Mapping):
        found = {str(name): _known(device, f"{str(name) or 'the rest'!r} on ") for name, device in found.items()}
        if not of_llm(found):
            raise ConfigError(f"the device map names no module of the LLM; {_EXPECTED}; '' is all of it.")
    elif found not in STRATEGIES:
        found = _known(found)
        if found == "disk":
            raise ConfigError(f"the device map is disk; {_EXPECTED}; disk is allowed in an object only.")
    if importlib.util.find_spec("accelerate") is None:
        raise ConfigError("a device map needs accelerate, which is not installed; pip install accelerate.")
    return found


def read_max_memory(given: Any, device_map: Any) -> dict[int | str, int] | None:
    """Bytes by device (a GPU's number, `cpu` or `disk`).

    Args:
        given: `0=20GiB,cpu=60GiB` (or with `;` between them), or a mapping as accelerate takes it.
        device_map: what it is for.

    Raises:
        ConfigError: not of that form, of a device that this machine does not have, or without a strategy.
    """
    if given is None:
        return None
    if not (isinstance(device_map, str) and device_map in STRATEGIES):
        raise ConfigError(
            f"max_memory is given, which only a strategy uses; expected a device map of {', '.join(STRATEGIES)}; "
            "give one, or leave max_memory out."
        )
    from accelerate.utils import convert_file_size_to_int

    found: dict[int | str, int] = {}
    for name, size in given.items() if isinstance(given, Mapping) else _pairs(given):
        device = int(name) if str(name).isdigit() else str(name)
        if isinstance(device, int):
            _known(device, "memory of ")
        try:
            if device not in ("cpu", "disk", "mps") and not isinstance(device, int):
                raise ValueError(device)
            found[device] = convert_file_size_to_int(int(size) if str(size).isdigit() else size)
        except (ValueError, AttributeError, TypeError):
            raise ConfigError(
                f"max_memory has {name}={size}; expected a GPU's number, cpu or disk, and a size such as 20GiB: "
                "0=20GiB,cpu=60GiB."
            ) from None
    return found


def of_llm(device_map: Any) -> Any:
    """The LLM's part of a device map."""
    if not isinstance(device_map, Mapping):
        return device_map
    return {name: device for name, device in device_map.items() if name.split(".")[0] != "encoder"}


def of_encoder(device_map: Any) -> Any:
    """The encoder's part of a device map.

    With a strategy the encoder is loaded first, whole on the first device with enough memory; the LLM gets what is
    left.
    """
    if isinstance(device_map, str) and device_map in STRATEGIES:
        return "sequential"
    if not isinstance(device_map, Mapping):
        return device_map
    own = {
        name.removeprefix("encoder").removeprefix("."): device
        for name, device in device_map.items()
        if name.split(".")[0] == "encoder"
    }
    return own or {"": next((device for device in device_map.values() if device not in ("cpu", "disk")), "cpu")}


def fitted(what: str, skeleton: torch.nn.Module, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping in which no name is inside another, for a model whose weights have not been read.

    accelerate ignores names that it does not find, and transformers puts what no name covers on the CPU. Where one
    name is inside another (`''` and `lm_head`) accelerate 1.15 gives the inner modules hooks of both, which differ.

    Args:
        what: `encoder` or `LLM`, for messages.
        skeleton: the model without weights.
        device_map: of its modules; the longest name decides.

    Raises:
        ConfigError: a name that no module or parameter has, a weight that no name covers, or one weight on two devices.
    """
    modules = {name for name, _ in skeleton.named_modules()}
    weights = list(skeleton.state_dict())
    for name in device_map:
        if name not in modules and name not in weights:
            near = difflib.get_close_matches(name, [*modules, *weights], 1, 0.6)
            raise ConfigError(
                f"the device map has {name!r}, which is no module of the {what}; expected names such as "
                f"{_children(skeleton)}{f'; did you mean {near[0]!r}?' if near else '.'}"
            )
    left = [weight for weight in weights if _covering(weight, device_map) is None]
    if left:
        raise ConfigError(
            f"the device map leaves out {len(left)} weights of the {what}, such as {left[0]}; expected each of its "
            f"modules ({_children(skeleton)}); name them too, or put the rest under ''."
        )
    for one, other in (getattr(skeleton, "all_tied_weights_keys", None) or {}).items():
        devices = [device_map[str(_covering(weight, device_map))] for weight in (one, other)]
        if devices[0] != devices[1]:
            raise ConfigError(
                f"the device map puts {one} on {devices[0]} and {other} on {devices[1]}, which are one weight of the "
                f"{what}; expected one device for both; change one of them."
            )
    return _disjoint("", skeleton, device_map)


def room_beside(max_memory: Mapping[int | str, int] | None, model: torch.nn.Module) -> dict[int | str, int] | None:
    """`max_memory` minus what a loaded model takes."""
    if max_memory is None:
        return None
    taken: Counter[int | str] = Counter()
    for name, size in _bytes(model).items():
        if name != "disk":
            device = torch.device(name)
            taken["cpu" if device.type == "cpu" else device.index or 0] += size
    return {device: max(0, size - taken[device]) for device, size in max_memory.items()}


def input_device(model: Any) -> torch.device:
    """Where a model takes its ids and embeddings: the device of its embedding table, or the one that an offloaded table
    is moved to.

    Args:
        model: of transformers, whole or with a device map; not sharded by ZeRO-3.
    """
    table = model.get_input_embeddings()
    device: torch.device = table.weight.device
    if device.type != "meta":
        return device
    hook = table._hf_hook  # accelerate's: it loads the weight during a call
    hooks: Sequence[Any] = getattr(hook, "hooks", (hook,))
    return torch.device(next(each.execution_device for each in hooks if hasattr(each, "execution_device")))


def describe_devices(encoder: Any, llm: Any) -> str:
    """One line on the devices of both models."""
    parts = []
    for name, model in (("encoder", encoder), ("LLM", llm)):
        sizes = ", ".join(f"{device} ({size / 2**30:.2f} GiB)" for device, size in _bytes(model).items())
        parts.append(f"{name} on {sizes}")
    return "; ".join(parts)


def _bytes(model: Any) -> Counter[str]:
    """Bytes of a model's weights by device, `disk` included."""
    device_map = getattr(model, "hf_device_map", None) or {}
    found: Counter[str] = Counter()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        key = _covering(name, device_map)
        device = tensor.device if key is None or tensor.device.type != "meta" else device_map[key]
        found[f"cuda:{device}" if isinstance(device, int) else str(device)] += tensor.numel() * tensor.element_size()
    return found


def _covering(weight: str, device_map: Mapping[str, Any]) -> str | None:
    """The longest name of a device map that a weight falls under."""
    names = [name for name in device_map if name in ("", weight) or weight.startswith(f"{name}.")]
    return max(names, key=len, default=None)


def _disjoint(name: str, module: Any, device_map: Mapping[str, Any]) -> dict[str, Any]:
    """The device of a module or, where some modules inside have devices of their own, those of its direct children."""
    key = _covering(name, device_map)
    if not any(other != name and (not name or other.startswith(f"{name}.")) for other in device_map):
        return {} if key is None else {name: device_map[key]}
    found: dict[str, Any] = {}
    for below, child in (
        *module.named_children(), *module.named_parameters(recurse=False), *module.named_buffers(recurse=False)
    ):  # fmt: skip
        found |= _disjoint(f"{name}.{below}" if name else below, child, device_map)
    return found


def _children(model: torch.nn.Module) -> str:
    """Names for a message: the modules two levels down, or one where there is no second."""
    found = []
    for name, child in model.named_children():
        own = [f"{name}.{below}" for below, _ in child.named_children()]
        found += own or [name]
    return ", ".join(found)


def _from_text(text: str) -> Any:
    path = Path(text)
    if text.lstrip().startswith("{") or path.suffix == ".json":
        try:
            content = json_value(text if text.lstrip().startswith("{") else decoded(path.read_bytes()))
        except (OSError, ValueError) as error:
            raise ConfigError(f"the device map {text[:80]!r} cannot be read ({error}); {_EXPECTED}.") from None
        if not isinstance(content, dict) or not all(isinstance(each, str | int) for each in content.values()):
            raise ConfigError(f"the device map {text[:80]!r} is no object of names and devices; {_EXPECTED}.")
        return content
    return int(text) if text.isdigit() else text


def _known(name: Any, what: str = "") -> Any:
    """`name`, once it is known that this machine has that device."""
    if name == "disk":
        return name
    found = f"the device map puts {what}{name}" if what else f"the device map is {name}"
    here = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count() if here else 0
    try:
        # A number is one of the accelerator's, which torch.device refuses where there is none.
        device = torch.device(here.type if here else "cuda", name) if isinstance(name, int) else torch.device(name)
    except (RuntimeError, TypeError):
        raise ConfigError(f"{found}, which is no device; {_EXPECTED}.") from None
    if device.type == "cpu":
        return name
    if here is None or device.type != here.type or (device.index or 0) >= count:
        names = " or ".join(["cpu", *(f"{here.type}:{number}" for number in range(count) if here)])
        raise ConfigError(f"{found}, which this machine does not have; expected {names}; choose another.")
    return name


def _pairs(text: str) -> list[tuple[str, str]]:
    pairs = [part.partition("=") for part in str(text).replace(";", ",").split(",") if part.strip()]
    found = [(name.strip(), size.strip()) for name, _, size in pairs]
    if again := twice(name for name, _ in found):
        raise ConfigError(f"max_memory has {again} twice; expected each device once; drop one.")
    return found
