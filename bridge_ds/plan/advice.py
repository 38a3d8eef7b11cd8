"""Which DeepSpeed file, micro-batch, recomputation and gathering of the encoder fit and take the shortest step, by the
plan's own numbers."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from bridge_ds.plan.job import Job
from bridge_ds.plan.memory import memory
from bridge_ds.plan.timing import Gpu, Network, step_time

__all__ = ["LAYOUTS", "Choice", "choices", "fits"]

_FILLED = 0.9
"""Part of the device that a plan may fill: the allocator's blocks and NCCL's buffers want the rest."""

LAYOUTS = {
    "zero2.json": {"stage": 2, "hpz": False, "offload": False},
    "zero3_hpz.json": {"stage": 3, "hpz": True, "offload": False},
    "zero3.json": {"stage": 3, "hpz": False, "offload": False},
    "zero3_offload.json": {"stage": 3, "hpz": False, "offload": True},
}
"""The shipped DeepSpeed files and what they mean here (hpz: over the GPUs of a node, however many it has)."""
_FROM_MODELS = {"prefetch": 0, "live": 0, "reuse": 0, "hpz_ranks": 0}


@dataclass(frozen=True)
class Choice:
    """One way to run the job."""

    ds_config: str
    job: Job
    total: float
    """GiB a rank."""
    fits: bool
    seconds: float
    """Of a step, at least."""
    gather: float
    """Seconds of a step in which links are busy."""


def choices(job: Job, gpu: Gpu, network: Network) -> list[Choice]:
    """For each layout the best of what is left to choose; those that fit first, the fastest of them first."""
    best = []
    for name, layout in LAYOUTS.items():
        if layout["hpz"] and job.nodes == 1:
            continue  # one node's shards are all there is
        ways = [
            job.having(
                **layout,
                **_FROM_MODELS,
                micro_batch=rows,
                checkpointing=again,
                encoder_checkpointing=again and job.encoder_trained,
                encode_once=once,
            )
            for rows, again, once in itertools.product(_micro_batches(job), (False, True), (False, True))
        ]
        best.append(min((_choice(name, way, gpu, network) for way in ways if _useful(way)), key=_order))
    return sorted(best, key=_order)


def _useful(job: Job) -> bool:
    return job.may_encode_once or not job.encode_once


def fits(total: float, gpu: Gpu) -> bool:
    """Whether a plan may take that many GiB of a device."""
    return total <= _FILLED * gpu.gib


def _choice(name: str, job: Job, gpu: Gpu, network: Network) -> Choice:
    total, times = memory(job)["total"], step_time(job, gpu, network)
    return Choice(name, job, total, fits(total, gpu), times["step"], times["gather"])


def _order(choice: Choice) -> tuple[float, ...]:
    # Of ways that do not fit, the smallest. Of those that do: the fastest, then stage 2 (it gathers nothing), then the
    # one that leans least on the network, then the one of fewest and so largest passes. Weights are put in host memory,
    # and layers computed again, where that is faster or nothing else fits.
    if not choice.fits:
        return 1, choice.total
    of, extras = choice.job, choice.job.offload + choice.job.checkpointing
    seconds, gather = (float(f"{time:.{digits}g}") for time, digits in ((choice.seconds, 3), (choice.gather, 2)))
    each = of.may_encode_once and not of.encode_once
    return 0, seconds, extras, of.stage == 3, gather, of.accumulation, each, choice.total


def _micro_batches(job: Job) -> list[int]:
    share = job.global_batch // job.ranks
    return [rows for rows in range(1, share + 1) if share % rows == 0] or [1]
