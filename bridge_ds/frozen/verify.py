"""The files of a model: where they are, whether they are whole, and whether the weights in memory equal them.

Weights are gathered one at a time, so that no rank holds the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.compat.deepspeed import whole
from bridge_ds.errors import BridgeError, ConfigError
from bridge_ds.frozen.foreign import refuse_foreign, stored_json
from bridge_ds.reading import decoded

__all__ = [
    "cached_file", "loaded_files", "model_file", "reach", "shard_names", "verify_weights", "weight_files", "why_no_hub",
]  # fmt: skip

_INDEX = ".index.json"
HUB_SECONDS = 10
"""Time for the hub to answer."""


def weight_files(name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})) -> list[Path]:
    """The safetensors files that transformers reads of a local folder or of a hub model; empty if it has none.

    That is `model.safetensors`, or else what `model.safetensors.index.json` names; other files there are not read.

    Args:
        name: folder or hub id.
        revision: hub revision.
        hub: more options of transformers' `cached_file` (cache_dir, token, local_files_only).

    Raises:
        ConfigError: a file that the index names is missing.
    """
    config = model_file(name, "config.json", revision, hub)
    named = stored_json(name, config).get("transformers_weights") if config else None
    return _weights(name, str(named or "model.safetensors"), revision, hub)


def loaded_files(name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})) -> list[Path]:
    """Every file of weights that loading a model reads: those of :func:`weight_files` or, where there are none,
    `pytorch_model.bin` (which torch reads with `weights_only=True`); and those of a PEFT adapter in that folder.

    Args:
        name: see :func:`weight_files`; likewise `revision` and `hub`.
        revision: see `name`.
        hub: see `name`.

    Raises:
        ConfigError: a file that an index names is missing.
    """
    adapter = cached_file(name, "adapter_config.json", revision, hub)
    if adapter is None:
        return weight_files(name, revision, hub) or _weights(name, "pytorch_model.bin", revision, hub)
    # transformers puts the adapter on the model in the same folder or, without one, on the model that it names.
    values = stored_json(name, adapter)
    base = name if (Path(name) / "config.json").is_file() else str(values.get("base_model_name_or_path"))
    names = ("adapter_model.safetensors", "adapter_model.bin")
    updates = next((path for each in names if (path := cached_file(name, each, revision, hub))), None)
    files = weight_files(base, None, hub) or _weights(base, "pytorch_model.bin", None, hub)
    return [*files, adapter, *([updates] if updates else [])]


def _weights(name: str, whole: str, revision: str | None, hub: Mapping[str, Any]) -> list[Path]:
    single = None if whole.endswith(_INDEX) else model_file(name, whole, revision, hub)
    if single:
        return [single]
    index = model_file(name, whole.removesuffix(_INDEX) + _INDEX, revision, hub)
    if not index:
        return []
    refuse_foreign(name, index)
    found = []
    for shard in shard_names(index):
        try:
            path = model_file(name, shard, revision, hub)
        except OSError:  # offline, and not in the cache
            path = None
        if path is None:
            raise ConfigError(
                f"{name} lacks {shard}, which its {index.name} names; expected all of its files; download it again."
            )
        found.append(path)
    return found


def shard_names(index: Path, what: str = "file", error: type[BridgeError] = ConfigError) -> list[str]:
    """The files that an index of weights names, sorted.

    Args:
        index: `*.index.json`.
        what: they are called in a message.
        error: raised where it is no index, or names files elsewhere.
    """
    try:
        names = sorted(set(json.loads(decoded(index.read_bytes()))["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as fault:
        raise error(
            f"{index} is no readable index ({type(fault).__name__}); expected `weight_map`; download it again."
        ) from None
    for name in names:
        if Path(str(name)).name != name:
            raise error(f"{index} names the {what} {name!r}; expected a file name without a folder.")
    return names


def model_file(
    name: str, filename: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})
) -> Path | None:
    """One file of a local folder or of a hub model; none where there is no such file.

    Raises:
        ConfigError: the name is a path, and there is no such folder.
        OSError: the hub has no such model, or refuses it.
    """
    if Path(name).is_dir():
        path = Path(name) / filename
        return path if path.is_file() else None
    _refuse_absent_path(name)
    from transformers.utils.hub import cached_file as fetch

    found = fetch(name, filename, revision=revision, _raise_exceptions_for_missing_entries=False, **reach(name, hub))
    return Path(found) if found else None


def cached_file(
    name: str, filename: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})
) -> Path | None:
    """:func:`model_file` of what loading has fetched already: the hub's cache is asked, and the network is not."""
    quiet = {"_raise_exceptions_for_gated_repo": False, "_raise_exceptions_for_connection_errors": False}
    return model_file(name, filename, revision, {**hub, **quiet, "local_files_only": True, "force_download": False})


def _refuse_absent_path(name: str) -> None:
    """The hub is not asked for what cannot be one of its ids: it would take the blame."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        raise ConfigError(
            f"there is no folder {name!r} (looked for in {Path.cwd()}), and it is no hub id either; expected a folder "
            "that exists or a hub id such as google/mt5-xl; give the folder's full path."
        ) from None


def reach(name: str, hub: Mapping[str, Any] = MappingProxyType({})) -> dict[str, Any]:
    """Options for a call of transformers about a model: of a hub that cannot be asked, its cache alone.

    The hub's client would try each file six times, half a minute in all, with warnings.

    Args:
        name: folder or hub id.
        hub: options of the user's (cache_dir, token, local_files_only); with `proxies` the hub is not tried out.
    """
    known = Path(name).is_dir() or "local_files_only" in hub or hub.get("proxies")
    return {**hub} if known or not why_no_hub() else {**hub, "local_files_only": True}


def why_no_hub() -> str:
    """Why the Hugging Face hub cannot be asked, found with one request a minute; empty where it answers."""
    from transformers.utils.hub import is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    return _asked(int(time.monotonic() / 60))


@lru_cache(1)
def _asked(minute: int) -> str:
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of whichever client it uses
        return f"{constants.ENDPOINT} does not answer ({error})"
    return ""


def verify_weights(
    what: str, model: Any, files: list[Path], is_main: bool, samples: int = 12, frozen_only: bool = False
) -> int:
    """Compare `samples` tensors, spread over the files, bit for bit (after the cast to the model's dtype).

    Loading under zero.Init has regressed more than once (transformers#45313, #42201): everything then looks right
    and the model is random. Every rank must call this; only rank 0 reads the files.

    Args:
        frozen_only: leave out what is trained, which differs from its file after the first step.

    Returns:
        how many tensors were compared (0 if the model has no safetensors files, or none under known names).

    Raises:
        ConfigError: a tensor in memory differs from its file (on rank 0).
    """
    from safetensors import safe_open

    where = {key: path for path in files if path.suffix == ".safetensors" for key in _keys(path)}
    # A matrix beside which LoRA has put an update is called its layer's base_layer (peft).
    parameters = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    names = _match(getattr(model, "base_model_prefix", ""), set(parameters), sorted(where))
    names = {key: name for key, name in names.items() if not (frozen_only and parameters[name].requires_grad)}
    chosen = sorted(names)[:: max(1, len(names) // samples)]
    wrong = ""
    for key in chosen:
        parameter = parameters[names[key]]
        with whole([parameter]):
            if is_main and not wrong:
                with safe_open(where[key], framework="pt") as file:
                    expected = file.get_tensor(key).to(parameter.dtype)
                held = _offloaded(model, names[key]) if parameter.is_meta else parameter.detach()
                if not torch.equal(held.cpu(), expected):
                    wrong = key
    if wrong:
        raise ConfigError(
            f"{what} weight {wrong} differs in memory from its file {where[wrong].name}; expected equality; "
            "these versions of transformers and deepspeed do not load sharded models rightly: use zero2.json."
        )
    return len(chosen)


def _offloaded(model: Any, name: str) -> torch.Tensor:
    """A weight that a device map keeps on the CPU or the disk, as its module will get it."""
    from transformers.integrations.accelerate import load_offloaded_parameter

    return load_offloaded_parameter(model, name)


def _keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return list(file.keys())


def _match(prefix: str, names: set[str], keys: list[str]) -> dict[str, str]:
    """File key -> parameter name.

    A file of the base model loads into one with a head and the other way round (`bert.` added or taken off), and an
    encoder alone loads from `model.encoder.` of a whole model. Nothing else is tried: in a file of encoder and decoder
    a looser rule would compare the one with the other.
    """
    base = f"{prefix}."
    found: dict[str, str] = {}
    for key in keys:
        shorter = [key.removeprefix(prefix) for prefix in ("model.encoder.", base, "model.") if key.startswith(prefix)]
        name = next((name for name in (key, *shorter, base + key) if name in names), None)
        if name:
            found[key] = name
    return found
