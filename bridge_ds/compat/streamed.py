"""Read a model's files a part at a time while ZeRO-3 shards it, so that no rank ever holds the whole model.

transformers (5.17 to 5.24) opens all files on rank 0 and keeps every tensor until the last is sharded: that rank's
memory comes to a whole model, 140 GB for one of 70 B parameters. Here a tensor is a position in its file, and a part
of them at a time goes through transformers' own function for ZeRO-3, which takes parts. It can go when the last assert
of tests/frozen/test_streamed.py fails: without it, rank 0 then no longer holds a whole model.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

__all__ = ["PART_BYTES", "parts", "streamed"]

PART_BYTES = 256 << 20
"""Bytes of tensors that rank 0 holds at once beside its share; one that is larger is a part of its own."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a safetensors file, not read yet."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Of the tensor."""
        return math.prod(self.shape) * self.dtype.itemsize


def parts(stored: Mapping[str, StoredTensor], size: int = PART_BYTES) -> Iterator[dict[str, StoredTensor]]:
    """Runs of at most `size` bytes (but at least one tensor), in the mapping's order: the same on every rank."""
    part: dict[str, StoredTensor] = {}
    held = 0
    for name, tensor in stored.items():
        if part and held + tensor.bytes > size:
            yield part
            part, held = {}, 0
        part[name] = tensor
        held += tensor.bytes
    if part:
        yield part


@contextmanager
def streamed() -> Iterator[None]:
    """While this lasts, `from_pretrained` under ZeRO-3 reads safetensors by parts. Without ZeRO-3, or for other files,
    and with a transformers that works in another way, nothing changes."""
    from transformers import modeling_utils
    from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

    shard, read = (
        getattr(modeling_utils, name, None) for name in ("_load_state_dict_into_zero3_model", "load_state_dict")
    )
    if not (is_deepspeed_zero3_enabled() and shard and read):
        yield
        return

    def read_headers(checkpoint_file: str, *given: Any, **options: Any) -> dict[str, Any]:
        if not str(checkpoint_file).endswith(".safetensors"):
            return read(checkpoint_file, *given, **options)  # type: ignore[no-any-return]
        return _stored(Path(checkpoint_file))

    def shard_parts(model: Any, state: dict[str, Any], load_config: Any = None) -> tuple[list[str], set[str]]:
        stored = {name: tensor for name, tensor in state.items() if isinstance(tensor, StoredTensor)}
        # A conversion (of experts that are kept apart, say) may need tensors of several parts.
        chunks = [stored] if _converts(load_config) else parts(stored)
        errors, missing = shard(model, {name: v for name, v in state.items() if name not in stored}, load_config)
        for chunk in chunks:
            more_errors, still_missing = shard(model, _tensors(chunk), load_config)
            errors, missing = errors + more_errors, missing & still_missing
            gc.collect()  # transformers' function refers to itself and would hold its part until some later collection
        return errors, missing

    modeling_utils._load_state_dict_into_zero3_model = shard_parts  # type: ignore[assignment]
    modeling_utils.load_state_dict = read_headers  # type: ignore[assignment]
    try:
        yield
    finally:
        modeling_utils._load_state_dict_into_zero3_model = shard  # type: ignore[assignment]
        modeling_utils.load_state_dict = read


def _converts(load_config: Any) -> bool:
    from transformers.core_model_loading import WeightRenaming

    rules: Sequence[Any] = getattr(load_config, "weight_mapping", None) or ()
    return not all(isinstance(rule, WeightRenaming) for rule in rules)


def _stored(file: Path) -> dict[str, StoredTensor]:
    from safetensors import safe_open
    from transformers.modeling_utils import str_to_torch_dtype

    found = {}
    with safe_open(file, framework="pt") as opened:
        for key in list(opened.keys()):
            header = opened.get_slice(key)
            found[key] = StoredTensor(file, key, tuple(header.get_shape()), str_to_torch_dtype[header.get_dtype()])
    return found


def _tensors(stored: Mapping[str, StoredTensor]) -> dict[str, torch.Tensor]:
    """The tensors on rank 0, which broadcasts them; on the others tensors without data."""
    if torch.distributed.get_rank() > 0:
        return {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in stored.items()}
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for file in dict.fromkeys(tensor.file for tensor in stored.values()):
        # Opened again for each part: what was read of a file stays in this process's memory while it is open.
        with safe_open(file, framework="pt") as opened:
            found |= {name: opened.get_tensor(tensor.key) for name, tensor in stored.items() if tensor.file == file}
    return found
