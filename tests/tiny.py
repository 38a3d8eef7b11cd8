"""Small random models with real tokenizers, saved to disk as a hub download would be. Everything seeded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

ENCODERS = ("mt5", "umt5", "t5", "xlm-roberta", "bert", "m2m_100")
LLMS = ("llama", "qwen2", "gpt2", "gemma2", "mistral")
TEXTS = [
    "the cat sat on the mat and looked at the dog",
    "a bridge joins two banks of one river",
    "Premise: rain fell Hypothesis: it was wet Label: Entailment Neutral Contradiction",
    "numbers 1 2 3 and signs , . ; : !",
]
D, H, LAYERS = 24, 32, 3


def make_encoder(kind: str, folder: Path, vocab: int = 0, positions: int = 80) -> Path:
    """A random encoder (complete checkpoint as the hub has it: encoder-decoder where that is the family's form)."""
    import transformers as tf

    tokenizer = _save_tokenizer(folder, pad="<pad>", eos="</s>", bos=None, post_eos=True)
    size = vocab or len(tokenizer)
    torch.manual_seed(1)
    t5 = {"vocab_size": size, "d_model": D, "d_kv": 8, "d_ff": 32, "num_layers": LAYERS, "num_heads": 2,
          "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
    bert = {"vocab_size": size, "hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": 2,
            "intermediate_size": 32, "max_position_embeddings": positions}  # fmt: skip
    made: dict[str, Any] = {
        "mt5": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**t5)),
        "umt5": lambda: tf.UMT5ForConditionalGeneration(tf.UMT5Config(**t5)),
        "t5": lambda: tf.T5ForConditionalGeneration(tf.T5Config(**t5)),
        "xlm-roberta": lambda: tf.XLMRobertaForMaskedLM(tf.XLMRobertaConfig(**bert, pad_token_id=0)),
        "bert": lambda: tf.BertForMaskedLM(tf.BertConfig(**bert, pad_token_id=0)),
        "m2m_100": lambda: tf.M2M100ForConditionalGeneration(
            tf.M2M100Config(
                vocab_size=size,
                d_model=D,
                encoder_layers=LAYERS,
                decoder_layers=1,
                encoder_attention_heads=2,
                decoder_attention_heads=2,
                encoder_ffn_dim=32,
                decoder_ffn_dim=32,
                max_position_embeddings=80,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=1,
                decoder_start_token_id=1,
            )  # fmt: skip
        ),
    }
    made[kind]().save_pretrained(folder)
    return folder


def make_llm(kind: str, folder: Path, **more: Any) -> Path:
    """A random causal language model."""
    import transformers as tf

    bos = None if kind in ("gpt2", "qwen2") else "<s>"
    tokenizer = _save_tokenizer(folder, pad=None if kind == "llama" else "<pad>", eos="</s>", bos=bos, post_eos=False)
    torch.manual_seed(2)
    # As in real checkpoints the embedding has rows to spare (AutoTokenizer may add special tokens of its own).
    common = {"vocab_size": len(tokenizer) + 8, "hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 2,
              "num_key_value_heads": 1, "intermediate_size": 48, "max_position_embeddings": 128,
              "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
              "pad_token_id": tokenizer.pad_token_id} | more  # fmt: skip
    made: dict[str, Any] = {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common)),
        "mistral": lambda: tf.MistralForCausalLM(tf.MistralConfig(**{"sliding_window": 64} | common)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**common)),
        "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**common, head_dim=16)),
        "gemma3": lambda: tf.Gemma3ForCausalLM(
            tf.Gemma3TextConfig(**common, head_dim=16, layer_types=["sliding_attention", "full_attention"])
        ),
        "bloom": lambda: tf.BloomForCausalLM(
            tf.BloomConfig(vocab_size=len(tokenizer) + 8, hidden_size=H, n_layer=2, n_head=2)
        ),
        # Two heads of keys, which have one norm together.
        "olmo2": lambda: tf.Olmo2ForCausalLM(tf.Olmo2Config(**common | {"num_key_value_heads": 2})),
        "olmo3": lambda: tf.Olmo3ForCausalLM(
            tf.Olmo3Config(
                **common | {"num_key_value_heads": 2}, layer_types=["sliding_attention", "full_attention"]
            )  # fmt: skip
        ),
        "opt": lambda: tf.OPTForCausalLM(tf.OPTConfig(**common, ffn_dim=48, word_embed_proj_dim=H, dropout=0.0)),
        "gemma2": lambda: tf.Gemma2ForCausalLM(tf.Gemma2Config(**common, head_dim=16)),
        "gpt2": lambda: tf.GPT2LMHeadModel(
            tf.GPT2Config(
                vocab_size=len(tokenizer) + 8,
                n_embd=H,
                n_layer=2,
                n_head=2,
                n_positions=128,
                bos_token_id=tokenizer.eos_token_id,
                eos_token_id=tokenizer.eos_token_id,
            )  # fmt: skip
        ),
    }
    made[kind]().save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, *, pad: str | None, eos: str, bos: str | None, post_eos: bool) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [token for token in ("<pad>", eos, "<s>") if token in (pad, eos, bos) or token == "<pad>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    raw.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=340, special_tokens=specials, initial_alphabet=alphabet)
    )
    if post_eos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"$A {eos}", special_tokens=[(eos, raw.token_to_id(eos))]
        )
    elif bos:
        raw.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, raw.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=eos, pad_token=pad, bos_token=bos)
    tokenizer.save_pretrained(folder)
    return tokenizer
