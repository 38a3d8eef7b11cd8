"""Imports everything once, then forks the ranks of one job after another: a start takes a second, not ten.

Reads a JSON object a line: {"ranks", "arguments", "folder", "env", "program"}; answers with {"pids": [...]} and, when
all ranks have ended, {"codes": [...]}. A rank is a process group of its own, runs the main of bridge_ds/train.py (or,
as program `evaluation`, of bridge_ds.evaluation; as a path, that file) as it stands, and writes to FOLDER/rankN.log.
With RECORD in its environment it also appends what each finished step was trained on to the file RECORD.RANK: {"step",
"rows"}, a row being the encoder ids of one source; with ENCODER_GATHERS how often the step gathered each parameter of
the encoder to ENCODER_GATHERS.RANK: a list of counts. With GATHERS, see watch_gathers.py. With SLOW_VALIDATION each
micro-batch of a validation waits so many seconds, with SLOW_SAVE each checkpoint is written for so many seconds more,
and with STUCK_SAVE nothing of it is written for so long. With COMPILE_BACKEND `train.compile` uses that backend of
torch.compile, which takes seconds where inductor takes a minute, and the rank's last line says how many graphs it made.
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import runpy
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

import torch
import transformers

import bridge_ds.run
from bridge_ds.checkpoint import hook
from bridge_ds.checkpoint.layout import step_folder
from bridge_ds.compat.deepspeed import import_deepspeed
from bridge_ds.disk import beside
from bridge_ds.engine import loop, setup, validate
from bridge_ds.engine.compiled import CompiledLayers
from bridge_ds.entry import exit_status
from bridge_ds.evaluation.__main__ import main as evaluate
from bridge_ds.log import setup_logging
from bridge_ds.streams import guard_streams
from bridge_ds.train import main


def record_steps(path: str) -> None:
    """Note what the step has used, after it is done."""
    real = loop.train_step

    def recorded(engine: Any, batches: Any, *rest: Any, **more: Any) -> Any:
        result = real(engine, batches, *rest, **more)
        rows = [
            ids[mask.bool()].tolist()
            for batch in batches.micro
            for ids, mask in zip(batch.source_ids, batch.source_mask, strict=True)
        ]
        with open(path, "a") as file:
            file.write(json.dumps({"step": batches.step, "rows": rows}) + "\n")
        return result

    loop.train_step = recorded


def count_encoder_gathers(path: str) -> None:
    """Note how often the step has gathered each parameter of the encoder, whoever did it."""
    real = loop.train_step
    counts: Counter[int] = Counter()

    def counted(gather: Any, group: list[Any], **options: Any) -> Any:
        counts.update(parameter.ds_id for parameter in group)
        return gather(group, **options)

    def recorded(engine: Any, *rest: Any, **more: Any) -> Any:
        # Of all, since DeepSpeed asks any one of those that it gathers together.
        for parameter in engine.module.parameters():
            if not isinstance(parameter.all_gather_coalesced, functools.partial):
                parameter.all_gather_coalesced = functools.partial(counted, parameter.all_gather_coalesced)
        counts.clear()
        result = real(engine, *rest, **more)
        with open(path, "a") as file:
            file.write(json.dumps([counts[parameter.ds_id] for parameter in engine.module.encoder.parameters()]) + "\n")
        return result

    loop.train_step = recorded


def slow_validation(seconds: float) -> None:
    """Leave time for a signal in the midst of a validation."""
    real = validate.any_rank

    def slow(flag: bool) -> bool:
        time.sleep(seconds)
        return real(flag)

    validate.any_rank = slow


def slow_save(seconds: float, pieces: int) -> None:
    """Write each checkpoint as to a slow disk: first as many pieces in so many seconds, then what it holds."""
    real = hook.write

    def slow(snapshot: Any, root: Path, *, state: dict[str, Any], manifest: dict[str, Any]) -> Path:
        folder = beside(step_folder(root, state["step"]), "tmp")
        folder.mkdir(parents=True)
        for _ in range(pieces):
            with (folder / "pieces").open("ab") as file:
                file.write(b"x" * 4096)
            time.sleep(seconds / pieces)
        return real(snapshot, root, state=state, manifest=manifest)

    hook.write = slow


def launcher_variables(rank: int, ranks: int, env: dict[str, str]) -> dict[str, str]:
    """What a launcher sets: nodes of LOCAL_WORLD_SIZE ranks, where the job says so; in a step of Slurm, what srun sets,
    a node for each rank, and nothing else."""
    if "SLURM_STEP_ID" in env:
        del os.environ["MASTER_ADDR"], env["MASTER_PORT"]
        own = {"PROCID": rank, "NODEID": rank, "LOCALID": 0, "STEP_NUM_TASKS": ranks, "NTASKS": ranks}
        return {f"SLURM_{name}": str(value) for name, value in own.items()}
    node = int(env.get("LOCAL_WORLD_SIZE", ranks))
    own = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": node, "LOCAL_SIZE": node}
    own |= {"RANK": rank, "LOCAL_RANK": rank % node, "NODE_RANK": rank // node}
    return {name: str(value) for name, value in own.items()}


def run_rank(rank: int, job: dict[str, Any]) -> None:
    os.setsid()
    log = os.open(Path(job["folder"]) / f"rank{rank}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ |= launcher_variables(rank, job["ranks"], job["env"]) | job["env"]
    guard_streams()
    setup_logging()
    if "RECORD" in os.environ:
        record_steps(f"{os.environ['RECORD']}.{rank}")
    if "GATHERS" in os.environ:
        from watch_gathers import count_gathers

        count_gathers(f"{os.environ['GATHERS']}.{rank}")
    if "ENCODER_GATHERS" in os.environ:
        count_encoder_gathers(f"{os.environ['ENCODER_GATHERS']}.{rank}")
    if "SLOW_VALIDATION" in os.environ:
        slow_validation(float(os.environ["SLOW_VALIDATION"]))
    if "SLOW_SAVE" in os.environ:
        slow_save(float(os.environ["SLOW_SAVE"]), pieces=20)
    if "STUCK_SAVE" in os.environ:
        slow_save(float(os.environ["STUCK_SAVE"]), pieces=1)
    if "COMPILE_BACKEND" in os.environ:
        setup.CompiledLayers = functools.partial(CompiledLayers, backend=os.environ["COMPILE_BACKEND"])  # type: ignore
    code = 1
    try:
        if job["program"].endswith(".py"):
            sys.argv = [job["program"], *job["arguments"]]
            runpy.run_path(job["program"], run_name="__main__")
            code = 0
        else:
            command = evaluate if job["program"] == "evaluation" else main
            code = exit_status(lambda: command(job["arguments"])) or 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        if "COMPILE_BACKEND" in os.environ:
            print(f"graphs: {torch._dynamo.utils.counters['stats']['unique_graphs']}")
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def answer(content: dict[str, Any]) -> None:
    print(json.dumps(content), flush=True)


if __name__ == "__main__":
    import_deepspeed()
    assert bridge_ds.run
    # What a run imports on its way, two thirds of its time: once here instead of in every rank.
    for module in ("deepspeed.runtime.zero.muon.muon_optimizer", "accelerate", "bridge_ds.track.plots",
                   "bridge_ds.track.mlflow", "matplotlib.pyplot"):  # fmt: skip
        importlib.import_module(module)
    for name in ("AutoModelForCausalLM", "AutoTokenizer", "MT5EncoderModel", "LlamaForCausalLM"):
        getattr(transformers, name)
    answer({"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        pids = []
        for rank in range(job["ranks"]):
            pid = os.fork()
            if pid == 0:
                run_rank(rank, job)
            pids.append(pid)
        answer({"pids": pids})
        answer({"codes": [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]})
