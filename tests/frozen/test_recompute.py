"""Recomputing layers must not turn on what those layers drop in their own forward."""

from __future__ import annotations

import torch
import transformers as tf

from bridge_ds.frozen.load import freeze
from bridge_ds.llm.frozen import FrozenLLM


def test_recomputing_turns_on_no_dropout() -> None:
    config = tf.OPTConfig(vocab_size=20, hidden_size=16, num_hidden_layers=2, ffn_dim=16, num_attention_heads=2,
                          max_position_embeddings=16, word_embed_proj_dim=16, dropout=0.5)  # fmt: skip
    llm = FrozenLLM(freeze(tf.OPTForCausalLM(config)), activation_checkpointing=True).train()
    assert [module.training for module in llm.modules()].count(True) == 2  # the layers, and nothing else
    embeds = torch.randn(1, 4, 16, requires_grad=True)
    first, second = (llm.logits_at(embeds, torch.arange(4), use_cache=False)[0] for _ in range(2))
    assert torch.equal(first, second)
    first.sum().backward()
    assert embeds.grad is not None
