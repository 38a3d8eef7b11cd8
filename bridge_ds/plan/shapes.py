"""Shapes of known models, so that a run can be planned without a download; of any other by its config.json."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.config.build import one_of
from bridge_ds.config.names import resolve
from bridge_ds.config.schema.models import NO_ENCODER, NO_LLM
from bridge_ds.encoder.families import FAMILIES
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.foreign import stored_json

__all__ = ["ENCODERS", "LLMS", "Shape", "find_shape", "largest_layer"]


@dataclass(frozen=True)
class Shape:
    """A stack of transformer layers and its embeddings."""

    name: str
    layers: int
    width: int
    ffn: int
    """Hidden width of the MLP."""
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
    bias: bool = False
    """Attention adds a number for each head and pair of tokens to its scores (T5's relative positions)."""
    biases: tuple[int, ...] = ()
    """Elements of the biases of one layer's linear layers."""
    norm_biases: bool = False
    """The norms have biases too: two a layer, and the last."""
    extra: int = 0
    """Parameters besides the layers, the token embeddings (with an untied projection) and the last norm."""
    source: str = ""
    """Hub id, or folder: what a run names as its model."""

    @property
    def norm(self) -> int:
        """Parameters of a norm."""
        return self.width * (1 + self.norm_biases)

    @property
    def linear(self) -> dict[str, tuple[int, int]]:
        """Inputs and outputs of one layer's linear layers, by the part of the layer that they are."""
        attention = {"q": (self.width, self.q), "k": (self.width, self.kv), "v": (self.width, self.kv)}
        mlp = {"gate": (self.width, self.ffn)} if self.gated else {}
        mlp |= {"up": (self.width, self.ffn), "down": (self.ffn, self.width)}
        return attention | {"o": (self.q, self.width)} | mlp

    @property
    def layer(self) -> int:
        """Parameters of one layer."""
        return sum(rows * columns for rows, columns in self.linear.values()) + sum(self.biases) + 2 * self.norm

    @property
    def matrices(self) -> int:
        """Tensors of one layer that ZeRO-3 gathers: those below `stage3_param_persistence_threshold` stay whole."""
        return len(self.linear)

    @property
    def embedding(self) -> int:
        """Parameters of the embedding table, the largest single tensor."""
        return self.vocab * self.width

    @property
    def parameters(self) -> int:
        """All of them."""
        tables = self.embedding * (1 if self.tied else 2)
        return self.layers * self.layer + tables + self.norm + self.extra


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
        read = _encoder_shape if known is ENCODERS else _llm_shape
        config = stored_json(name, path)
        try:
            return read(config, path.absolute().parent.name, os.path.abspath(folder) if folder == name else name)
        except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
            raise ConfigError(
                f"{path} has a size that cannot be used ({type(error).__name__}: {error}); expected whole numbers; "
                "download it again."
            ) from None
    if name in (NO_ENCODER, NO_LLM):
        return Shape(name, layers=0, width=0, ffn=0, q=0, kv=0, vocab=0, heads=0, source=name)
    if name.lower() in known:
        return known[name.lower()]
    if "/" in name:  # a name alone with such an ending would not say which repository is meant
        for shape in known.values():
            if _plain(name) in (shape.name, _plain(shape.source)):
                return dataclasses.replace(shape, source=name)
    raise ConfigError(
        f"no shape of a model {name!r} is known; expected a folder with config.json, or one of (or the hub id of "
        f"one of) {', '.join(known)}."
    )


def _plain(hub_id: str) -> str:
    """Without owner, and without what tells kinds of one model apart: `Llama-2-13b-chat-hf` -> `llama-2-13b`."""
    plain = hub_id.split("/")[-1].lower()
    for ending in ("-hf", "-instruct", "-chat", "-it"):
        plain = plain.removesuffix(ending)
    return plain.replace("meta-", "")


def _encoder_shape(config: Mapping[str, Any], name: str, source: str) -> Shape:
    """Of the encoder half, by the facts of its family.

    Raises:
        ConfigError: no such family, or a size is not there.
    """
    kind = str(config.get("model_type", ""))
    one_of(f"model_type of the encoder {name}", kind, FAMILIES)
    family = FAMILIES[kind]
    width = _first(config, name, "hidden_size", "d_model")
    heads = _first(config, name, "encoder_attention_heads", "num_attention_heads", "num_heads")
    ffn = _first(config, name, "encoder_ffn_dim", "intermediate_size", "d_ff")
    inner = heads * _first(config, name, "d_kv", default=width // heads)
    return Shape(
        name=name,
        layers=_first(config, name, "encoder_layers", "num_hidden_layers", "num_layers"),
        width=width,
        ffn=ffn,
        q=inner,
        kv=inner,
        vocab=_first(config, name, "vocab_size"),
        heads=heads,
        gated="gated" in str(config.get("feed_forward_proj", "")),
        bias=family.score_bias,
        biases=(inner, inner, inner, width, ffn, width) if family.biases else (),
        norm_biases=family.biases,
        extra=family.extra(config),
        source=source,
    )


_BIASED = ("gpt2", "opt", "gpt_neox", "bloom", "gpt_bigcode")
"""Kinds of LLM (model_type) in which every linear layer and norm has a bias."""
_TIED = (
    "gpt2", "opt", "bloom", "gpt_bigcode", "gpt_neo", "falcon", "mpt", "xglm", "biogpt", "cohere", "cohere2",
    "starcoder2", "smollm3", "ernie4_5",
)  # fmt: skip
"""Kinds whose projection is the embedding where config.json does not say, beside every Gemma: transformers' classes
have that default, and files leave out what is the default."""
_POSITIONS = {"gpt2": 0, "gpt_bigcode": 0, "gpt_neo": 0, "opt": 2, "biogpt": 2}
"""Kinds with a table of positions -> its rows besides those of the positions."""

_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""Keys of config.json for the MLPs of a layer of which each token takes some."""


def _llm_shape(config: Mapping[str, Any], name: str, source: str) -> Shape:
    for key in _EXPERTS:
        if (config.get(key) or 1) > 1:
            raise ConfigError(
                f"{name} is a mixture of experts ({key} {config[key]}), of which no plan can be made; expected an LLM "
                "with one MLP a layer; train it unplanned."
            )
    width = _first(config, name, "hidden_size", "n_embd", "d_model")
    heads = _first(config, name, "num_attention_heads", "n_head", "num_heads")
    head = _first(config, name, "head_dim", default=width // heads)
    ffn = _first(config, name, "intermediate_size", "ffn_dim", "n_inner", "d_ff", default=4 * width)
    q, kv = heads * head, _first(config, name, "num_key_value_heads", default=heads) * head
    kind = str(config.get("model_type"))
    everywhere = kind in _BIASED
    attention = (q, kv, kv, width) if everywhere or config.get("attention_bias") else (q, kv, kv) * (kind == "qwen2")
    mlp = (ffn, width) if everywhere else (ffn, ffn, width) if config.get("mlp_bias") else ()
    positions = 0
    if kind in _POSITIONS:
        positions = _first(config, name, "max_position_embeddings", "n_positions") + _POSITIONS[kind]
    return Shape(
        name=name,
        layers=_first(config, name, "num_hidden_layers", "n_layer", "num_layers"),
        width=width,
        ffn=ffn,
        q=q,
        kv=kv,
        vocab=_first(config, name, "vocab_size"),
        heads=heads,
        gated=config.get("hidden_act") == "silu" or kind.startswith("gemma"),
        tied=bool(config.get("tie_word_embeddings", kind in _TIED or kind.startswith("gemma"))),
        biases=attention + mlp,
        norm_biases=everywhere,
        extra=width * positions,
        source=source,
    )


def _first(config: Mapping[str, Any], name: str, *keys: str, default: int | None = None) -> int:
    for key in keys:
        if config.get(key):
            return int(config[key])
    if default is None:
        raise ConfigError(f"config.json of {name} has none of {', '.join(keys)}; give a known model's name.")
    return default


def _t5(source: str, layers: int, width: int, ffn: int, heads: int, vocab: int = 250112) -> Shape:
    kind, sizes = source.split("/")[-1].split("-")[0], {"d_ff": ffn, "d_kv": 64, "num_heads": heads}
    config = {"model_type": kind, "num_layers": layers, "d_model": width, "feed_forward_proj": "gated-gelu"} | sizes
    return _encoder_shape(config | {"vocab_size": vocab}, source.split("/")[-1], source)


def _roberta(source: str, layers: int, width: int, heads: int, vocab: int = 250002) -> Shape:
    kind = "xlm-roberta-xl" if source.endswith("-xl") else "xlm-roberta"
    sizes = {"num_attention_heads": heads, "intermediate_size": 4 * width, "max_position_embeddings": 514}
    config = {"model_type": kind, "num_hidden_layers": layers, "hidden_size": width, "type_vocab_size": 1} | sizes
    return _encoder_shape(config | {"vocab_size": vocab}, source.split("/")[-1], source)


def _bert(source: str, layers: int, width: int, heads: int, vocab: int) -> Shape:
    sizes = {"num_attention_heads": heads, "intermediate_size": 4 * width, "max_position_embeddings": 512}
    config = {"model_type": "bert", "num_hidden_layers": layers, "hidden_size": width, "type_vocab_size": 2} | sizes
    return _encoder_shape(config | {"vocab_size": vocab}, source.split("/")[-1], source)


def _nllb(name: str, source: str, layers: int, width: int, ffn: int) -> Shape:
    config = {"model_type": "m2m_100", "encoder_layers": layers, "d_model": width, "encoder_ffn_dim": ffn}
    return _encoder_shape(config | {"encoder_attention_heads": 16, "vocab_size": 256206}, name, source)


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
        _bert("intfloat/multilingual-e5-small", 12, 384, 12, 250037),
        _nllb("nllb-600m", "facebook/nllb-200-distilled-600M", 12, 1024, 4096),
        _nllb("nllb-1.3b", "facebook/nllb-200-1.3B", 24, 1024, 8192),
        _nllb("nllb-3.3b", "facebook/nllb-200-3.3B", 24, 2048, 8192),
    )
}
"""Name -> encoder half."""
LLMS = {
    shape.name: shape
    for shape in (
        _llm("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", 30, 576, 1536, 9, 3, 49152, tied=True),
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
