"""The seeds' models at a small size, with the files, config keys and tokenizers of the published ones.

CINO: hfl/cino-*, an XLM-R (arXiv 2202.13558). LLaMAX: LLaMAX/LLaMAX3-8B, a Llama 3. PolyLM: the repository
github.com/DAMO-NLP-MT/PolyLM (tools/checkpoint_reshaping_and_interoperability.py writes a GPT-2 with LLaMA's tokenizer;
sizes in arXiv 2307.06018).
XLM-SWCM: github.com/asd765973346/xlm-swcm (model.py); the names of its state dict, in our own words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from torch import nn

from bridge_ds.data.text.spiece import PROBES
from tests import tiny

TEXTS = [*tiny.TEXTS, *(PROBES[code] for code in ("bo", "zh", "en"))]


def make_cino(folder: Path) -> Path:
    """An XLM-R whose vocabulary was cut: SentencePiece's unigram model, weights in pytorch_model.bin."""
    _spiece(folder / "sentencepiece.bpe.model", "unigram", 300, unk_id=0, bos_id=1, eos_id=2)
    tf.XLMRobertaTokenizer.from_pretrained(folder).save_pretrained(folder)
    size = len(tf.AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(3)
    config = tf.XLMRobertaConfig(
        vocab_size=size, hidden_size=tiny.D, num_hidden_layers=tiny.LAYERS, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=82, type_vocab_size=1, layer_norm_eps=1e-5,
        bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = tf.XLMRobertaForMaskedLM(config)
    config.save_pretrained(folder)
    stored = model.state_dict() | {"roberta.embeddings.position_ids": torch.arange(82)[None]}
    torch.save(stored, folder / "pytorch_model.bin")
    return folder


def make_llamax(folder: Path) -> Path:
    """A Llama 3: grouped queries, no tied weights, its own rotary base, a byte-level tokenizer with BOS."""
    rope = {"rope_type": "default", "rope_theta": 500000.0}
    return tiny.make_llm("llama", folder, rope_parameters=rope, rms_norm_eps=1e-5, tie_word_embeddings=False)


def make_polylm(folder: Path) -> Path:
    """A GPT-2 with a SentencePiece tokenizer; two files of weights, with the masks that older releases stored."""
    _spiece(folder / "tokenizer.model", "bpe", 420, unk_id=0, bos_id=1, eos_id=2, byte_fallback=True)
    size = len(tf.LlamaTokenizer.from_pretrained(folder))
    torch.manual_seed(4)
    config = tf.GPT2Config(
        vocab_size=size, n_positions=128, n_embd=tiny.H, n_layer=2, n_head=2, n_inner=4 * tiny.H,
        activation_function="gelu", resid_pdrop=0.1, embd_pdrop=0.1, attn_pdrop=0.1, layer_norm_epsilon=1e-5,
        bos_token_id=size - 1, eos_token_id=size - 1, architectures=["GPT2LMHeadModel"],
    )  # fmt: skip
    state = dict(tf.GPT2LMHeadModel(config).state_dict())
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(128, 128).tril()[None, None]
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    config.save_pretrained(folder)
    values = json.loads((folder / "config.json").read_text()) | {"tokenizer_class": "LlamaTokenizer"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    names = [f"pytorch_model-0000{part}-of-00002.bin" for part in (1, 2)]
    where = {key: names[number % 2] for number, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key].clone() for key in state if where[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return folder


class DecoderLayer(nn.Module):
    """XLM-SWCM's: a normal one, or one that began as a layer of the encoder, with two feed-forward networks."""

    def __init__(self, config: Any, normal: bool) -> None:
        super().__init__()
        width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        for name in ("ffn",) if normal else ("ffn1", "ffn2"):
            setattr(self, name, nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width)))
        for number in range(1, 3 if normal else 5):
            setattr(self, f"norm{number}", nn.LayerNorm(width))


class Decoder(nn.Module):
    """Two layers of the encoder's kind and a normal one, and the shared embeddings."""

    def __init__(self, config: Any, embed_layer: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList([DecoderLayer(config, normal) for normal in (False, False, True)])
        self.embed_layer = embed_layer
        self.last_linear = nn.Linear(config.hidden_size, config.vocab_size)


class Swcm(nn.Module):
    """XLM-SWCM's `Seq2SeqModel` on a CINO; its encoder was trained too."""

    def __init__(self, cino: Path) -> None:
        super().__init__()
        self.encoder = tf.XLMRobertaModel.from_pretrained(cino)
        self.embed_layer = self.encoder.embeddings
        self.decoder = Decoder(self.encoder.config, self.embed_layer)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in self.encoder.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))


def _spiece(file: Path, kind: str, size: int, **more: Any) -> None:
    import sentencepiece

    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as written:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(TEXTS * 20), model_writer=written, model_type=kind, vocab_size=size,
            hard_vocab_limit=False, character_coverage=1.0, minloglevel=2, num_threads=1, **more,
        )  # fmt: skip
