"""The ways to take a training step that bench_step.py compares, and their turns.

A variant is one way with one fusion: its own bridge and optimizer on the same frozen pair.
"""

from __future__ import annotations

import atexit
import gc
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bridge_ds.config.load import load_config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.encoder.frozen import FrozenEncoder
from bridge_ds.engine.compiled import CompiledLayers
from bridge_ds.engine.step import encoded
from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.products import as_torch_does
from bridge_ds.states.cache import StatesCache
from bridge_ds.states.files import StatesFiles
from tools.bench.bench_models import make_batch, make_model, make_texts, tokenizers, trained
from tools.bench.paper_step import PAPER_FUSIONS, PaperStep

__all__ = ["Variant", "make_variants", "sync", "take_turns"]

Texts = tuple[list[str], list[str]]
OTHER_SOURCES = ("5-21", "12-40")
"""Lengths of the batches that show whether compiled layers are compiled again."""


@dataclass
class Variant:
    """One way with one fusion, and what was measured of it with the last batch."""

    way: str
    """`ours`, `cached`, `compiled` or `paper`."""
    fusion: str
    model: Any
    optimizer: torch.optim.Optimizer
    compiled: CompiledLayers | None = None
    """Layers to switch."""
    cache: StatesCache | None = None
    """Of the encoder's states, which the first step writes."""
    seconds: list[float] = field(default_factory=list)
    """Of each turn."""
    first: float = 0.0
    """Seconds of the first step."""
    memory: float = 0.0
    """Peak, GiB."""
    more: dict[str, Any] = field(default_factory=dict)
    """Other columns."""
    error: str = ""

    def loss(self, texts: Texts, batch: Batch, tokens: int) -> torch.Tensor:
        """Mean negative log-likelihood over the target tokens. Ours gets ids, the paper's the texts."""
        if self.way == "paper":
            return self.model(*texts)
        if self.cache:
            states = encoded(self.model, [batch], self.cache.read([batch]))[0]
            return self.model(batch.to(self.model.device), states) / tokens
        return self.model(batch.to(self.model.device)) / tokens

    def step(self, texts: Texts, batch: Batch, device: torch.device) -> float:
        """Seconds of one step, the device's work included."""
        self.model.train()  # the paper's turns the dropout of the shared encoder on, ours off
        if self.compiled:
            self.compiled.on = self.way == "compiled"
        tokens = batch.target_tokens
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        sync(device)
        began = time.perf_counter()
        self.optimizer.zero_grad()
        with as_torch_does() if self.way == "paper" else nullcontext():
            self.loss(texts, batch, tokens).backward()
        self.optimizer.step()
        sync(device)
        took = time.perf_counter() - began
        self.memory = peak_gib(device)
        return took


def make_variants(
    ways: list[str],
    fusions: list[str],
    feedforward: int,
    encoder: FrozenEncoder,
    llm: FrozenLLM,
    backend: str = "inductor",
) -> list[Variant]:
    """Each way with each fusion that it has, on the device of the pair, the paper's in its dtype too.

    Args:
        backend: of torch.compile.
    """
    device, dtype = llm.model.device, llm.model.dtype
    layers: CompiledLayers | None = None
    found = []
    for way in ways:
        for fusion in fusions:
            if way != "paper":
                model: Any = make_model(fusion, feedforward, encoder, llm, device)
                optimizer = torch.optim.AdamW(trained(model), fused=True)
                if "compiled" in ways and layers is None:  # all variants share the layers
                    layers = CompiledLayers(model, training_only=False, backend=backend)
            elif fusion in PAPER_FUSIONS:
                model = PaperStep(fusion, encoder.model, llm.model, tokenizers(), 10**6, feedforward)
                model = model.to(device=device, dtype=dtype)
                optimizer = torch.optim.AdamW(trained(model))
            else:
                continue
            cache = states_cache(fusion, encoder, dtype) if way == "cached" else None
            found.append(Variant(way, fusion, model, optimizer, layers, cache))
    return found


def states_cache(fusion: str, encoder: FrozenEncoder, dtype: torch.dtype) -> StatesCache:
    """An empty one, in a folder that is removed with the process."""
    folder = Path(tempfile.mkdtemp(prefix="bench_states_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    name = str(dtype).removeprefix("torch.")
    config = load_config("testbed", [f"fusion.name={fusion}", f"model.dtype={name}"])
    return StatesCache(StatesFiles(folder, 1 << 40), encoder, config)


def take_turns(variants: list[Variant], texts: Texts, batch: Batch, repeat: int, device: torch.device) -> None:
    """One step to warm up, then `repeat` measured turns of all variants. One that needs too much memory is left out
    from then on."""
    for each in variants:
        each.seconds, each.more, each.error = [], {}, ""
    for turn in range(repeat + 1):
        for each in variants:
            if each.error:
                continue
            took = attempt(each, device, partial(each.step, texts, batch, device))
            if turn and took is not None:
                each.seconds.append(took)
            elif took is not None:
                each.first = took
                if each.compiled and each.way == "compiled":
                    each.more["graphs"] = each.compiled.graphs
    for each in variants:
        if each.way == "paper" and not each.error:
            each.more["tokenize_ms"] = round(tokenize_ms(each.model, texts, repeat), 3)
        if each.way == "compiled" and not each.error:
            attempt(each, device, partial(compare, each, texts, batch, device))


def attempt(variant: Variant, device: torch.device, work: Callable[[], Any]) -> Any:
    """What `work` returns; None, and the variant's error, if the device has too little memory."""
    try:
        return work()
    except torch.OutOfMemoryError:
        variant.error = "out of memory"
    # Here, since the exception held what the step had computed.
    variant.optimizer.zero_grad()
    variant.seconds = []
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return None


def compare(variant: Variant, texts: Texts, batch: Batch, device: torch.device) -> None:
    """Gradients with and without compiled layers, and graphs that other lengths add."""
    assert variant.compiled
    variant.model.eval()  # no dropout in the fusion; the frozen models have none
    found = []
    for wanted in (False, True):
        variant.compiled.on = wanted
        variant.optimizer.zero_grad()
        variant.loss(texts, batch, batch.target_tokens).backward()
        found.append(torch.cat([p.grad.flatten().double() for p in trained(variant.model) if p.grad is not None]))
    variant.more["gradient_error"] = f"{float((found[1] - found[0]).norm() / found[0].norm()):.1e}"
    known = variant.compiled.graphs
    for seed, source in enumerate(OTHER_SOURCES):
        other = make_texts(len(texts[0]) + 1 + seed, source, 3 + seed, seed)
        variant.step(other, make_batch(other), device)
    variant.more["recompiled"] = variant.compiled.graphs - known


def tokenize_ms(model: PaperStep, texts: Texts, repeat: int) -> float:
    """Median milliseconds."""
    took = []
    for _ in range(repeat):
        began = time.perf_counter()
        model.source_features(texts[0])
        model.target_features(texts[1])
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1e3


def sync(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_gib(device: torch.device) -> float:
    """Peak memory so far, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
