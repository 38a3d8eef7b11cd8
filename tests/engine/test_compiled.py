"""`train.compile: frozen`: the step is the one that it would be without, and what cannot be compiled runs as it is and
is said. tests/engine/test_encode_once.py compiles under ZeRO-3."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.engine.compiled import CompiledLayers, check_compiler, compiled_parts
from bridge_ds.engine.layers import layers_of
from bridge_ds.errors import ConfigError
from tools.bench.bench_models import frozen_pair, make_batch, make_model, make_texts, trained

CPU = torch.device("cpu")


def make() -> BridgeModel:
    return make_model("global_softmax", 32, *frozen_pair("tiny", CPU, torch.float32, layers=1), CPU)


def step(model: BridgeModel, batch: Any) -> list[torch.Tensor]:
    """The loss and all gradients."""
    model.zero_grad()
    loss = model(batch)
    loss.backward()
    return [loss.detach(), *(p.grad for p in trained(model) if p.grad is not None)]


@pytest.mark.slow
def test_the_same_step_in_training_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By inductor, as in a run."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model, batch = make(), make_batch(make_texts(3, "20-32", 3))
    expected = step(model, batch)
    model.encoder.dropout = True
    assert list(compiled_parts(model)) == ["LLM"]  # that alone, as inductor takes its time
    layers = CompiledLayers(model)
    model.encoder.dropout = False
    model.eval()
    step(model, batch)
    assert layers.graphs == 0
    model.train()
    own, aliases = {id(p) for p in model.llm.parameters()}, set()
    of_layers = {p.untyped_storage().data_ptr() for each in layers_of(model.llm.model) for p in each.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() in of_layers and id(tensor) not in own:
            aliases.add(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept):
        found = step(model, batch)
    # ZeRO-3 releases a parameter: a view of it would keep it whole until backward, or read what is no longer there.
    assert not aliases
    assert layers.graphs == 1 and not layers.refused
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    step(model, make_batch(make_texts(5, "5-21", 4)))
    assert layers.graphs == 1


def test_a_layer_that_cannot_be_compiled_runs_as_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One with transformers' hooks inside. Where this fails, record_layers_only may have become needless."""
    torch._dynamo.reset()
    monkeypatch.setattr("bridge_ds.engine.compiled.record_layers_only", lambda model: None)
    model, batch = make(), make_batch(make_texts(3, "20-32", 3))
    expected = step(model, batch)
    layers = CompiledLayers(model, backend="eager")
    with caplog.at_level(logging.INFO, logger="bridge_ds"):
        found = step(model, batch)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    assert [kind.__name__ for kind in layers.refused] == ["MT5Block"] and layers.graphs == 1
    (said,) = [line for line in caplog.messages if "uncompiled" in line]
    assert said.startswith("note: layers of class MT5Block run uncompiled; torch.compile says: ")
    assert "ContextVar" in said and "\n" not in said and "Hint" not in said


def test_no_compiler_is_said_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CXX", "sh")
    assert check_compiler("frozen") == "sh"
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert check_compiler("off") == "none needed"
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler and finds no no-such-compiler; install it, or set"):
        check_compiler("frozen")
