"""Shapes of known models, so that a cluster can be planned with no download; any other by its config.json.

Letters: W width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.config.check import one_of
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import MappingConfig
from bridge_ds.errors import ConfigError

__all__ = [
    "ENCODERS",
    "LLMS",
    "ResamplerShape",
    "Shape",
    "find_shape",
    "fusion_parameters",
    "largest_layer",
    "lora_parameters",
    "mapping_parameters",
]


@dataclass(frozen=True)
class ResamplerShape:
    """Sizes of a mapping `latent`, named as in :class:`bridge_ds.config.schema.MappingConfig`."""

    latents: int = MappingConfig.latents
    depth: int = MappingConfig.depth
    heads: int = MappingConfig.heads
    head_width: int = MappingConfig.head_width
    feedforward: int = MappingConfig.feedforward


_RESAMPLER = ResamplerShape()


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
    bias: bool = False
    """Attention adds a number for each head and pair of tokens to its scores (T5's relative positions)."""
    biases: tuple[int, ...] = ()
    """Elements of the biases of one layer's linear layers; `parameters` leaves them out (below 0.1 %)."""
    norm_biases: bool = False
    """The norms have biases too: two a layer, and the last."""
    source: str = ""
    """Hub id, or folder: what a run names as its model."""

    @property
    def layer(self) -> int:
        """Parameters of one layer (biases left out: below 0.1 %)."""
        return 2 * self.width * (self.q + self.kv) + (3 if self.gated else 2) * self.width * self.ffn + 2 * self.width

    @property
    def matrices(self) -> int:
        """Tensors of one layer that ZeRO-3 gathers: those below `stage3_param_persistence_threshold` stay whole."""
        return 4 + (3 if self.gated else 2)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding table, the largest single tensor."""
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        tables = self.embedding * (1 if self.tied else 2) + self.positions * self.width
        return self.layers * self.layer + tables + self.width


def _t5(source: str, layers: int, width: int, ffn: int, heads: int, head: int = 64, vocab: int = 250112) -> Shape:
    name = source.split("/")[-1]
    return Shape(name, layers, width, ffn, heads * head, heads * head, vocab, heads, bias=True, source=source)


def _roberta(source: str, layers: int, width: int, heads: int, vocab: int = 250002) -> Shape:
    name = source.split("/")[-1]
    return Shape(name, layers, width, 4 * width, width, width, vocab, heads, gated=False, positions=514, source=source)


def _nllb(name: str, source: str, layers: int, width: int, ffn: int) -> Shape:
    return Shape(name, layers, width, ffn, width, width, 256206, 16, gated=False, source=source)


def _llm(
    name: str, source: str, layers: int, width: int, ffn: int, heads: int, kv_heads: int, vocab: int, *,
    head: int = 0, tied: bool = False,
) -> Shape:  # fmt: skip
    head = head or width // heads
    q, kv = heads * head, kv_heads * head
    biases = (q, kv, kv) if name.startswith("qwen2") else ()
    return Shape(name, layers, width, ffn, q, kv, vocab, heads, tied=tied, biases=biases, source=source)


# From the models' config.json on the hub.
ENCODERS = {
    shape.name: shape
    for shape in (
        _t5("google/mt5-small", 8, 512, 1024, 6),
        _t5("google/mt5-base", 12, 768, 2048, 12),
        _t5("google/mt5-large", 24, 1024, 2816, 16),
        _t5("google/mt5-xl", 24, 2048, 5120, 32),
        _t5("google/mt5-xxl", 24, 4096, 10240, 64),
        _t5("google/umt5-xl", 24, 2048, 5120, 32, vocab=256384),
        _roberta("FacebookAI/xlm-roberta-base", 12, 768, 12),
        _roberta("FacebookAI/xlm-roberta-large", 24, 1024, 16),
        _roberta("facebook/xlm-roberta-xl", 36, 2560, 32, vocab=250880),
        _nllb("nllb-600m", "facebook/nllb-200-distilled-600M", 12, 1024, 4096),
        _nllb("nllb-1.3b", "facebook/nllb-200-1.3B", 24, 1024, 8192),
        _nllb("nllb-3.3b", "facebook/nllb-200-3.3B", 24, 2048, 8192),
    )
}
"""Name -> encoder half."""
LLMS = {
    shape.name: shape
    for shape in (
        _llm("llama-3.2-1b", "meta-llama/Llama-3.2-1B", 16, 2048, 8192, 32, 8, 128256, tied=True),
        _llm("llama-3.2-3b", "meta-llama/Llama-3.2-3B", 28, 3072, 8192, 24, 8, 128256, tied=True),
        _llm("llama-2-7b", "meta-llama/Llama-2-7b-hf", 32, 4096, 11008, 32, 32, 32000),
        _llm("llama-3.1-8b", "meta-llama/Llama-3.1-8B", 32, 4096, 14336, 32, 8, 128256),
        _llm("llama-2-13b", "meta-llama/Llama-2-13b-hf", 40, 5120, 13824, 40, 40, 32000),
        _llm("llama-2-70b", "meta-llama/Llama-2-70b-hf", 80, 8192, 28672, 64, 8, 32000),
        _llm("llama-3.1-70b", "meta-llama/Llama-3.1-70B", 80, 8192, 28672, 64, 8, 128256),
        _llm("metamath-7b", "meta-math/MetaMath-7B-V1.0", 32, 4096, 11008, 32, 32, 32001),
        _llm("mistral-7b", "mistralai/Mistral-7B-v0.3", 32, 4096, 14336, 32, 8, 32768),
        _llm("qwen2.5-1.5b", "Qwen/Qwen2.5-1.5B", 28, 1536, 8960, 12, 2, 151936, tied=True),
        _llm("qwen2.5-7b", "Qwen/Qwen2.5-7B", 28, 3584, 18944, 28, 4, 152064),
        _llm("qwen2.5-14b", "Qwen/Qwen2.5-14B", 48, 5120, 13824, 40, 8, 152064),
        _llm("qwen2.5-32b", "Qwen/Qwen2.5-32B", 64, 5120, 27648, 40, 8, 152064),
        _llm("qwen2.5-72b", "Qwen/Qwen2.5-72B", 80, 8192, 29568, 64, 8, 152064),
        _llm("gemma-2-2b", "google/gemma-2-2b", 26, 2304, 9216, 8, 4, 256000, head=256, tied=True),
        _llm("gemma-2-9b", "google/gemma-2-9b", 42, 3584, 14336, 16, 8, 256000, head=256, tied=True),
        _llm("gemma-2-27b", "google/gemma-2-27b", 46, 4608, 36864, 32, 16, 256000, head=128, tied=True),
    )
}
"""Name -> causal LLM."""


def largest_layer(encoder: Shape, llm: Shape, encoder_trained: bool) -> int:
    """Parameters of the largest layer that DeepSpeed gathers under stage 3: a frozen encoder's are gathered by
    :mod:`bridge_ds.frozen.gather`."""
    return max(llm.layer, encoder.layer if encoder_trained else 0)


def find_shape(name: str, known: dict[str, Shape]) -> Shape:
    """A known model by its name (`mt5-xl`), by its hub id or that of its copy or instruction-tuned kind
    (`meta-llama/Llama-2-13b-chat-hf`), an embedded one's (`testbed/llm`), or a folder's config.json. Its `source` is
    the id that was given, or the folder.

    Raises:
        ConfigError: none of them.
    """
    folder = resolve(name)
    path = Path(folder) / "config.json"
    if path.is_file():
        shape = _from_config(path)
        return shape if folder == name else dataclasses.replace(shape, source=name)
    if name.lower() in known:
        return known[name.lower()]
    if "/" in name:  # a name alone with such an ending would not say which repository is meant
        for shape in known.values():
            if _plain(name) in (shape.name, _plain(shape.source)):
                return dataclasses.replace(shape, source=name)
    raise ConfigError(
        f"no shape of a model {name!r} is known; expected a folder with config.json, a hub id of, or one of "
        f"{', '.join(known)}."
    )


def _plain(hub_id: str) -> str:
    """Without owner, and without what tells kinds of one model apart: `Llama-2-13b-chat-hf` -> `llama-2-13b`."""
    plain = hub_id.split("/")[-1].lower()
    for ending in ("-hf", "-instruct", "-chat", "-it"):
        plain = plain.removesuffix(ending)
    return plain.replace("meta-", "")


_BIASED = ("gpt2", "opt", "gpt_neox", "bloom", "gpt_bigcode")
"""Kinds of LLM (model_type) in which every linear layer and norm has a bias."""


def _from_config(path: Path) -> Shape:
    config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))

    def first(*keys: str, default: int | None = None) -> int:
        for key in keys:
            if config.get(key):
                return int(config[key])
        if default is None:
            raise ConfigError(f"{path} has none of {', '.join(keys)}; give a known model's name.")
        return default

    width = first("hidden_size", "d_model", "n_embd")
    heads = first("num_attention_heads", "encoder_attention_heads", "num_heads", "n_head")
    head = first("head_dim", "d_kv", default=width // heads)
    t5 = "d_kv" in config
    ffn = first("intermediate_size", "d_ff", "encoder_ffn_dim", "n_inner", default=4 * width)
    q, kv = heads * head, first("num_key_value_heads", default=heads) * head
    kind = config.get("model_type")
    everywhere = kind in _BIASED
    attention = (q, kv, kv, width) if everywhere or config.get("attention_bias") else (q, kv, kv) * (kind == "qwen2")
    mlp = (ffn, width) if everywhere else (ffn, ffn, width) if config.get("mlp_bias") else ()
    return Shape(
        name=path.absolute().parent.name,
        layers=first("num_layers", "encoder_layers", "num_hidden_layers", "n_layer"),
        width=width,
        ffn=ffn,
        q=q,
        kv=kv,
        vocab=first("vocab_size"),
        heads=heads,
        gated="gated" in str(config.get("feed_forward_proj", "")) if t5 else config.get("hidden_act") == "silu",
        tied=t5 or bool(config.get("tie_word_embeddings", config.get("model_type") in ("bert", "xlm-roberta"))),
        positions=0
        if t5 or "rope_theta" in config or "rope_parameters" in config
        else first("max_position_embeddings", default=0),
        bias=t5,
        biases=attention + mlp,
        norm_biases=everywhere,
        source=os.path.abspath(path.parent),
    )


def fusion_parameters(name: str, layers: int, width: int, feedforward: int) -> int:
    """Trained parameters of a fusion over `layers` states of `width`.

    Raises:
        ConfigError: no fusion of that name.
    """
    attention = 4 * width * width + 4 * width
    mlp = 2 * width * feedforward + feedforward + width
    found = {
        "last_layer": 0,
        "global_softmax": layers + 1,
        "layer_attention": width,
        "transformer_softmax": 2 * layers * width + layers + attention + mlp + 5 * width,
    }
    one_of("fusion.name", name, found)
    return found[name]


def mapping_parameters(kind: str, width: int, llm_width: int, of: ResamplerShape = _RESAMPLER) -> int:
    """Trained parameters of a mapping, its end vector included; `of` has the sizes of `latent`.

    Raises:
        ConfigError: no mapping of that kind.
    """
    linear = width * llm_width + 2 * llm_width
    mlp = 2 * width * width + 2 * width + 2 * width * llm_width + 2 * llm_width
    # Attention (q, k, v, out) with two norms, and the MLP with its biases; then the way out, its norm, the end vector.
    layer = 4 * width * of.heads * of.head_width + 4 * width + of.feedforward * (2 * width * width + width) + width
    latent = of.latents * width + of.depth * layer + width * llm_width + 3 * llm_width
    found = {"linear": linear, "mlp": mlp, "mlp_gelu": mlp, "latent": latent}
    one_of("mapping.kind", kind, found)
    return found[kind]


def lora_parameters(shape: Shape, rank: int, bias: str = "none") -> int:
    """Trained parameters of LoRA's updates of all linear layers but the output head: rank x (inputs + outputs) each;
    and of the biases that are trained with them (`lora.bias`)."""
    attention = 2 * (shape.width + shape.q) + 2 * (shape.width + shape.kv)
    mlp = (3 if shape.gated else 2) * (shape.width + shape.ffn)
    biases = 0 if bias == "none" or not rank else shape.layers * sum(shape.biases)
    if bias == "all" and rank and shape.norm_biases:
        biases += (2 * shape.layers + 1) * shape.width
    return shape.layers * rank * (attention + mlp) + biases
