"""Models and batches of the benchmarks: named shapes with random weights, and random words for them.

Speed does not depend on the values of weights and ids.
"""

from __future__ import annotations

import random
from functools import cache
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.encoder.frozen import FrozenEncoder
from bridge_ds.fusion import FUSIONS
from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.llm.support import behavior_of
from bridge_ds.mapping.projector import Projector
from bridge_ds.testbed import ENCODER_PATH, ENGLISH, LLM_PATH
from bridge_ds.testbed.languages import word_list

__all__ = [
    "DTYPES", "FEEDFORWARD", "SIZES", "VOCABULARY", "frozen_pair", "make_batch", "make_model", "make_texts",
    "needed_flops", "tokenizers", "trained",
]  # fmt: skip

SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "tiny": (
        {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "testbed": (
        {"d_model": 192, "d_ff": 384, "d_kv": 32, "num_heads": 6, "num_layers": 6},
        {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
    ),
    "mt5-base6+106m": (
        {"d_model": 768, "d_ff": 2048, "d_kv": 64, "num_heads": 12, "num_layers": 6},
        {"hidden_size": 768, "intermediate_size": 1920, "num_hidden_layers": 12, "num_attention_heads": 12},
    ),
    "mt5-small+1b": (
        {"d_model": 512, "d_ff": 1024, "d_kv": 64, "num_heads": 6, "num_layers": 8},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    ),
    "mt5-large+1b": (
        {"d_model": 1024, "d_ff": 2816, "d_kv": 64, "num_heads": 16, "num_layers": 24},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    ),
    "mt5-xl+1b": (
        {"d_model": 2048, "d_ff": 5120, "d_kv": 64, "num_heads": 32, "num_layers": 24},
        {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    ),
}
"""Named sizes: of the mT5 encoder and of the Llama. mt5-base6+106m: the Llama has 81 M parameters in its layers and, at
a vocabulary of 32,000, 25 M in its table."""
FEEDFORWARD = {"tiny": 32, "testbed": 192}
"""`fusion.feedforward` where a recipe differs from the paper's 2048."""
VOCABULARY = 4096
"""Of the LLM, unless asked otherwise."""
ENCODER_VOCABULARY = 8192
"""Holds the ids of the testbed's tokenizer."""
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@cache
def tokenizers() -> tuple[Any, Any]:
    """The testbed's SentencePiece tokenizer of the encoder and the LLM's."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(ENCODER_PATH), AutoTokenizer.from_pretrained(LLM_PATH)


def frozen_pair(
    sizes: str, device: torch.device, dtype: torch.dtype, layers: int = 0, vocabulary: int = VOCABULARY
) -> tuple[FrozenEncoder, FrozenLLM]:
    """An mT5 encoder and a Llama, made on the device with random weights.

    Args:
        layers: of both; 0 = as named.
        vocabulary: of the LLM.
    """
    from transformers import LlamaConfig, LlamaForCausalLM, MT5Config, MT5EncoderModel

    encoder_size, llm_size = (dict(size) for size in SIZES[sizes])
    if layers:
        encoder_size["num_layers"] = llm_size["num_hidden_layers"] = layers
    usual = torch.get_default_dtype()
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        with device:
            encoder = MT5EncoderModel(MT5Config(vocab_size=ENCODER_VOCABULARY, **encoder_size))  # type: ignore[arg-type]
            llm = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **llm_size))  # type: ignore[arg-type]
    finally:
        torch.set_default_dtype(usual)
    pair: tuple[Any, Any] = (encoder, llm)
    for model in pair:
        model.requires_grad_(False)
    frozen = FrozenLLM(llm)
    frozen.behavior = behavior_of("llama", llm.config)  # as load_llm does
    return FrozenEncoder(encoder), frozen


def make_model(
    name: str, feedforward: int, encoder: FrozenEncoder, llm: FrozenLLM, device: torch.device
) -> BridgeModel:
    """The frozen pair with a bridge of this fusion, in training mode."""
    more: dict[str, Any] = {"feedforward": feedforward} if "feedforward" in FUSIONS[name].options else {}
    with device:
        fusion = FUSIONS[name](num_layers=encoder.num_layers, width=encoder.width, **more)
        mapping = Projector("linear", encoder.width, llm.width)
    model = BridgeModel(encoder, fusion, mapping, llm, bos=tokenizers()[1].bos_token_id)
    model.train()
    return model


def trained(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """Parameters of the bridge."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_texts(rows: int, source: str, target: int, seed: int = 1) -> tuple[list[str], list[str]]:
    """Random words for both tokenizers.

    Args:
        source: encoder tokens of a row, the end token included: `9-59`, or `512` for 256 to 512. The last row is the
            longest.
        target: LLM tokens of a row, the end token included.

    Returns:
        Sources, and targets without the end token's text.
    """
    draw = random.Random(seed)
    least, dash, most = source.partition("-")
    low, high = (int(least), int(most)) if dash else (max(1, int(source) // 2), int(source))
    lengths = [*(draw.randint(low, high) for _ in range(rows - 1)), high]
    words = word_list(ENGLISH)  # each of them is one token for either tokenizer
    return (
        [" ".join(draw.choices(words, k=length - 1)) for length in lengths],
        [" ".join(draw.choices(words, k=target - 1)) for _ in range(rows)],
    )


def make_batch(texts: tuple[list[str], list[str]], packing: Packing | None = None) -> Batch:
    """These texts as the data workers would give them, on the CPU, without a prompt."""
    of_encoder, of_llm = tokenizers()
    sources = of_encoder(texts[0]).input_ids
    targets = [
        [*of_llm(text, add_special_tokens=False).input_ids, of_llm.eos_token_id] if text else [of_llm.eos_token_id]
        for text in texts[1]
    ]
    rows = [TokenizedSample(one, [], other, ()) for one, other in zip(sources, targets, strict=True)]
    return collate(rows, of_encoder.pad_token_id, of_llm.eos_token_id, opening=True, packing=packing)


def needed_flops(model: BridgeModel, batch: Batch) -> float:
    """Floating-point operations that the models need for a step; the formula stands in the help of bench_step.py."""
    tokens = batch.source_tokens
    places = tokens + batch.source_ids.shape[0] * 2 + batch.target_tokens  # BOS and the end vector
    head = model.llm.model.get_output_embeddings().weight.numel()
    encoder = sum(p.numel() for p in model.encoder.parameters()) - model.encoder.vocab_size * model.encoder.width
    layers = sum(p.numel() for p in model.llm.parameters()) - 2 * head  # the input embeddings are as large
    llm = layers * places + head * batch.target_tokens
    return 2.0 * encoder * tokens + 4.0 * llm + 6.0 * sum(p.numel() for p in trained(model)) * tokens
