"""Which base model a bridge belongs to: a hash that is cheap at 140 GB and changes when the model does."""

from __future__ import annotations

import copy
import hashlib
import json
import struct
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from bridge_ds.frozen.verify import model_file, weight_files

__all__ = ["as_first_recorded", "model_identity", "published_config", "tokenizer_identity"]

_OF_THE_SAVE = ("_name_or_path", "dtype", "torch_dtype", "transformers_version")
"""Keys of a config.json that say how it was saved and nothing about the model."""


def model_identity(
    config_json: str, name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})
) -> str:
    """Hex digest over the architecture and each weight file's name, size and safetensors header.

    The header holds every tensor's name, dtype and shape; together with the size it tells two models apart without
    reading the weights. (Two fine-tunes of one model differ in `name`, which the manifest also holds.)

    Args:
        config_json: the architecture, see :func:`published_config`.
        name: folder or hub id.
        revision: hub revision.
        hub: see :func:`bridge_ds.frozen.verify.weight_files`.
    """
    digest = hashlib.sha256(config_json.encode())
    for path in weight_files(name, revision, hub):
        with path.open("rb") as file:
            header = file.read(struct.unpack("<Q", file.read(8))[0])
            # A slice of the data itself: fine-tunes share the header.
            file.seek(max(8 + len(header), path.stat().st_size // 2))
            digest.update(f"{path.name}:{path.stat().st_size}".encode() + header + file.read(1 << 16))
    return digest.hexdigest()


def published_config(name: str, revision: str | None = None, hub: Mapping[str, Any] = MappingProxyType({})) -> str:
    """A model's config.json as it was published, in one spelling, without what only says how it was saved.

    Not what transformers makes of it: that differs between versions, with the number format and with quantization,
    and a bridge would then be refused by the very model it was trained with.
    """
    path = model_file(name, "config.json", revision, hub)
    values = json.loads(path.read_text(encoding="utf-8")) if path else {}
    return json.dumps({key: value for key, value in values.items() if key not in _OF_THE_SAVE}, sort_keys=True)


def as_first_recorded(config: Any, dtype: str) -> str:
    """The architecture as checkpoints first recorded it: the loaded config, as this version of transformers writes it.

    Args:
        config: of the loaded model.
        dtype: the number format in which the bridge was trained.
    """
    import torch

    config = copy.deepcopy(config)
    config.dtype = getattr(torch, dtype)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    return str(config.to_json_string())


def tokenizer_identity(tokenizer: object) -> str:
    """Hex digest over the vocabulary with its ids."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    text = "\n".join(
        f"{token}\t{number}" for token, number in sorted(vocabulary.items(), key=lambda item: (item[1], item[0]))
    )
    return hashlib.sha256(text.encode()).hexdigest()
