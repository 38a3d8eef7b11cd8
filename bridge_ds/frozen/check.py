"""A base model without its weights: transformers' own loading on the meta device, from the headers of the files.

It finds in a second, on any machine, what loading would find after minutes or not at all: weights that are missing or
of another shape, packages that quantized weights need.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from bridge_ds.compat.transformers import masks_known, quiet, unsharded
from bridge_ds.config.names import resolve
from bridge_ds.errors import BridgeError, ConfigError
from bridge_ds.frozen.configs import reason_of
from bridge_ds.frozen.stored import stored_tensors
from bridge_ds.frozen.verify import loaded_files

__all__ = ["HUB", "BaseModel", "Checked", "check_base", "tied_names"]

HUB = ("cache_dir", "token", "local_files_only", "force_download", "proxies")
"""Arguments of from_pretrained on how to reach the hub."""


@dataclass(frozen=True)
class BaseModel:
    """Which model, and how it is loaded and used."""

    key: str
    """The setting that names it (`model.llm`)."""
    name: str
    """Folder, hub id, or an embedded model."""
    config: Any
    """Of :func:`bridge_ds.frozen.configs.base_config`."""
    kind: Any
    """A model class of transformers, or an Auto class."""
    forward: Callable[[Any, torch.Tensor], Iterable[torch.Tensor]]
    """What is used of the model: (model, ids [1, 4]) -> the tensors that are read."""
    options: Mapping[str, Any]
    """Arguments of from_pretrained."""


@dataclass(frozen=True)
class Checked:
    """What was found out."""

    unused: frozenset[str] = frozenset()
    """Weights that the files lack and the forward pass does not read (a pooler)."""
    bytes: int = 0
    """Of all files of weights."""
    files: int = 0
    """How many there are."""
    remark: str = ""
    """What could not be compared, and why; empty where all was."""
    left_out: str = ""
    """For the user: which layers of the files are not loaded; empty = none."""


def check_base(base: BaseModel, run: bool = False) -> Checked:
    """Compare a model's files with what its config builds, reading headers alone.

    Args:
        base: the model.
        run: also run its forward pass, without numbers, where nothing is missing.

    Raises:
        ConfigError: no weights; a damaged file; weights that are used and missing, or of another shape; a package that
            its quantized weights need is not installed.
    """
    hub = {name: base.options[name] for name in HUB if name in base.options and name != "force_download"}
    name, revision = resolve(base.name), base.options.get("revision")
    try:
        files = loaded_files(name, revision, hub)
    except BridgeError as error:
        raise ConfigError(f"{base.key}: {error}") from None
    if not files:
        raise ConfigError(
            f"{base.key} {base.name!r} has no weights; expected model.safetensors, its index.json with the files that "
            "it names, or pytorch_model.bin; download them (hf download), or give the folder that holds them."
        )
    size = sum(path.stat().st_size for path in files)
    adapter = [path for path in files if path.name.startswith("adapter_")]
    stored = stored_tensors(base.key, [path for path in files if path not in adapter])
    stored_tensors(base.key, adapter)  # peft loads them; here they only have to be whole
    quantized = getattr(base.config, "quantization_config", None)
    if quantized is not None:
        remark = _check_quantized(base, quantized)
        return Checked(bytes=size, files=len(files), remark=f"quantized, shapes not compared{remark}")
    if base.options.get("quantization_config") is not None:
        return Checked(bytes=size, files=len(files), remark="to be quantized, shapes not compared")
    if base.options.get("trust_remote_code") and getattr(base.config, "auto_map", None):
        return Checked(bytes=size, files=len(files), remark="code of its own, shapes not compared")
    model, info = _on_meta(base, stored)
    _refuse_other_shapes(base, info["mismatched_keys"])
    missing = set(info["missing_keys"]) - tied_names(model)
    left_out = _left_out(model, {*info["unexpected_keys"], *stored})
    done = Checked(bytes=size, files=len(files), left_out=left_out)
    if not (missing or run):
        return done
    try:
        used = _used(base, model)
    except BridgeError:
        raise
    except Exception as error:  # of a model that looks at numbers, of which there are none
        poolers = frozenset(name for name in missing if name.startswith("pooler."))  # never read, in any class
        _refuse_missing(base, missing - poolers)
        return replace(done, unused=poolers, remark=f"not run without numbers ({type(error).__name__})")
    _refuse_missing(base, missing & used)
    return replace(done, unused=frozenset(missing))


def tied_names(model: Any) -> set[str]:
    """Weights of a model that are others' too, and the others."""
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    return set(tied) | set(tied.values())


def _on_meta(base: BaseModel, stored: Mapping[str, torch.Tensor]) -> tuple[Any, dict[str, Any]]:
    options = {name: value for name, value in base.options.items() if name in ("key_mapping", "add_pooling_layer")}
    try:
        with unsharded(), quiet():
            kind = base.kind
            if hasattr(kind, "from_config"):
                with torch.device("meta"):
                    kind = type(kind.from_config(base.config))
            found: tuple[Any, dict[str, Any]] = kind.from_pretrained(
                None,
                config=base.config,
                state_dict=dict(stored),
                device_map={"": "meta"},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                dtype=torch.float32,
                **options,
            )
            return found
    # The classes meet whatever config.json holds: sizes that do not divide, activations that are not there, overflows.
    except Exception as error:
        reason = reason_of(error)
        if "Unrecognized configuration class" in reason:
            reason = f"its type {base.config.model_type!r} is none of {base.kind.__name__}"
        raise ConfigError(
            f"{base.key} {base.name!r} cannot be built from its config.json ({reason}); expected a model "
            "that transformers can load; download it again, or choose another model."
        ) from error


def _used(base: BaseModel, model: Any) -> set[str]:
    """Names of the parameters that what is read of the model depends on."""
    model.requires_grad_(True)
    model.config.pad_token_id = None  # else many classes look for padding among the ids, where no mask is given
    names, parameters = zip(*model.named_parameters(), strict=True)
    with torch.enable_grad(), masks_known(padded=False), quiet():
        read = list(base.forward(model, torch.ones(1, 4, dtype=torch.long, device="meta")))
        total = torch.stack([each.float().sum() for each in read]).sum()
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return {name for name, gradient in zip(names, found, strict=True) if gradient is not None}


def _refuse_other_shapes(base: BaseModel, mismatched: Iterable[Sequence[Any]]) -> None:
    for name, stored, built in sorted(mismatched, key=lambda each: str(each[0])):
        raise ConfigError(
            f"{base.key} {base.name!r} holds {name} with the shape {list(stored)}; expected {list(built)}, by its "
            "config.json; take config.json and weights from the same model."
        )


def _refuse_missing(base: BaseModel, missing: set[str]) -> None:
    for name in sorted(missing)[:1]:
        raise ConfigError(
            f"{base.key} {base.name!r} lacks {len(missing)} weights, such as {name}; expected a complete checkpoint of "
            "this architecture; download it again."
        )


def _left_out(model: Any, stored: Iterable[str]) -> str:
    """What to say of files with more layers of the same kind than config.json has, which transformers leaves out in
    silence: a model is cut so on purpose, or the config is another model's.

    A layer that has weights of its own kind as well (for the prediction of several tokens) is meant to be left out.
    """
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    kinds: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for where, number, weight in filter(None, map(_numbered, model.state_dict())):
        kinds.setdefault(where, set()).add(weight)
        counts[where] = max(counts.get(where, 0), number + 1)
    layers: dict[tuple[str, int], set[str]] = {}
    for where, number, weight in filter(None, map(_numbered, stored)):
        for place in {where, where.removeprefix(prefix), prefix + where} & set(counts):
            layers.setdefault((place, number), set()).add(weight)
    more: dict[str, int] = {}
    for (where, number), weights in layers.items():
        if number >= counts[where] and weights <= kinds[where]:
            more[where] = max(more.get(where, 0), number + 1)
    return "; ".join(
        f"its files hold {found} layers {where}, of which the first {counts[where]} are used, as its config.json says"
        for where, found in sorted(more.items())
    )


def _numbered(name: str) -> tuple[str, int, str] | None:
    """(what is before the first number in a name, the number, what is after it)."""
    found = re.fullmatch(r"(\D*?)\.(\d+)\.(.*)", name)
    return (found[1], int(found[2]), found[3]) if found else None


def _check_quantized(base: BaseModel, quantized: Any) -> str:
    """Refuse what cannot be loaded anywhere; returns what this machine alone lacks."""
    from transformers.quantizers.auto import AutoHfQuantizer

    method = quantized.get("quant_method") if isinstance(quantized, dict) else getattr(quantized, "quant_method", None)
    try:
        AutoHfQuantizer.from_config(quantized, pre_quantized=True).validate_environment(
            dtype=torch.bfloat16, device_map=None
        )
    except RuntimeError as error:  # a GPU, say, which a login node does not have
        return f" (here: {reason_of(error)})"
    except Exception as error:
        raise ConfigError(
            f"{base.key} {base.name!r} has quantized weights (quantization_config of {str(method)[:40]!r} in its "
            f"config.json), which cannot be loaded here ({reason_of(error)}); expected the package that they need; "
            "install it, or choose a copy of the model that is not quantized."
        ) from error
    return ""
