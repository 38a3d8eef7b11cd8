"""An LLM that can be read: each token's embedding tells its id, and what follows a token is a table.

It has no attention and no memory, so that what it writes is decided by the last position of its input alone, with a
wide margin. Tokenizers beside it have a vocabulary written down here, so that their ids are the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

SOFT, END = -1, -2
"""Ids for a soft token and the end vector where an input is written as ids."""
WIDTH = 64
_TELLS = WIDTH - 1
_MERGES = (
    "E n|En t|a i|ai l|m e|me n|men t|S Ent|L a|La b|e l|Lab el|S Label|N e|Ne u|Neu t|r a|ra l|S Neut|w e|we t|S wet"
)
"""In their order; S is the sign of a space."""


def byte_level(folder: Path, *, bos: str | None, adds: bool) -> Path:
    """As GPT-2's and Llama 3's: <|begin|> 0, <|end|> 1, the 256 bytes from 2 on, then the merges.

    Args:
        bos: the token that is called BOS.
        adds: whether every text begins with it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(pair.replace("S", "Ġ").split()) for pair in _MERGES.split("|")]
    names = ["<|begin|>", "<|end|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    core = Tokenizer(models.BPE(vocab={name: id for id, name in enumerate(names)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return _save(core, folder, bos, "<|end|>", adds)


def sentence_piece(folder: Path) -> Path:
    """As Llama 2's: <unk> 0, <s> 1, </s> 2, bytes from 3 on, characters from 259 on, then the merges; a space goes
    in front of each text, and <s> in front of that."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    merges = [tuple(pair.replace("S", "▁").split()) for pair in _MERGES.split("|")]
    letters = sorted({letter for pair in merges for part in pair for letter in part} | {":"})
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocabulary = {name: id for id, name in enumerate(names)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _save(core, folder, "<s>", "</s>", True)


def _save(core: Any, folder: Path, bos: str | None, eos: str, adds: bool) -> Path:
    from tokenizers import processors
    from transformers import PreTrainedTokenizerFast

    if adds:
        core.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))]
        )
    PreTrainedTokenizerFast(tokenizer_object=core, bos_token=bos, eos_token=eos).save_pretrained(folder)
    return folder


def save_llm(folder: Path, follows: Mapping[int, int], ends: int | list[int], rows: int = 320) -> Path:
    """A Llama that writes `follows[id]` after each id (END too), and an end token after every other."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=rows, hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=8, max_position_embeddings=256, eos_token_id=ends, bos_token_id=None, pad_token_id=None,
        tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.stack([vector(id, follows) for id in range(rows)]))
        model.lm_head.weight.zero_()
        first_end = ends if isinstance(ends, int) else ends[0]
        model.lm_head.weight[first_end, 0] = 4.0
        for id, following in follows.items():
            model.lm_head.weight[following, _axis(id, follows)] = 4.0
    model.save_pretrained(folder)
    return folder


def vector(id: int, follows: Mapping[int, int]) -> torch.Tensor:
    """[H] the embedding of an id, also of SOFT and END."""
    found = torch.zeros(WIDTH)
    found[_axis(id, follows)] = 8.0
    found[_TELLS] = id / 64
    return found


def _axis(id: int, follows: Mapping[int, int]) -> int:
    return 1 + sorted(follows).index(id) if id in follows else 0


@contextmanager
def reading(llm: Any) -> Any:
    """A list that gets, for each input that the LLM is given as embeddings, the ids of its rows without padding."""
    seen: list[list[list[int]]] = []

    def tell(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        embeds = kwargs.get("inputs_embeds")
        if embeds is not None:
            real = embeds.abs().sum(-1) > 0  # padding is zero
            ids = (embeds[..., _TELLS] * 64).round().long()
            seen.append([row[mask].tolist() for row, mask in zip(ids, real, strict=True)])

    handle = llm.register_forward_pre_hook(tell, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()
