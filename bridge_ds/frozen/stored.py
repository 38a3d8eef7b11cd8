"""What a model's files of weights hold, without reading a weight: a damaged or foreign file becomes one sentence."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError, safe_open

from bridge_ds.errors import ConfigError, brief
from bridge_ds.frozen.foreign import AGAIN, refuse_foreign

__all__ = ["stored_tensors"]


def stored_tensors(key: str, files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """Every tensor in files of weights, on the meta device: names, shapes and dtypes.

    Args:
        key: the setting that names the model (`model.llm`).
        files: of :func:`bridge_ds.frozen.verify.loaded_files`; those that hold no weights are passed over.

    Raises:
        ConfigError: a file was cut or damaged, or is of another kind.
    """
    found: dict[str, torch.Tensor] = {}
    for path in files:
        if path.suffix in (".safetensors", ".bin"):
            refuse_foreign(key, path)
            found |= _of_safetensors(key, path) if path.suffix == ".safetensors" else _of_torch(key, path)
    return found


def _of_safetensors(key: str, path: Path) -> dict[str, torch.Tensor]:
    from transformers.modeling_utils import str_to_torch_dtype as dtypes

    found = {}
    try:
        # For torch it would map the file as memory that may be written: more than a login node may have.
        with safe_open(path, framework="np") as file:
            for name in list(file.keys()):
                header = file.get_slice(name)
                if header.get_dtype() not in dtypes:
                    raise ConfigError(
                        f"{key}: {path} holds {name} as {header.get_dtype()}, which this version of transformers "
                        f"cannot read; expected one of {', '.join(dtypes)}; take another copy of the model."
                    )
                found[name] = torch.empty(header.get_shape(), dtype=dtypes[header.get_dtype()], device="meta")
    except (SafetensorError, OSError, OverflowError, RuntimeError) as error:
        raise _damaged(key, path, error, "safetensors") from None
    return found


def _of_torch(key: str, path: Path) -> dict[str, torch.Tensor]:
    with path.open("rb") as file:
        old = file.read(2) == b"\x80\x02"  # torch's format before 1.6, which is read whole
    if not old and not zipfile.is_zipfile(path):
        raise _damaged(key, path, "no file of torch, or its end is missing", "a state dict of torch")
    try:
        held = torch.load(path, map_location="meta", weights_only=True, mmap=not old)
    # The unpickler meets whatever the file holds.
    except Exception as error:
        if isinstance(error, UnpicklingError) and "weights_only" in str(error).lower().replace(" ", "_"):
            error = UnpicklingError("it holds pickled objects, which are never run")
        raise _damaged(key, path, error, "pytorch_model.bin with tensors alone") from None
    if not isinstance(held, dict):
        raise _damaged(key, path, f"it holds a {type(held).__name__}", "a dict of names and tensors")
    return {str(name): tensor for name, tensor in held.items() if isinstance(tensor, torch.Tensor)}


def _damaged(key: str, path: Path, error: object, expected: str) -> ConfigError:
    reason = brief(error, 160)
    return ConfigError(f"{key}: {path} cannot be read ({reason}); expected {expected}; it was cut or damaged: {AGAIN}.")
