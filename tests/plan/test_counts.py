"""Operators and kept activations of the planned formulas, counted on real layers of transformers."""

from __future__ import annotations

import dataclasses
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
import transformers as tf
from torch.utils._python_dispatch import TorchDispatchMode

from bridge_ds.compat.transformers import enable_recomputing, set_recomputing
from bridge_ds.config.schema import FusionConfig, LoraConfig, MappingConfig
from bridge_ds.fusion import FUSIONS
from bridge_ds.fusion.kernels import torch_primitives
from bridge_ds.fusion.kernels.primitives import chunk_rows
from bridge_ds.fusion.spec import GPU_CHUNK
from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.llm.lora import add_lora
from bridge_ds.mapping import MAPPINGS
from bridge_ds.mapping.projector import Projector
from bridge_ds.plan import timing as operators
from bridge_ds.plan.job import Job
from bridge_ds.plan.memory import GIB, memory
from bridge_ds.plan.shapes import Shape
from bridge_ds.products import as_torch_does

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


@pytest.fixture(autouse=True)
def attention_as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the casts of bfloat16 attention on a CPU."""
    ours = tf.AttentionInterface()["sdpa"]
    monkeypatch.setattr("bridge_ds.llm.base.attend_in_float32", lambda: None)
    tf.AttentionInterface.register("sdpa", inspect.unwrap(ours))
    yield
    tf.AttentionInterface.register("sdpa", ours)


def of_a_layer(run: Callable[[int], tuple[Counted, Counted]]) -> tuple[int, int]:
    """Operators of one layer, forward and backward: what a third one adds to two."""
    more, less = run(3), run(2)
    return tuple(sum(a.names.values()) - sum(b.names.values()) for a, b in zip(more, less, strict=True))  # type: ignore[return-value]


@as_torch_does()
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


def kept_by(run: Callable[[], torch.Tensor], others: Iterable[torch.Tensor]) -> int:
    """Bytes that autograd keeps of `run`, tensors that are there without it (`others`) aside."""
    found, there = {}, {tensor.untyped_storage().data_ptr() for tensor in others}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # kept alive, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        assert run().requires_grad
    return sum(size for size, _ in found.values())


def kept_by_mapping(kind: str, fused: torch.Tensor, **sizes: object) -> int:
    mapping = Projector(kind, D, D, **sizes)
    return kept_by(lambda: mapping(fused, torch.ones(B, S))[0], [*mapping.parameters(), *mapping.buffers()])


@pytest.mark.parametrize("depth", [1, 3])
def test_what_a_resampler_keeps_is_the_planned_part(depth: int) -> None:
    of = MappingConfig(kind="latent", latents=24, depth=depth, heads=2, head_width=16, feedforward=3)
    fused = torch.randn(B, S, D, dtype=torch.bfloat16)
    found = kept_by_mapping("latent", fused, **{key: getattr(of, key) for key in MAPPINGS["latent"].options})
    shape = Shape("x", 6, D, F, D, D, VOCAB, HEADS)
    job = Job(shape, shape, fusion=FusionConfig(name="last_layer"), mapping=of, source=S, target=7, micro_batch=B)
    assert memory(job)["fusion and mapping"] * GIB == pytest.approx(found, rel=0.1)
    # The LLM reads as many soft tokens whatever the source's length.
    assert job.spliced == job.having(source=9 * S).spliced == 2 + 24 + 7


@pytest.mark.parametrize(
    ("name", "heads"),
    [("transformer_softmax", 1), ("transformer_softmax", 4), ("layer_attention", 1), ("last_layer", 1)],
)
def test_what_the_fusion_keeps_is_the_planned_part(name: str, heads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_primitives, "KEPT_BYTES", 0)  # as on a GPU, of which the plan is
    layers, feedforward = 6, 80
    options = {"heads": heads, "feedforward": feedforward, "backend": "torch"} if name == "transformer_softmax" else {}
    fusion = FUSIONS[name](num_layers=layers, width=D, **options)
    states = [torch.randn(B, S, D, dtype=torch.bfloat16, requires_grad=True) for _ in range(layers)]
    mask = torch.ones(B, S, dtype=torch.long)
    shape = Shape("x", layers, D, F, D, D, VOCAB, HEADS)
    config = FusionConfig(name=name, heads=heads, feedforward=feedforward)
    job = Job(shape, shape, fusion=config, source=S, micro_batch=B)
    mapping = B * S * (4 * D + (2 * 4 + 2) * D)
    planned = memory(job)["fusion and mapping"] * GIB - mapping
    # For all tokens: the query, projected, and the vectors of the positions.
    query = {"transformer_softmax": 4 * (heads + 1 + layers + 1) * D, "layer_attention": 4 * D}.get(name, 0)
    kept = kept_by(lambda: fusion(states, mask), [*fusion.parameters(), *states])
    assert kept == pytest.approx(planned + query, abs=B * S)  # a mask
    # Hidden units of a mapping that has them.
    fused = torch.randn(B, S, D, dtype=torch.bfloat16)
    of_linear, of_mlp, of_gelu = (kept_by_mapping(kind, fused) for kind in ("linear", "mlp", "mlp_gelu"))
    for kind, found in (("mlp", of_mlp), ("mlp_gelu", of_gelu)):
        mapped = job.having(mapping=MappingConfig(kind=kind))
        more = (memory(mapped)["fusion and mapping"] - memory(job)["fusion and mapping"]) * GIB
        assert more == pytest.approx(found - of_linear), kind
    # Further chunks keep neither value nor hidden units.
    assert chunk_rows(torch.empty(1, D, device="meta")) == GPU_CHUNK
    more, less = (memory(job.having(source=n * GPU_CHUNK))["fusion and mapping"] * GIB for n in (2, 1))
    inside = (D + feedforward) * 2 if options else 0
    assert more - less == pytest.approx(B * GPU_CHUNK * (planned + mapping) / (B * S) - B * GPU_CHUNK * inside)


@pytest.mark.parametrize(("rank", "targets"), [(0, ()), (4, ()), (4, ("q_proj", "mlp.down_proj"))])
def test_kept_activations_of_a_layer_are_the_planned_ones(rank: int, targets: tuple[str, ...]) -> None:
    """Bytes that autograd keeps of one Llama layer in bfloat16, weights aside; with LoRA's updates too."""

    def kept(layers: int) -> int:
        llm = FrozenLLM(llama(layers))
        if rank:
            add_lora(llm, LoraConfig(rank=rank, targets=targets), 0)
        embeds = torch.randn(B, S, D, dtype=torch.bfloat16, requires_grad=True)
        return kept_by(lambda: llm.model(inputs_embeds=embeds, use_cache=False).logits, llm.model.parameters())

    shape = Shape("x", 3, D, F, D, D // 2, VOCAB, HEADS)
    sizes = {"source": S - 2, "target": 0, "micro_batch": B, "global_batch": B}
    job = Job(shape, shape, **sizes, lora=rank, lora_targets=targets)
    three, two = (memory(job.having(llm=dataclasses.replace(shape, layers=n)))["LLM activations"] for n in (3, 2))
    assert (three - two) * GIB == pytest.approx(kept(3) - kept(2), rel=0.1)
