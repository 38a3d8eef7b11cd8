"""A checkpoint's tensors by key, from safetensors or pickled files; nothing is unpickled but plain tensors."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ds.errors import CheckpointError

if TYPE_CHECKING:
    import torch

__all__ = ["Stored", "read_checkpoint"]

_NAMES = ("model.safetensors", "pytorch_model.bin")
_PICKLED = (".bin", ".pt", ".pth")
_INDEX = ".index.json"
_WRAPPERS = ("model_state_dict", "state_dict", "module", "model")
"""Keys under which trainers put the state dict, next to other things."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    file: Path
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]
    """The tensor, on CPU; read only when called, for some checkpoints hold complete models."""


def read_checkpoint(path: Path) -> dict[str, Stored]:
    """The tensors of a file, of a file in parts (given by its `.index.json`), or of a folder that holds either.

    Raises:
        CheckpointError: nothing is there, a part is missing, a file is damaged, or it holds more than tensors.
    """
    found: dict[str, Stored] = {}
    for file in _files(path):
        for key, stored in _read(file).items():
            if key in found:
                raise CheckpointError(f"{key} is in {found[key].file} and in {file}; expected every key once.")
            found[key] = stored
    if not found:
        raise CheckpointError(f"{path} holds no tensor; expected a state dict.")
    return found


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        names = [*_NAMES, *(f"{name}{_INDEX}" for name in _NAMES)]
        here = [path / name for name in names if (path / name).is_file()]
        if not here:
            raise CheckpointError(
                f"{path} holds none of {', '.join(names)}; expected one of them; name the checkpoint's file itself."
            )
        path = here[0]
    if not path.is_file():
        raise CheckpointError(f"no checkpoint {path}; expected a file, or a folder that holds one.")
    if not path.name.endswith(_INDEX):
        return [path]
    from bridge_ds.frozen.verify import shard_names  # imports torch, which --help does not need

    names = shard_names(path, "part", CheckpointError)
    for name in names:
        if not (path.parent / name).is_file():
            raise CheckpointError(f"{path} names the part {name}, which is not beside it; copy all of its parts.")
    return [path.parent / name for name in names]


def _read(file: Path) -> dict[str, Stored]:
    if file.suffix == ".safetensors":
        reader: Callable[[Path], Iterator[tuple[str, Stored]]] = _safetensors
    elif file.suffix in _PICKLED:
        reader = _pickled
    else:
        raise CheckpointError(
            f"{file} is no kind of file that is read; expected .safetensors or {', '.join(_PICKLED)}."
        )
    try:
        return dict(reader(file))
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes make torch.load raise errors of almost any type
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200].rstrip(".")
        raise CheckpointError(
            f"{file} cannot be read ({reason}); expected tensors by name; it is damaged, or holds pickled objects, "
            "which are never run: download it again, or save its state dict as safetensors where you trust it."
        ) from None


def _safetensors(file: Path) -> Iterator[tuple[str, Stored]]:
    from safetensors import safe_open

    def reader(key: str) -> Callable[[], torch.Tensor]:
        def read() -> torch.Tensor:
            with safe_open(file, framework="pt") as opened:
                return opened.get_tensor(key)

        return read

    with safe_open(file, framework="pt") as opened:
        for key in list(opened.keys()):
            yield key, Stored(file, tuple(opened.get_slice(key).get_shape()), reader(key))


def _pickled(file: Path) -> Iterator[tuple[str, Stored]]:
    import torch

    # Files of torch's old format cannot be mapped; MindMerger writes such.
    content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    if isinstance(content, Mapping):
        content = next((content[name] for name in _WRAPPERS if isinstance(content.get(name), Mapping)), content)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{file} holds {type(content).__name__}; expected a state dict: tensors by name.")
    for key, value in content.items():
        if not isinstance(value, torch.Tensor):
            raise CheckpointError(
                f"{file} has {type(value).__name__} at {key}; expected a state dict: tensors by name."
            )
        held = value.layout == torch.strided and not value.is_meta and value.untyped_storage().nbytes()
        if value.numel() and (not held or held < value.numel() * value.element_size()):
            raise CheckpointError(
                f"{file} has a tensor of shape {tuple(value.shape)} at {key} and other numbers; expected whole, "
                "dense tensors; save its state dict again."
            )
        yield str(key), Stored(file, tuple(value.shape), value.detach)
