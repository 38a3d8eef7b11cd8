#!/usr/bin/env python3
"""Plan a run before asking for nodes: memory of a rank, bytes gathered, time of a step, and what to choose."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bridge_ds.errors import EXIT_USER_ERROR, BridgeError, LaunchError
from bridge_ds.plan.advice import Choice, choices
from bridge_ds.plan.memory import Job, host_gib, memory, trained_parameters
from bridge_ds.plan.shapes import ENCODERS, LLMS, find_shape
from bridge_ds.plan.timing import GPUS, Gpu, Network, gathers, step_time

_EXAMPLES = """\
examples:
  tools/plan_cluster.py --encoder mt5-xl --llm llama-2-13b --nodes 2 --gpus 8
  tools/plan_cluster.py --encoder mt5-xl --llm llama-3.1-70b --nodes 64 --gpus 8 --gpu h100 --network-gbit 3200
  tools/plan_cluster.py --encoder models/encoder --llm models/llm --gpus 4 --gpu a40 --json

Known models need no download; any other is a folder with config.json. Memory is checked against measured runs by
tests/plan; times are arithmetic on data sheets and two assumed shares (--utilization, --network-share): bounds, not
measurements.
"""


def main(arguments: list[str] | None = None) -> int:
    """Print the plan; returns the exit status (2: the input cannot be used)."""
    options = _parser().parse_args(arguments)
    try:
        job, gpu, network = _read(options)
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    found = choices(job, gpu, network)
    if options.json:
        print(json.dumps(_as_json(job, gpu, network, found), indent=1))
    else:
        print("\n".join(_page(job, gpu, network, found)))
    return 0


def _read(options: argparse.Namespace) -> tuple[Job, Gpu, Network]:
    gpu = GPUS[options.gpu]
    if options.gpu_gib:
        gpu = dataclasses.replace(gpu, name=f"{gpu.name} ({options.gpu_gib:g} GiB)", gib=options.gpu_gib)
    job = Job(
        encoder=find_shape(options.encoder, ENCODERS),
        llm=find_shape(options.llm, LLMS),
        nodes=options.nodes,
        gpus=options.gpus,
        fusion=options.fusion,
        mapping=options.mapping,
        source=options.source_tokens,
        prompt=options.prompt_tokens,
        target=options.target_tokens,
        global_batch=options.global_batch,
        encoder_trained=options.train_encoder,
        lora=options.lora,
        process=1.5,  # CUDA's context, cuBLAS and NCCL
    )
    if job.global_batch % job.ranks:
        raise LaunchError(
            f"--global-batch {job.global_batch} does not divide over {job.ranks} ranks; expected a multiple; "
            f"use {(job.global_batch // job.ranks + 1) * job.ranks}."
        )
    return job, gpu, Network(options.network_gbit, options.network_share, options.utilization)


def _page(job: Job, gpu: Gpu, network: Network, found: list[Choice]) -> list[str]:
    best = found[0]
    lines = [
        f"{job.encoder.name} ({job.encoder.parameters / 1e9:.2f} B) + "
        f"{job.llm.name} ({job.llm.parameters / 1e9:.2f} B), "
        f"{job.fusion}, {job.mapping}: {trained_parameters(job) / 1e6:.1f} M trained",
        f"{job.nodes} nodes x {job.gpus} {gpu.name} ({gpu.gib:g} GiB), {network.gbit:g} Gbit/s a node; "
        f"{job.global_batch} samples a step of {job.source} source, {job.prompt} prompt, {job.target} target tokens",
        "",
        "DeepSpeed file       rows accum. recompute GiB a rank fits   s/step",
    ]
    for choice in found:
        of = choice.job
        lines.append(
            f"{choice.ds_config:<20} {of.micro_batch:>4} {of.accumulation:>6} {'yes' if of.checkpointing else 'no':>9} "
            f"{choice.total:>10.1f} {'yes' if choice.fits else 'NO':>4} {choice.seconds:>8.2f}"
        )
    lines += ["", f"Memory of a rank with {best.ds_config}, GiB (peak, all parts at once):"]
    lines += [f"  {name:<22} {size:>8.2f}" for name, size in memory(best.job).items()]
    lines += [f"  host, {name}: {size:.1f} GiB a node" for name, size in host_gib(best.job).items()]
    moved, times = gathers(best.job), step_time(best.job, gpu, network)
    lines += [
        "",
        "One step:",
        f"  each rank receives {moved['nodes'] / 2**30:.1f} GiB from other nodes, {moved['links'] / 2**30:.1f} GiB "
        f"inside its node: {times['gather']:.2f} s at {network.share:.0%} of the links",
        f"  matrix products: {times['compute']:.2f} s at {network.compute_share:.0%} of {gpu.tflops:g} TFLOP/s",
        f"  at least {times['step']:.2f} s, at most {times['tokens_per_s']:,.0f} tokens/s; "
        f"{'the network' if times['gather'] > times['compute'] else 'arithmetic'} is the limit",
        "",
        *_advice(best),
    ]
    return lines


def _advice(best: Choice) -> list[str]:
    if not best.fits:
        return [
            "Nothing fits. More GPUs, GPUs with more memory, shorter texts (data.max_source_tokens, "
            "data.max_target_tokens), or a smaller model."
        ]
    of = best.job
    return [
        "Do:",
        f"  sbatch --nodes={of.nodes} --gpus-per-node={of.gpus} slurm/train_13b.sh \\",
        f"      --set run.ds_config={best.ds_config} \\",
        f"      --set train.global_batch={of.global_batch} --set train.micro_batch={of.micro_batch} \\",
        f"      --set model.activation_checkpointing={'true' if of.checkpointing else 'false'} \\",
        f"      --set data.max_source_tokens={of.source} --set data.max_target_tokens={of.target}"
        + (" \\" if _modes(of) else ""),
        *_modes(of),
    ]


def _modes(job: Job) -> list[str]:
    """What else is trained; a line that goes on with the command above it."""
    keys = [f"lora.rank={job.lora}"] if job.lora else []
    if job.encoder_trained:
        again = "true" if job.encoder_checkpointing else "false"
        keys += ["encoder.trainable=true", f"encoder.activation_checkpointing={again}"]
    return ["      " + " ".join(f"--set {key}" for key in keys)] if keys else []


def _as_json(job: Job, gpu: Gpu, network: Network, found: list[Choice]) -> dict[str, Any]:
    return {
        "encoder": dataclasses.asdict(job.encoder) | {"parameters": job.encoder.parameters},
        "llm": dataclasses.asdict(job.llm) | {"parameters": job.llm.parameters},
        "trained_parameters": trained_parameters(job),
        "nodes": job.nodes,
        "gpus": job.gpus,
        "gpu": dataclasses.asdict(gpu),
        "choices": [
            {
                "ds_config": choice.ds_config,
                "micro_batch": choice.job.micro_batch,
                "accumulation": choice.job.accumulation,
                "activation_checkpointing": choice.job.checkpointing,
                "fits": choice.fits,
                "memory_gib": memory(choice.job),
                "host_gib": host_gib(choice.job),
                "received_bytes": gathers(choice.job),
                "seconds": step_time(choice.job, gpu, network),
            }
            for choice in found
        ],
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="mt5-xl", help=f"folder, or one of {', '.join(ENCODERS)}")
    parser.add_argument("--llm", default="llama-2-13b", help=f"folder, or one of {', '.join(LLMS)}")
    parser.add_argument("--fusion", default="transformer_softmax", help="last_layer | global_softmax | (default)")
    parser.add_argument("--mapping", default="linear", choices=("linear", "mlp", "mlp_gelu"))
    parser.add_argument("--train-encoder", action="store_true", help="as encoder.trainable=true")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="as lora.rank, on all linear layers")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--gpus", type=int, default=8, help="a node (default: 8)")
    parser.add_argument("--gpu", default="a100-80", choices=tuple(GPUS), help="default: a100-80")
    parser.add_argument("--gpu-gib", type=float, help="memory of another device, in GiB")
    parser.add_argument("--network-gbit", type=float, default=200, help="Gbit/s of a node, all adapters (default: 200)")
    parser.add_argument("--network-share", type=float, default=0.7, help="part of it that gathers reach (assumed)")
    parser.add_argument("--utilization", type=float, default=0.4, help="part of the GPU's rate reached (assumed)")
    parser.add_argument("--global-batch", type=int, default=128, help="samples a step (default: 128)")
    parser.add_argument("--source-tokens", type=int, default=512)
    parser.add_argument("--prompt-tokens", type=int, default=0)
    parser.add_argument("--target-tokens", type=int, default=128)
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
