"""Plan a run before asking for nodes: memory of a rank, bytes gathered, time of a step, and what to choose."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from bridge_ds.cli import Parser, positive
from bridge_ds.config.load import load_config
from bridge_ds.errors import LaunchError
from bridge_ds.plan.advice import Choice, choices, fits
from bridge_ds.plan.command import command, first_stage
from bridge_ds.plan.job import PROCESS_GIB, Job, planned, trained_parameters
from bridge_ds.plan.memory import host_gib, memory
from bridge_ds.plan.shapes import ENCODERS, LLMS, find_shape
from bridge_ds.plan.timing import GPUS, Gpu, Network, gathers, step_time

_EXAMPLES = """\
examples:
  bridge-ds plan --encoder mt5-xl --llm llama-2-13b --nodes 2 --gpus 8
  bridge-ds plan --encoder mt5-xl --llm llama-3.1-70b --nodes 64 --gpus 8 --gpu h100 --network-gbit 3200
  bridge-ds plan --encoder models/encoder --llm models/llm --gpus 4 --gpu a40 --json
  bridge-ds plan --recipe mt5xl_13b --nodes 2 --gpus 8

Known models need no download; any other is a folder with config.json. Memory is checked against measured runs by
tests/plan; times are computed from data sheets, counted operators and assumptions (--utilization,
--network-share, --launch-us): bounds, not measurements.
"""
_OF_JOB = ("fusion", "mapping", "encoder_trained", "llm_trained", "lora", "global_batch", "source", "prompt", "target")
_LIMITS = {"compute": "arithmetic is", "gather": "the network is", "launch": "launches are"}


def main(arguments: list[str] | None = None) -> int:
    """Print the plan; returns the exit status."""
    options = _parser().parse_args(arguments)
    job, gpu, network = _read(options)
    found = choices(job, gpu, network)
    if options.json:
        print(json.dumps(_as_json(job, gpu, network, found, options.recipe), indent=1))
    else:
        print("\n".join(_page(job, gpu, network, found, options.recipe)))
    return 0


def _read(options: argparse.Namespace) -> tuple[Job, Gpu, Network]:
    gpu = GPUS[options.gpu]
    if options.gpu_gib:
        gpu = dataclasses.replace(gpu, name=f"{gpu.name} ({options.gpu_gib:g} GiB)", gib=options.gpu_gib)
    given = {name: value for name in _OF_JOB if (value := getattr(options, name)) is not None}
    if options.recipe:
        config = load_config(options.recipe)
        models = {part: name for part in ("encoder", "llm") if (name := getattr(options, part))}
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, **models))
        job = planned(config, options.nodes, options.gpus)
    else:
        encoder = find_shape(options.encoder or "mt5-xl", ENCODERS)
        llm = find_shape(options.llm or "llama-2-13b", LLMS)
        job = Job(encoder, llm, nodes=options.nodes, gpus=options.gpus)
    for part, choice in (("fusion", "name"), ("mapping", "kind")):
        if part in given:
            given[part] = dataclasses.replace(getattr(job, part), **{choice: given[part]})
    job = job.having(**given, process=PROCESS_GIB)
    if job.global_batch % job.ranks:
        raise LaunchError(
            f"a global batch of {job.global_batch} does not divide over {job.ranks} ranks; expected a multiple; "
            f"use --global-batch {(job.global_batch // job.ranks + 1) * job.ranks}."
        )
    return job, gpu, Network(options.network_gbit, options.network_share, options.utilization, options.launch_us)


def _page(job: Job, gpu: Gpu, network: Network, found: list[Choice], recipe: str) -> list[str]:
    best = found[0]
    lines = [
        f"{job.encoder.name} ({job.encoder.parameters / 1e9:.2f} B) + "
        f"{job.llm.name} ({job.llm.parameters / 1e9:.2f} B), "
        f"{job.fusion.name}, {job.mapping.kind}: {trained_parameters(job) / 1e6:.1f} M trained",
        f"{job.nodes} nodes x {job.gpus} {gpu.name} ({gpu.gib:g} GiB), {network.gbit:g} Gbit/s a node; "
        f"{job.global_batch} samples a step of {job.source} source, {job.prompt} prompt, {job.target} target tokens",
        "",
        "DeepSpeed file       rows accum. recompute encoder once GiB a rank fits   s/step",
    ]
    for choice in found:
        of = choice.job
        lines.append(
            f"{choice.ds_config:<20} {of.micro_batch:>4} {of.accumulation:>6} {'yes' if of.checkpointing else 'no':>9} "
            f"{'yes' if of.encode_once else 'no':>12} {choice.total:>10.1f} {'yes' if choice.fits else 'NO':>4} "
            f"{choice.seconds:>8.2f}"
        )
    lines += ["", f"Memory of a rank with {best.ds_config}, GiB (peak, all parts at once):"]
    lines += [f"  {name:<22} {size:>8.2f}" for name, size in memory(best.job).items()]
    lines += [f"  host, {name}: {size:.1f} GiB a node" for name, size in host_gib(best.job).items()]
    if each := job.kept_bytes:
        lines.append(
            f"Encoder states on disk (data.states_cache): {each * job.source / 1e6:,.1f} MB a sample of {job.source} "
            f"tokens, {each * job.source * 1e5 / 2**30:,.0f} GiB for 100,000 of these"
        )
    if best.job.stage == 3:
        lines += [f"DeepSpeed's sizes with {best.ds_config}, elements, from the models (numbers in a file win):"]
        lines += [f"  {name:<29} {size:>13,}" for name, size in best.job.sizes.items()]
    moved, times = gathers(best.job), step_time(best.job, gpu, network)
    limit = max(("compute", "gather", "launch"), key=lambda name: times[name])
    lines += [
        "",
        "One step:",
        f"  each rank receives {moved['nodes'] / 2**30:.1f} GiB from other nodes, {moved['links'] / 2**30:.1f} GiB "
        f"inside its node: {times['gather']:.2f} s at {network.share:.0%} of the links",
        f"  matrix products: {times['compute']:.2f} s at {network.compute_share:.0%} of {gpu.rate(best.job):g} TFLOP/s",
        f"  launches of operators: {times['launch']:.2f} s at {network.launch:g} microseconds each",
        f"  at least {times['step']:.2f} s, at most {times['tokens_per_s']:,.0f} tokens/s; {_LIMITS[limit]} the limit",
        "",
        *_advice(best, gpu, recipe),
    ]
    return lines


def _advice(best: Choice, gpu: Gpu, recipe: str) -> list[str]:
    if not best.fits:
        return [
            "Nothing fits. More GPUs, GPUs with more memory, shorter texts (data.max_source_tokens, "
            "data.max_target_tokens), or a smaller model."
        ]
    lines, first = [], first_stage(best.job, best.ds_config, recipe)
    if first:
        total, updates = memory(first)["total"], f"LoRA of rank {first.lora}" if first.lora else "all of its weights"
        lines = [
            f"First the LLM is taught the task (llm.finetune): {updates}, {trained_parameters(first) / 1e6:,.1f} M "
            f"trained, {total:.1f} GiB a rank in {first.micro_batch} rows"
        ]
        if not fits(total, gpu):
            lines[0] += ", which does NOT fit. Set llm.finetune_settings, such as "
            lines[0] += "[run.ds_config=zero3.json, model.activation_checkpointing=true], or take more GPUs."
        lines.append("")
    return [*lines, "Do:", *("  " + line for line in command(best.job, best.ds_config, recipe).splitlines())]


def _as_json(job: Job, gpu: Gpu, network: Network, found: list[Choice], recipe: str) -> dict[str, Any]:
    return {
        "encoder": dataclasses.asdict(job.encoder) | {"parameters": job.encoder.parameters},
        "llm": dataclasses.asdict(job.llm) | {"parameters": job.llm.parameters},
        "trained_parameters": trained_parameters(job),
        "kept_state_bytes_per_token": job.kept_bytes,
        "nodes": job.nodes,
        "gpus": job.gpus,
        "gpu": dataclasses.asdict(gpu),
        "choices": [
            {
                "ds_config": choice.ds_config,
                "micro_batch": choice.job.micro_batch,
                "accumulation": choice.job.accumulation,
                "activation_checkpointing": choice.job.checkpointing,
                "encode_once": choice.job.encode_once,
                "deepspeed_sizes": choice.job.sizes if choice.job.stage == 3 else {},
                "fits": choice.fits,
                "memory_gib": memory(choice.job),
                "host_gib": host_gib(choice.job),
                "received_bytes": gathers(choice.job),
                "seconds": step_time(choice.job, gpu, network),
                "first_stage": _first(choice, recipe),
                "command": command(choice.job, choice.ds_config, recipe),
            }
            for choice in found
        ],
    }


def _first(choice: Choice, recipe: str) -> dict[str, Any] | None:
    """What llm.finetune does first, if anything."""
    job = first_stage(choice.job, choice.ds_config, recipe)
    if not job:
        return None
    own = {"trained_parameters": trained_parameters(job), "micro_batch": job.micro_batch}
    return own | {"memory_gib": memory(job), "host_gib": host_gib(job)}


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="bridge-ds plan",
        description=__doc__,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", default="", help="values of everything not given here (as bridge-ds train)")
    parser.add_argument("--encoder", help=f"folder, hub id, or one of {', '.join(ENCODERS)} (default: mt5-xl)")
    parser.add_argument("--llm", help=f"folder, hub id, or one of {', '.join(LLMS)} (default: llama-2-13b)")
    parser.add_argument("--fusion", help="as fusion.name (default: transformer_softmax)")
    parser.add_argument("--mapping", help="as mapping.kind (default: linear)")
    parser.add_argument(
        "--train-encoder", dest="encoder_trained", action="store_const", const=True, help="as encoder.trainable=true"
    )
    parser.add_argument(
        "--train-llm", dest="llm_trained", action="store_const", const=True, help="as llm.trainable=true"
    )
    parser.add_argument(
        "--lora", type=positive(int, zero=True, most=16_384), metavar="RANK", help="as lora.rank, on all linear layers"
    )
    parser.add_argument("--nodes", type=positive(int, most=100_000), default=1, help="default: 1")
    parser.add_argument("--gpus", type=positive(int, most=1024), default=8, help="a node (default: 8)")
    parser.add_argument("--gpu", default="a100-80", choices=tuple(GPUS), help="default: a100-80")
    parser.add_argument("--gpu-gib", type=positive(float, most=1e6), help="memory of another device, in GiB")
    parser.add_argument(
        "--network-gbit",
        type=positive(float, most=1e9),
        default=200,
        help="Gbit/s of a node, all adapters (default: 200)",
    )
    part = positive(float, most=1)
    parser.add_argument(
        "--network-share", type=part, default=0.7,
        help="part of their rate that gathers reach of the network and of the links inside a node (assumed: 0.7)",
    )  # fmt: skip
    parser.add_argument(
        "--utilization", type=part, default=0.4, help="part of the GPU's rate that products reach (assumed: 0.4)"
    )
    parser.add_argument(
        "--launch-us", type=positive(float, zero=True), default=5.0,
        help="microseconds to launch an operator (assumed: 5)",
    )  # fmt: skip
    parser.add_argument("--global-batch", type=positive(int, most=10_000_000), help="samples a step (default: 128)")
    for name, default in (("source", 512), ("prompt", 0), ("target", 128)):
        least = positive(int, zero=name == "prompt", most=10_000_000)
        parser.add_argument(f"--{name}-tokens", dest=name, type=least, metavar="N", help=f"default: {default}")
    parser.add_argument("--json", action="store_true", help="the same as JSON")
    return parser
