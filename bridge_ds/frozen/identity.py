"""Which base model a bridge belongs to: a hash that is cheap at 140 GB and changes when the model does."""

from __future__ import annotations

import hashlib
import struct

from bridge_ds.frozen.verify import weight_files

__all__ = ["model_identity", "tokenizer_identity"]


def model_identity(model_config_json: str, name: str, revision: str | None = None) -> str:
    """Hex digest over the architecture and each weight file's name, size and safetensors header.

    The header holds every tensor's name, dtype and shape; together with the size it tells two models apart without
    reading the weights. (Two fine-tunes of one model differ in `name`, which the manifest also holds.)
    """
    digest = hashlib.sha256(model_config_json.encode())
    for path in weight_files(name, revision):
        with path.open("rb") as file:
            header = file.read(struct.unpack("<Q", file.read(8))[0])
            # A slice of the data itself: fine-tunes share the header.
            file.seek(max(8 + len(header), path.stat().st_size // 2))
            digest.update(f"{path.name}:{path.stat().st_size}".encode() + header + file.read(1 << 16))
    return digest.hexdigest()


def tokenizer_identity(tokenizer: object) -> str:
    """Hex digest over the vocabulary with its ids."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()  # type: ignore[attr-defined]
    text = "\n".join(
        f"{token}\t{number}" for token, number in sorted(vocabulary.items(), key=lambda item: (item[1], item[0]))
    )
    return hashlib.sha256(text.encode()).hexdigest()
