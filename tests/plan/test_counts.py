"""Operators and kept activations of the planned formulas, counted on real layers of transformers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode

from bridge_ds.config.schema import LoraConfig
from bridge_ds.frozen.recompute import enable_recomputing, set_recomputing
from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.llm.lora import add_lora
from bridge_ds.plan import operators
from bridge_ds.plan.job import Job
from bridge_ds.plan.memory import GIB, memory
from bridge_ds.plan.shapes import Shape

# Operators that start no kernel: other views of the same memory, and memory alone.
VIEWS = {"view", "_unsafe_view", "t", "transpose", "permute", "expand", "slice", "select", "unsqueeze", "squeeze",
         "alias", "detach", "as_strided", "split", "chunk", "unbind", "empty", "empty_like"}  # fmt: skip
B, S, D, F, HEADS, VOCAB = 2, 32, 64, 96, 4, 100


class Counted(TorchDispatchMode):
    """Counts what is dispatched while it is open, and the bytes of each new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.largest: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.split("::")[1]
        if name not in VIEWS:
            self.names[name] += 1
            if isinstance(out, torch.Tensor):
                self.largest[name] = max(self.largest.get(name, 0), out.numel() * out.element_size())
        return out


def llama(layers: int, again: bool = False) -> Any:
    config = tf.LlamaConfig(
        hidden_size=D, intermediate_size=F, num_hidden_layers=layers, num_attention_heads=HEADS, num_key_value_heads=2,
        vocab_size=VOCAB,
    )  # fmt: skip
    model = tf.LlamaForCausalLM(config).to(torch.bfloat16).eval().requires_grad_(False)
    if again:
        enable_recomputing(model)
        set_recomputing(model, True)
    return model


def mt5(layers: int) -> Any:
    config = tf.MT5Config(
        d_model=D, d_ff=F, d_kv=D // HEADS, num_layers=layers, num_heads=HEADS, vocab_size=VOCAB,
        feed_forward_proj="gated-gelu",
    )  # fmt: skip
    return tf.MT5EncoderModel(config).to(torch.bfloat16).eval()


def through_llm(model: Any) -> tuple[Counted, Counted]:
    embeds = torch.randn(B, S, D, dtype=torch.bfloat16, requires_grad=True)
    with Counted() as forward:
        loss = model(inputs_embeds=embeds, use_cache=False).logits.float().sum()
    with Counted() as backward:
        loss.backward()
    return forward, backward


def through_encoder(model: Any, trained: bool) -> tuple[Counted, Counted]:
    ids, mask = torch.ones(B, S, dtype=torch.long), torch.ones(B, S, dtype=torch.long)
    mask[0, S // 2 :] = 0
    with torch.set_grad_enabled(trained), Counted() as forward:
        out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).last_hidden_state
    with Counted() as backward:
        if trained:
            out.float().sum().backward()
    return forward, backward


def of_a_layer(run: Callable[[int], tuple[Counted, Counted]]) -> tuple[int, int]:
    """Operators of one layer, forward and backward: what a third one adds to two."""
    more, less = run(3), run(2)
    return tuple(sum(a.names.values()) - sum(b.names.values()) for a, b in zip(more, less, strict=True))  # type: ignore[return-value]


def test_operators_of_a_layer_are_the_counted_ones() -> None:
    forward, backward = of_a_layer(lambda n: through_llm(llama(n)))
    assert (forward, backward) == (operators.FORWARD, operators.LLM_BACKWARD)
    assert of_a_layer(lambda n: through_llm(llama(n, again=True)))[1] == backward + operators.RECOMPUTED
    assert of_a_layer(lambda n: through_encoder(mt5(n), False)) == (operators.FORWARD, 0)
    assert of_a_layer(lambda n: through_encoder(mt5(n), True))[1] == operators.TRAINED_BACKWARD


def test_t5_holds_one_bias_a_layer_and_no_scores() -> None:
    """The planner's part of it: B x heads x S x S in the model's dtype, beside what the states take."""
    forward, _ = through_encoder(mt5(2), False)
    assert forward.names["_scaled_dot_product_flash_attention_for_cpu"] == 2 and "_softmax" not in forward.names
    assert forward.largest["where"] == B * HEADS * S * S * 2
    assert forward.largest["embedding"] == max(S * S * HEADS * 2, B * S * D * 2)  # of all rows and layers
    shape = Shape("x", 2, D, F, D, D, VOCAB, HEADS, bias=True)
    long = Job(shape, shape, source=4096, micro_batch=B, global_batch=B)
    plain = long.having(encoder=dataclasses.replace(shape, bias=False))
    tokens = B * 4096
    states, work = 3 * tokens * D * 2, tokens * (2 * F + 3 * D) * 2
    assert memory(long)["encoder states"] * GIB == pytest.approx(states + (B + 1) * HEADS * 4096**2 * 2)
    assert memory(plain)["encoder states"] * GIB == pytest.approx(states + work)


@pytest.mark.parametrize("rank", [0, 4])
def test_kept_activations_of_a_layer_are_the_planned_ones(rank: int) -> None:
    """Bytes that autograd keeps of one Llama layer in bfloat16, weights aside; with LoRA's updates too."""

    def kept(layers: int) -> int:
        llm = FrozenLLM(llama(layers))
        if rank:
            add_lora(llm, LoraConfig(rank=rank), 0)
        model, found = llm.model, {}
        weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in weights:
                found[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no address comes twice
            return tensor

        embeds = torch.randn(B, S, D, dtype=torch.bfloat16, requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = model(inputs_embeds=embeds, use_cache=False)
        assert out.logits.requires_grad
        return sum(size for size, _ in found.values())

    shape = Shape("x", 3, D, F, D, D // 2, VOCAB, HEADS)
    job = Job(shape, shape, source=S - 2, target=0, micro_batch=B, global_batch=B, lora=rank)
    three, two = (memory(job.having(llm=dataclasses.replace(shape, layers=n)))["LLM activations"] for n in (3, 2))
    assert (three - two) * GIB == pytest.approx(kept(3) - kept(2), rel=0.1)
