"""Of preflight: room on the disk of the run folder and in the memory of a device."""

from __future__ import annotations

import math
import os
import shutil
from pathlib import Path

from bridge_ds.checkpoint.layout import folders
from bridge_ds.checks.subject import Subject
from bridge_ds.config import zero
from bridge_ds.config.schema import Config
from bridge_ds.disk import real
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.plan.job import PROCESS_GIB, Job, planned, trained_parameters
from bridge_ds.plan.memory import device_gib, memory

__all__ = ["memory_fits", "output_writable"]


def output_writable(subject: Subject) -> str:
    """The run folder can be written."""
    folder = real(subject.config.run.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".preflight-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink(missing_ok=True)  # a node with which this one shares the folder may have a process of this pid
    except OSError as error:
        raise LaunchError(
            f"run.output {folder} cannot be written ({error.strerror}); expected a folder that you may write; "
            "choose another with --set run.output=PATH."
        ) from None
    free = shutil.disk_usage(folder).free
    try:
        needed = sum(_to_write(config, job) for config, job in _plans(subject))
    except ConfigError:  # said of the memory
        return f"{folder}, {free / 2**30:.1f} GiB free"
    if free < needed:
        raise LaunchError(
            f"run.output {folder} has {free / 2**30:.2f} GiB free; expected {needed / 2**30:.2f} GiB for checkpoints; "
            "make room, choose another with --set run.output=PATH, or lower checkpoint.keep_last."
        )
    return f"{folder}, {free / 2**30:.1f} GiB free, checkpoints take {needed / 2**30:.2f} more"


def _to_write(config: Config, job: Job) -> float:
    """Bytes of a run's checkpoints, and of the LLM that it teaches, that are not there yet."""
    of, run = config.checkpoint, Path(config.run.output)
    there = [step for step, _ in folders(run / "checkpoints")]
    kept = math.ceil(config.train.steps / of.every)
    if of.keep_last:  # one more while the next is written
        kept = min(kept, of.keep_last + of.keep_best + 1)
    # Each start that is stopped writes one, and old ones are removed only then.
    missing = max(kept - len(there), 1) if max(there, default=0) < config.train.steps else 0
    taught = not config.model.has_encoder and not (run / "llm" / "config.json").is_file()
    # Parameter and two moments in float32.
    return 12 * trained_parameters(job) * missing + taught * job.llm.parameters * job.bytes


def memory_fits(subject: Subject) -> str:
    """The plan's memory of a rank fits the device (`--gpu-gib`, or the one that is here)."""
    try:
        plans = _plans(subject)
    except ConfigError as error:
        return f"not planned: {error}"
    size = subject.options.gpu_gib or device_gib()
    needs = [memory(job)["total"] for _, job in plans]
    of = f"{plans[0][1].nodes} x {plans[0][1].gpus} GPUs"
    said = " for the bridge and ".join(f"{need:.1f} GiB" for need in needs)
    said += " for what comes first (llm.finetune)" * (len(needs) > 1)
    if not size:
        return f"{said} a rank planned on {of}; no GPU here to compare with (--gpu-gib)"
    if needs[0] > size:
        raise LaunchError(
            f"the plan needs {needs[0]:.1f} GiB a rank; the device has {size:.1f} GiB; lower train.micro_batch, set "
            "model.activation_checkpointing=true, or see bridge-ds plan for another run.ds_config."
        )
    if needs[-1] > size:
        raise LaunchError(
            f"teaching the LLM first (llm.finetune) needs {needs[-1]:.1f} GiB a rank by the plan, the bridge "
            f"{needs[0]:.1f}; the device has {size:.1f} GiB; set llm.finetune_settings, such as "
            "[run.ds_config=zero3.json, model.activation_checkpointing=true], or take more GPUs."
        )
    return f"{said} a rank planned on {of}, {size:.1f} GiB there"


def _plans(subject: Subject) -> list[tuple[Config, Job]]:
    """The run, and what comes before it unless that is done, each with its plan.

    Raises:
        ConfigError: a model's shape is not known without loading it.
    """
    configs = [subject.config]
    if subject.first and not subject.first.is_done:
        configs.append(zero.resolve_micro_batch(subject.first.config, subject.ranks))
    nodes = subject.ranks // subject.gpus
    return [(of, planned(of, nodes, subject.gpus).having(process=PROCESS_GIB)) for of in configs]
