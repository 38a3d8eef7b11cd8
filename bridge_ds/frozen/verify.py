"""The files of a model: where they are, whether they are whole, and whether the weights in memory equal them.

Weights are gathered one at a time, so that no rank holds the model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.errors import ConfigError
from bridge_ds.reading import is_macos

__all__ = ["check_length", "model_file", "verify_weights", "weight_files", "why_no_hub"]

HUB_SECONDS = 10
"""Time for the hub to answer."""


def weight_files(name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})) -> list[Path]:
    """The safetensors files of a local folder or of a hub model in the cache; empty if it has none.

    Args:
        name: folder or hub id.
        revision: hub revision.
        hub: more options of transformers' `cached_file` (cache_dir, token, local_files_only).
    """
    if Path(name).is_dir():
        return sorted(path for path in Path(name).glob("*.safetensors") if not is_macos(path.name))

    def cached(filename: str) -> Path | None:
        return model_file(name, filename, revision, hub)

    single = cached("model.safetensors")
    if single:
        return [single]
    index = cached("model.safetensors.index.json")
    if not index:
        return []
    shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return [path for shard in shards if (path := cached(shard))]


def model_file(
    name: str, filename: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})
) -> Path | None:
    """One file of a local folder or of a hub model; none where there is no such file."""
    if Path(name).is_dir():
        path = Path(name) / filename
        return path if path.is_file() else None
    from transformers.utils.hub import cached_file

    found = cached_file(name, filename, revision=revision, _raise_exceptions_for_missing_entries=False, **hub)
    return Path(found) if found else None


def why_no_hub() -> str:
    """Why the Hugging Face hub cannot be asked, found with one request; empty where it answers."""
    from huggingface_hub import constants, get_session
    from transformers.utils.hub import is_offline_mode

    if is_offline_mode():
        return "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set"
    try:
        get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS)
    except Exception as error:  # of whichever client it uses
        return f"{constants.ENDPOINT} does not answer ({error})"
    return ""


def check_length(key: str, path: Path) -> None:
    """Compare the size of a safetensors file with what its header promises.

    Args:
        key: the setting that names the model.

    Raises:
        ConfigError: it was cut, or has no header.
    """
    with path.open("rb") as file:
        head = file.read(8)
        size = int.from_bytes(head, "little")
        try:
            header = json.loads(file.read(size)) if len(head) == 8 and size < 2**28 else None
            end = max(v["data_offsets"][1] for k, v in header.items() if k != "__metadata__") if header else -1
        except (ValueError, KeyError, TypeError, AttributeError):
            end = -1
    if path.stat().st_size != 8 + size + end:
        raise ConfigError(
            f"{key}: {path} has {path.stat().st_size} bytes; expected {8 + size + end if end >= 0 else 'a header'}; "
            "the file was cut or damaged: download it again."
        )


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
    import deepspeed
    from safetensors import safe_open

    where = {key: path for path in files for key in _keys(path)}
    # A matrix beside which LoRA has put an update is called its layer's base_layer (peft).
    parameters = {name.replace(".base_layer.", "."): p for name, p in model.named_parameters()}
    names = _match(getattr(model, "base_model_prefix", ""), set(parameters), sorted(where))
    names = {key: name for key, name in names.items() if not (frozen_only and parameters[name].requires_grad)}
    chosen = sorted(names)[:: max(1, len(names) // samples)]
    wrong = ""
    for key in chosen:
        parameter = parameters[names[key]]
        sharded = hasattr(parameter, "ds_id")
        with deepspeed.zero.GatheredParameters([parameter], enabled=sharded):
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
