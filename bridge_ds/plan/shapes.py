"""Shapes of known models, so that a cluster can be planned with no download; any other by its config.json.

Letters: W width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.errors import ConfigError

__all__ = ["ENCODERS", "LLMS", "Shape", "find_shape", "fusion_parameters", "lora_parameters", "mapping_parameters"]


@dataclass(frozen=True)
class Shape:
    """A stack of transformer layers and its embeddings."""

    name: str
    layers: int
    width: int
    ffn: int
    """F."""
    q: int
    """Width of the queries: heads x head size."""
    kv: int
    """Width of the keys (and of the values)."""
    vocab: int
    heads: int
    gated: bool = True
    """Three matrices in the MLP, not two."""
    tied: bool = True
    """The vocabulary projection is the embedding (or there is none)."""
    positions: int = 0
    """Rows of a learnt position table."""

    @property
    def layer(self) -> int:
        """Parameters of one layer (biases left out: below 0.1 %)."""
        return 2 * self.width * (self.q + self.kv) + (3 if self.gated else 2) * self.width * self.ffn + 2 * self.width

    @property
    def embedding(self) -> int:
        """Parameters of the embedding table, the largest single tensor."""
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        tables = self.embedding * (1 if self.tied else 2) + self.positions * self.width
        return self.layers * self.layer + tables + self.width


def _t5(name: str, layers: int, width: int, ffn: int, heads: int, head: int = 64, vocab: int = 250112) -> Shape:
    return Shape(name, layers, width, ffn, heads * head, heads * head, vocab, heads)


def _roberta(name: str, layers: int, width: int, heads: int, vocab: int = 250002) -> Shape:
    return Shape(name, layers, width, 4 * width, width, width, vocab, heads, gated=False, positions=514)


def _llm(
    name: str, layers: int, width: int, ffn: int, heads: int, kv_heads: int, vocab: int, *, head: int = 0,
    tied: bool = False,
) -> Shape:  # fmt: skip
    head = head or width // heads
    return Shape(name, layers, width, ffn, heads * head, kv_heads * head, vocab, heads, tied=tied)


# From the models' config.json on the hub.
ENCODERS = {
    shape.name: shape
    for shape in (
        _t5("mt5-small", 8, 512, 1024, 6),
        _t5("mt5-base", 12, 768, 2048, 12),
        _t5("mt5-large", 24, 1024, 2816, 16),
        _t5("mt5-xl", 24, 2048, 5120, 32),
        _t5("mt5-xxl", 24, 4096, 10240, 64),
        _t5("umt5-xl", 24, 2048, 5120, 32, vocab=256384),
        _roberta("xlm-roberta-base", 12, 768, 12),
        _roberta("xlm-roberta-large", 24, 1024, 16),
        _roberta("xlm-roberta-xl", 36, 2560, 32, vocab=250880),
        Shape("nllb-600m", 12, 1024, 4096, 1024, 1024, 256206, 16, gated=False),
        Shape("nllb-1.3b", 24, 1024, 8192, 1024, 1024, 256206, 16, gated=False),
        Shape("nllb-3.3b", 24, 2048, 8192, 2048, 2048, 256206, 16, gated=False),
    )
}
"""Name -> encoder half."""
LLMS = {
    shape.name: shape
    for shape in (
        _llm("llama-3.2-1b", 16, 2048, 8192, 32, 8, 128256, tied=True),
        _llm("llama-3.2-3b", 28, 3072, 8192, 24, 8, 128256, tied=True),
        _llm("llama-2-7b", 32, 4096, 11008, 32, 32, 32000),
        _llm("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128256),
        _llm("llama-2-13b", 40, 5120, 13824, 40, 40, 32000),
        _llm("llama-2-70b", 80, 8192, 28672, 64, 8, 32000),
        _llm("llama-3.1-70b", 80, 8192, 28672, 64, 8, 128256),
        _llm("mistral-7b", 32, 4096, 14336, 32, 8, 32768),
        _llm("qwen2.5-1.5b", 28, 1536, 8960, 12, 2, 151936, tied=True),
        _llm("qwen2.5-7b", 28, 3584, 18944, 28, 4, 152064),
        _llm("qwen2.5-14b", 48, 5120, 13824, 40, 8, 152064),
        _llm("qwen2.5-32b", 64, 5120, 27648, 40, 8, 152064),
        _llm("qwen2.5-72b", 80, 8192, 29568, 64, 8, 152064),
        _llm("gemma-2-2b", 26, 2304, 9216, 8, 4, 256000, head=256, tied=True),
        _llm("gemma-2-9b", 42, 3584, 14336, 16, 8, 256000, head=256, tied=True),
        _llm("gemma-2-27b", 46, 4608, 36864, 32, 16, 256000, head=128, tied=True),
    )
}
"""Name -> causal LLM."""


def find_shape(name: str, known: dict[str, Shape]) -> Shape:
    """A known model by its name (`mt5-xl`, `google/mt5-xl`, `meta-llama/Llama-2-13b-hf`), or a folder's config.json.

    Raises:
        ConfigError: neither.
    """
    path = Path(name) / "config.json"
    if path.is_file():
        return _from_config(name, json.loads(path.read_text(encoding="utf-8")))
    plain = name.split("/")[-1].lower()
    for ending in ("-hf", "-instruct", "-chat"):
        plain = plain.removesuffix(ending)
    plain = plain.replace("meta-", "")
    if plain in known:
        return known[plain]
    raise ConfigError(
        f"no shape of a model {name!r} is known; expected a folder with config.json or one of {', '.join(known)}."
    )


def _from_config(name: str, config: dict[str, Any]) -> Shape:
    def first(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if config.get(key):
                return int(config[key])
        if default is None:
            raise ConfigError(f"{name}/config.json has none of {', '.join(keys)}; give a known model's name.")
        return default

    width = first("hidden_size", "d_model", "n_embd")
    heads = first("num_attention_heads", "encoder_attention_heads", "num_heads", "n_head")
    head = first("head_dim", "d_kv", default=width // heads)
    t5 = "d_kv" in config
    return Shape(
        name=name,
        layers=first("num_layers", "encoder_layers", "num_hidden_layers", "n_layer"),
        width=width,
        ffn=first("intermediate_size", "d_ff", "encoder_ffn_dim", "n_inner", default=4 * width),
        q=heads * head,
        kv=first("num_key_value_heads", default=heads) * head,
        vocab=first("vocab_size"),
        heads=heads,
        gated="gated" in str(config.get("feed_forward_proj", "")) if t5 else config.get("hidden_act") == "silu",
        tied=t5 or bool(config.get("tie_word_embeddings", config.get("model_type") in ("bert", "xlm-roberta"))),
        positions=0
        if t5 or "rope_theta" in config or "rope_parameters" in config
        else first("max_position_embeddings", default=0),
    )


def fusion_parameters(name: str, layers: int, width: int, feedforward: int) -> int:
    """Trained parameters of a fusion over `layers` states of `width`."""
    if name == "last_layer":
        return 0
    if name == "global_softmax":
        return layers + 1
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * feedforward + feedforward + width
    return width + layers * width + attention + mlp + 4 * width + layers * width + layers


def mapping_parameters(kind: str, width: int, llm_width: int) -> int:
    """Trained parameters of a mapping, its end vector included."""
    if kind == "linear":
        return width * llm_width + 2 * llm_width
    return 2 * width * width + 2 * width + 2 * width * llm_width + 2 * llm_width


def lora_parameters(shape: Shape, rank: int) -> int:
    """Trained parameters of LoRA's updates of all linear layers but the output head: rank x (inputs + outputs) each."""
    attention = 2 * (shape.width + shape.q) + 2 * (shape.width + shape.kv)
    mlp = (3 if shape.gated else 2) * (shape.width + shape.ffn)
    return shape.layers * rank * (attention + mlp)
