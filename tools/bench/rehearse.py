#!/usr/bin/env python3
"""Rehearse a run at the real size of its models with random weights: load them sharded, take a few steps on CPU ranks
(or GPUs), and print each rank's peak memory beside the plan's and beside an unsharded load."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge_ds.cli import Parser, positive
from bridge_ds.config.names import resolve
from bridge_ds.config.zero import read_ds_config
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.plan.job import Job, layout
from bridge_ds.plan.memory import memory
from bridge_ds.plan.shapes import ENCODERS, LLMS, Shape, find_shape
from tools.bench.study import ROOT, free_port

_EXAMPLES = """\
examples:
  tools/bench/rehearse.py --folder /scratch/rehearsal
      mT5-XL's encoder (1.7 B) and a 1 B Llama, 6 GB on disk once, two ranks under ZeRO-3 in bfloat16; about 10 GiB of
      memory and some minutes
  tools/bench/rehearse.py --folder /tmp/r --encoder mt5-small --llm llama-3.2-1b --llm-layers 2 --ranks 4
  tools/bench/rehearse.py --folder /scratch/r --cuda --ranks 1 --steps 20 --source 512 --target 64 --no-unsharded
      on a GPU a rank, over NCCL: memory of the device beside the plan's, with tokens as many as a real step has
"""
_SHARD = 2**30  # bytes of one weight file


def main(arguments: list[str] | None = None) -> int:
    """Write the models where they are missing, run, print; returns the exit status."""
    options = _parser().parse_args(arguments)
    print(json.dumps(rehearse(options)) if options.json else _page(rehearse(options)))
    return 0


def rehearse(options: argparse.Namespace) -> dict[str, Any]:
    """Measured and planned peak memory, GiB.

    Raises:
        ConfigError: a model whose architecture is not known here.
        LaunchError: a rank failed.
    """
    shapes, folders = {}, {}
    for part, known, layers in (("encoder", ENCODERS, options.encoder_layers), ("llm", LLMS, options.llm_layers)):
        shape = find_shape(getattr(options, part), known)
        if layers:
            shape = Shape(**{**vars(shape), "layers": layers})
        shapes[part] = shape
        folders[part] = options.folder / f"{shape.name}-{shape.layers}-layers"
        if not (folders[part] / "done").exists():
            write_model(shape, folders[part])
    job = Job(
        shapes["encoder"], shapes["llm"], nodes=1, gpus=options.ranks, source=options.source, target=options.target,
        micro_batch=1, global_batch=options.ranks, copies=0 if options.cuda else 1,
        **layout(read_ds_config(options.ds_config)),
    )  # fmt: skip
    # The testbed's models weigh 10 MB: what a rank takes with them is the process, its libraries and their buffers.
    base = max(_train(options, {"encoder": "testbed/encoder", "llm": "testbed/llm"}, f"base-{options.ranks}"))
    return {
        "measured_gib": _train(options, folders, f"run-{options.ranks}"),
        "planned_gib": memory(job.having(process=base)),
        "unsharded_gib": None if options.no_unsharded else _load_whole(folders),
        "weights_gib": job.frozen_bytes / 2**30,
    }


def write_model(shape: Shape, folder: Path) -> None:
    """A folder that transformers loads: config, random bfloat16 weights in files of 1 GiB, the testbed's tokenizer."""
    import torch
    from safetensors.torch import save_file

    config, made, tokenizer = _architecture(shape)
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    for path in Path(resolve(tokenizer)).glob("*"):
        if path.name.startswith(("tokenizer", "spiece")):
            shutil.copy(path, folder)
    with torch.device("meta"):
        model = made(config)
    sizes = {name: p.shape for name, p in model.named_parameters()}  # named once where tied
    device = "cuda" if torch.cuda.is_available() else "cpu"  # a CPU draws 3 billion numbers in minutes
    generator = torch.Generator(device).manual_seed(0)
    where: dict[str, str] = {}
    batch: dict[str, torch.Tensor] = {}

    def flush() -> None:
        file = f"model-{len(set(where.values())) + 1:05d}.safetensors"
        save_file(batch, folder / file, metadata={"format": "pt"})
        where.update(dict.fromkeys(batch, file))
        batch.clear()

    for name, size in sizes.items():
        batch[name] = torch.randn(size, generator=generator, device=device).mul_(0.02).to("cpu", torch.bfloat16)
        if sum(2 * tensor.numel() for tensor in batch.values()) >= _SHARD:
            flush()
    if batch:
        flush()
    index = {"metadata": {"total_size": sum(2 * size.numel() for size in sizes.values())}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "done").touch()


def _architecture(shape: Shape) -> tuple[Any, Any, str]:
    import transformers as tf

    if "mt5" in shape.name:
        made: Any = tf.MT5Config(
            d_model=shape.width, d_ff=shape.ffn, d_kv=shape.q // shape.heads, num_layers=shape.layers,
            num_heads=shape.heads, vocab_size=shape.vocab, feed_forward_proj="gated-gelu",
        )  # fmt: skip
        return made, tf.MT5EncoderModel, "testbed/encoder"
    if "llama" in shape.name:
        made = tf.LlamaConfig(
            hidden_size=shape.width, intermediate_size=shape.ffn, num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads, num_key_value_heads=shape.kv * shape.heads // shape.q,
            vocab_size=shape.vocab, tie_word_embeddings=shape.tied,
        )  # fmt: skip
        return made, tf.LlamaForCausalLM, "testbed/llm"
    raise ConfigError(f"{shape.name} cannot be rehearsed; expected an mT5 encoder and a Llama.")


def _train(options: argparse.Namespace, models: Mapping[str, object], name: str) -> list[float]:
    """A few steps on `ranks` processes; each rank's peak memory (of its device, where that is a GPU), GiB."""
    run = options.folder / name
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    settings = {
        "run.output": run,
        "model.encoder": models["encoder"],
        "model.llm": models["llm"],
        "model.dtype": "bfloat16",
        "data.workers": 0,
        "data.max_source_tokens": options.source,
        "data.max_target_tokens": options.target,
        "train.steps": options.steps,
        "train.global_batch": options.ranks,
        "train.micro_batch": 1,
        "run.hang_seconds": 0,
        "evaluation.tasks": "[]",
        "track.uri": "none",
    }
    command = [sys.executable, str(ROOT / "bridge_ds" / "train.py"), "--ds_config", options.ds_config]
    command += [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    port = str(free_port())
    ranks = []
    for rank in range(options.ranks):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": options.ranks, "LOCAL_WORLD_SIZE": options.ranks}
        env = (
            os.environ
            | ({} if options.cuda else _CPU)
            | {name: str(value) for name, value in world.items()}
            | {"MASTER_PORT": port}
        )
        with (run / f"rank-{rank}.log").open("w", encoding="utf-8") as log:
            ranks.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
    if any([process.wait() for process in ranks]):
        tail = (run / "rank-0.log").read_text(encoding="utf-8")[-1500:]
        raise LaunchError(f"a rank failed; expected {options.steps} steps; see {run}/rank-*.log, which ends:\n{tail}")
    record = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    return list(record["peak_memory_gib_by_rank"])


def _load_whole(folders: dict[str, Path]) -> float:
    """Peak memory (GiB) of a process that loads both models whole and reads every weight."""
    code = (
        "import sys\nfrom bridge_ds.compat.deepspeed import import_deepspeed\n"
        "from bridge_ds.engine.distributed import peak_memory_gib\nimport_deepspeed()\n"
        "import bridge_ds.run, torch\nfrom transformers import LlamaForCausalLM, MT5EncoderModel\n"
        "kept = [made.from_pretrained(path, dtype=torch.bfloat16) for made, path in "
        "zip((MT5EncoderModel, LlamaForCausalLM), sys.argv[1:])]\n"
        "total = sum(float(p.sum()) for model in kept for p in model.parameters())\nprint(peak_memory_gib())"
    )
    command = [sys.executable, "-c", code, str(folders["encoder"]), str(folders["llm"])]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | _CPU, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        raise LaunchError(f"the unsharded load failed; expected room for both models; it said: {done.stderr[-500:]}")
    return float(done.stdout.split()[-1])


_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _page(found: dict[str, Any]) -> str:
    lines = ["peak memory, GiB"]
    lines += [f"  rank {rank}, measured       {gib:6.2f}" for rank, gib in enumerate(found["measured_gib"])]
    lines += [f"  a rank, planned        {found['planned_gib']['total']:6.2f}"]
    if found["unsharded_gib"]:
        lines += [f"  unsharded load         {found['unsharded_gib']:6.2f}   (no step taken)"]
    lines += ["the plan's parts:"] + [f"  {name:<22} {gib:6.2f}" for name, gib in found["planned_gib"].items()]
    return "\n".join(lines)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where models (kept) and runs are written")
    parser.add_argument("--encoder", default="mt5-xl", help="an mT5 of tools/plan_cluster.py (default: mt5-xl)")
    parser.add_argument("--llm", default="llama-3.2-1b", help="a Llama of it (default: llama-3.2-1b)")
    parser.add_argument("--encoder-layers", type=positive(int), help="fewer layers than the real one")
    parser.add_argument("--llm-layers", type=positive(int), help="fewer layers than the real one")
    parser.add_argument("--ranks", type=positive(int), default=2, help="processes (default: 2)")
    parser.add_argument("--cuda", action="store_true", help="a GPU a rank, in place of CPU processes")
    parser.add_argument("--ds_config", default="zero3.json", help="DeepSpeed file (default: zero3.json)")
    parser.add_argument("--steps", type=positive(int), default=2, help="optimizer steps (default: 2)")
    parser.add_argument("--source", type=positive(int), default=16, help="encoder tokens a sample (default: 16)")
    parser.add_argument("--target", type=positive(int), default=4, help="target tokens a sample (default: 4)")
    parser.add_argument("--no-unsharded", action="store_true", help="leave out the load of both models whole")
    parser.add_argument("--json", action="store_true", help="the numbers as JSON")
    return parser


if __name__ == "__main__":
    run_command(main)
