"""Small encoders with what they were pretrained with, and samples of two languages."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoModel, AutoTokenizer

from bridge_ds.config.load import load_config
from bridge_ds.config.schema import Config
from tests import tiny

TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "a bridge joins two banks of one river",
    "numbers 1 2 3 and signs of rain",
    "it was wet and the dog sat at the river",
]
PAIRS = [(" ".join(word[::-1] for word in text.split()), text) for text in TEXTS]


def encoder(kind: str, folder: Path, head: bool = True) -> Path:
    """An encoder whose tokenizer has a mask token and three sentinels; without its head or decoder if asked."""
    tiny.make_encoder(kind, folder, vocab=352)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    extra = [f"<extra_id_{number}>" for number in range(3)]
    tokenizer.add_special_tokens({"mask_token": "<mask>", "additional_special_tokens": extra})
    tokenizer.save_pretrained(folder)
    if not head:
        AutoModel.from_pretrained(folder, add_pooling_layer=False).save_pretrained(folder)
    return folder


def config(folder: Path, *more: str) -> Config:
    """Of the encoder alone."""
    settings = [f"model.encoder={folder}", "model.dtype=float32", "data.shards=none", "data.max_source_tokens=24"]
    return load_config("adapt", [*settings, *more])
