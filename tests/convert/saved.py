"""State dicts on disk, in the forms in which the peers have them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

State = Mapping[str, torch.Tensor]


def safetensors(state: State, folder: Path) -> Path:
    """One file; as transformers does, of tensors that share memory only the first is kept."""
    from safetensors.torch import save_file

    seen: dict[int, str] = {}
    for key, tensor in state.items():
        seen.setdefault(tensor.data_ptr(), key)
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: state[key].contiguous() for key in seen.values()}, folder / "model.safetensors")
    return folder


def parts(state: State, folder: Path) -> Path:
    """pytorch_model.bin in two parts with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    where = {key: names[number % 2] for number, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if where[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


def whole(state: State, folder: Path) -> Path:
    """pytorch_model.bin as torch writes it today; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state), folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


def wrapped(state: State, folder: Path) -> Path:
    """As MindMerger: under a key, in torch's old format; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "pytorch_model.bin"
    torch.save({"model_state_dict": dict(state)}, file, _use_new_zipfile_serialization=False)
    return file
