#!/usr/bin/env python3
"""Time one whole training step (encoder, fusion, mapping, LLM, backward, AdamW) with each fusion against last_layer.

examples:
  python tools/bench/bench_step.py                                   # testbed-sized models
  python tools/bench/bench_step.py --sizes mt5-large+1b --layers 2   # real widths, two layers of each model
  python tools/bench/bench_step.py --quick                           # seconds; shows that everything runs

Models have random weights: speed does not depend on their values. Fusions take turns in one process, so that a slow
moment hits all of them. Rows are appended to bench_step.csv beside this file: median milliseconds of a step, the median
over the turns of the ratio to last_layer's step in the same turn, source tokens per second, and MFU = floating-point
operations that the models need / (seconds x peak). The need per token is 2 x parameters for the frozen encoder's
forward, 4 x parameters for the LLM (forward, and the gradient through it to the soft prompt) and 6 x parameters of the
bridge (fusion and mapping); embeddings count nowhere. The peak is that of a large matrix product measured in the same
run. Peak memory is that of the device on CUDA, else the process's resident memory, which never falls: compare runs of
one fusion each.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch  # noqa: E402

from bridge_ds.bridge import BridgeModel  # noqa: E402
from bridge_ds.data.loading.batch import Batch  # noqa: E402
from bridge_ds.data.loading.bins import Packing  # noqa: E402
from bridge_ds.data.loading.layout import layout_of  # noqa: E402
from bridge_ds.encoder.frozen import FrozenEncoder  # noqa: E402
from bridge_ds.engine.cpu import cpu_threads, keep_freed_memory  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.fusion import FUSIONS  # noqa: E402
from bridge_ds.llm.frozen import FrozenLLM  # noqa: E402
from bridge_ds.llm.packing import packing_for  # noqa: E402
from bridge_ds.llm.support import behavior_of  # noqa: E402
from bridge_ds.mapping.projector import Projector  # noqa: E402
from tools.bench.bench_rows import append, provenance  # noqa: E402

CSV = Path(__file__).with_suffix(".csv")
SIZES: dict[str, tuple[dict[str, int], dict[str, int]]] = {
    "tiny": (
        {"d_model": 32, "d_ff": 64, "d_kv": 8, "num_heads": 4, "num_layers": 2},
        {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    ),
    "testbed": (
        {"d_model": 192, "d_ff": 384, "d_kv": 32, "num_heads": 6, "num_layers": 6},
        {"hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 4, "num_attention_heads": 4},
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
"""Named sizes: of the mT5 encoder and of the Llama."""
FEEDFORWARD = {"tiny": 32, "testbed": 192}
"""`fusion.feedforward` where a recipe differs from the paper's 2048."""
VOCABULARY = 4096


def main(argv: list[str] | None = None) -> int:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="testbed", choices=sorted(SIZES), help="models (default: testbed)")
    parser.add_argument("--layers", type=int, default=0, help="layers of both models; 0 = as named")
    parser.add_argument("--fusions", default=",".join(FUSIONS), help="comma-separated; last_layer is the base")
    parser.add_argument("--batch", type=int, default=16, help="samples of a step (default: 16)")
    parser.add_argument("--source", type=int, default=32, help="encoder tokens a sample at most (default: 32)")
    parser.add_argument("--target", type=int, default=4, help="target tokens a sample (default: 4)")
    parser.add_argument("--feedforward", type=int, default=0, help="fusion.feedforward; 0 = as the recipe has it")
    parser.add_argument("--repeat", type=int, default=15, help="measured steps of each fusion (default: 15)")
    own = cpu_threads(len(os.sched_getaffinity(0)), 1, 1)
    parser.add_argument(
        "--threads", type=int, default=own, help=f"CPU threads (default: the trainer's own, {own} beside a data worker)"
    )
    parser.add_argument("--packing", type=int, default=1, help="train.packing: 1 or 0 (default: 1)")
    parser.add_argument("--quick", action="store_true", help="tiny models, two steps")
    parser.add_argument(
        "--output", type=Path, default=CSV, help="CSV to append to (default: tools/bench/bench_step.csv)"
    )
    options = parser.parse_args(argv)
    if options.quick:
        options.sizes, options.repeat = "tiny", 2
    options.feedforward = options.feedforward or FEEDFORWARD.get(options.sizes, 2048)
    torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the trainer does
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = measure(options, device)
    append(options.output, rows)
    for row in rows:
        print(f"{row['sizes']:14} {row['fusion']:20} {row['step_ms']:10.2f} ms  x{row['vs_last_layer']:<6} "
              f"{row['source_tokens_per_s']:>8} tokens/s  MFU {row['mfu']}")  # fmt: skip
    return 0


def measure(options: argparse.Namespace, device: torch.device) -> list[dict[str, Any]]:
    """All fusions in turns on the same frozen pair."""
    encoder, llm = frozen_pair(options, device)
    packing = packing_for(encoder.model.config, llm.model.config, device.type) if options.packing else None
    batch = make_batch(options, packing).to(device)
    names = options.fusions.split(",")
    models = {name: make_model(name, options.feedforward, encoder, llm, device) for name in names}
    optimizers = {name: torch.optim.AdamW(trained(model), fused=True) for name, model in models.items()}
    times: dict[str, list[float]] = {name: [] for name in names}
    memory: dict[str, float] = {}
    for turn in range(options.repeat + 1):  # the first turn warms up
        for name, model in models.items():
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()
            began = time.perf_counter()
            optimizers[name].zero_grad()
            (model(batch) / batch.target_tokens).backward()
            optimizers[name].step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                times[name].append(time.perf_counter() - began)
            memory[name] = peak_gib(device)
    peak = peak_flops(device)
    base = times.get("last_layer", [float("nan")] * options.repeat)
    rows = []
    for name in names:
        seconds = statistics.median(times[name])
        ratio = statistics.median(own / other for own, other in zip(times[name], base, strict=True))
        rows.append(facts(options, device, encoder, llm) | {
            "fusion": name, "step_ms": round(seconds * 1e3, 3), "vs_last_layer": round(ratio, 3),
            "source_tokens_per_s": round(batch.source_tokens / seconds),
            "mfu": round(needed_flops(models[name], batch) / seconds / peak, 4), "peak_gib": round(memory[name], 2),
        })  # fmt: skip
    return rows


def frozen_pair(options: argparse.Namespace, device: torch.device) -> tuple[FrozenEncoder, FrozenLLM]:
    """An mT5 encoder and a Llama with random weights: bfloat16 on CUDA, float32 on a CPU."""
    from transformers import LlamaConfig, LlamaForCausalLM, MT5Config, MT5EncoderModel

    encoder_size, llm_size = (dict(size) for size in SIZES[options.sizes])
    if options.layers:
        encoder_size["num_layers"] = llm_size["num_hidden_layers"] = options.layers
    torch.manual_seed(0)
    encoder = MT5EncoderModel(MT5Config(vocab_size=VOCABULARY, **encoder_size))  # type: ignore[arg-type]
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, **llm_size))  # type: ignore[arg-type]
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    pair: tuple[Any, Any] = (encoder, llm)
    for model in pair:
        model.requires_grad_(False).to(device=device, dtype=dtype)
    frozen = FrozenEncoder(encoder), FrozenLLM(llm)
    frozen[1].behavior = behavior_of("llama", llm.config)
    return frozen


def make_model(
    name: str, feedforward: int, encoder: FrozenEncoder, llm: FrozenLLM, device: torch.device
) -> BridgeModel:
    """The frozen pair with a bridge of this fusion, in training mode."""
    more: dict[str, Any] = {"feedforward": feedforward} if "feedforward" in FUSIONS[name].options else {}
    fusion = FUSIONS[name](num_layers=encoder.num_layers, width=encoder.width, **more)
    mapping = Projector("linear", encoder.width, llm.width)
    model = BridgeModel(encoder, fusion.to(device), mapping.to(device), llm, bos=1)
    model.train()
    return model


def trained(model: BridgeModel) -> list[torch.nn.Parameter]:
    """Parameters of the bridge."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def make_batch(options: argparse.Namespace, packing: Packing | None = None) -> Batch:
    """Random ids; sources between half and full length, no prompt."""
    torch.manual_seed(1)
    lengths = torch.randint(options.source // 2, options.source + 1, (options.batch, 1))
    source = torch.randint(3, VOCABULARY, (options.batch, options.source))
    target = torch.randint(3, VOCABULARY, (options.batch, options.target))
    nothing = torch.zeros(options.batch, 0, dtype=torch.long)
    mask = (torch.arange(options.source) < lengths).long()
    target_mask = torch.ones_like(target)
    layout = layout_of(mask, nothing, target_mask, target, opening=True, packing=packing)
    return Batch(source, mask, nothing, nothing, target, target_mask, layout=layout)


def needed_flops(model: BridgeModel, batch: Batch) -> float:
    """Floating-point operations that the models need for a step; the formula stands in the help text."""
    tokens = batch.source_tokens
    places = tokens + batch.source_ids.shape[0] * 2 + batch.target_tokens  # BOS and the end vector
    embeddings = model.llm.model.get_input_embeddings().weight.numel()
    encoder = sum(p.numel() for p in model.encoder.parameters()) - model.encoder.vocab_size * model.encoder.width
    llm = sum(p.numel() for p in model.llm.parameters()) - embeddings
    return 2.0 * encoder * tokens + 4.0 * llm * places + 6.0 * sum(p.numel() for p in trained(model)) * tokens


def peak_flops(device: torch.device) -> float:
    """Floating-point operations per second of a 2048 x 2048 x 2048 product in the models' dtype: the best of five."""
    a = torch.randn(2048, 2048, device=device, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32)
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * 2048**3 / best


def peak_gib(device: torch.device) -> float:
    """Peak memory so far, GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def facts(options: argparse.Namespace, device: torch.device, encoder: FrozenEncoder, llm: FrozenLLM) -> dict[str, Any]:
    """What the numbers rest on."""
    return provenance(device, options.threads) | {
        "sizes": options.sizes, "encoder_layers": encoder.num_layers, "encoder_width": encoder.width,
        "llm_layers": llm.model.config.num_hidden_layers, "llm_width": llm.width,
        "feedforward": options.feedforward, "batch": options.batch, "source": options.source, "target": options.target,
    }  # fmt: skip


if __name__ == "__main__":
    run_command(main)
