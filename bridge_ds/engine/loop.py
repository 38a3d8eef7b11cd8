"""The training loop: data, step, guard, hooks. Everything else is a hook."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from bridge_ds.compat.torch import set_timeout
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.batch import StepBatches
from bridge_ds.data.shards.samples import KINDS
from bridge_ds.engine.hooks import Hook, StepRecord, is_bad
from bridge_ds.engine.preempt import StopRequest
from bridge_ds.engine.schedule import learning_rate
from bridge_ds.engine.step import agree_on_data, allow_bad_samples, read_together, train_step
from bridge_ds.engine.validate import Validation
from bridge_ds.engine.watchdog import Watchdog
from bridge_ds.errors import BridgeError, Preempted, TrainingError
from bridge_ds.world import World

__all__ = ["fit"]


def fit(
    engine: Any,
    loader: Iterable[StepBatches],
    config: Config,
    world: World,
    device: torch.device,
    hooks: Hook,
    done: int,
    bad_samples: dict[str, int],
    stop: StopRequest,
    watchdog: Watchdog,
    validation: Validation | None,
    unvalidated: StepRecord | None,
) -> None:
    """Run the steps that `loader` yields, from `done` + 1 on.

    Args:
        bad_samples: bad samples left out in the steps that are done, by kind.
        stop: set by a signal; all ranks agree on it before each step.
        watchdog: told the phase of this rank; it looks for hangs from the second step on (the first may compile).
        validation: computed after the steps for which it is due; None = the run has none.
        unvalidated: record of the step `done`, whose validation was interrupted; None = it was not.

    Raises:
        Preempted: `stop` was set on some rank; `on_stop` of the hooks was called, and every rank raises it.
        DataError: a rank cannot read its part of a batch, or more than `data.max_bad_samples` samples were bad (on
            every rank).
        TrainingError: more than `train.max_bad_steps` steps in a row had a loss or gradient that is not finite.
    """
    hooks.on_start(step=done - 1 if unvalidated else done, total_steps=config.train.steps)
    bad_in_a_row = 0
    left_out = {kind: bad_samples.get(kind, 0) for kind in KINDS}
    steps = iter(loader)
    mark = watchdog.mark
    together = read_together(engine.module.encoder, config)
    held_out = partial(validation.run, engine, device, together, stop, mark) if validation else None
    tell = partial(_tell, hooks=hooks, validation=validation, run=held_out, mark=mark)
    if unvalidated:
        mark("validate", done)
        tell(unvalidated)
    for step in range(done + 1, config.train.steps + 1):
        mark("data", step)
        asked = time.perf_counter()
        batches, fault = _next(steps)
        waited = time.perf_counter() - asked
        mark("agree")
        totals = agree_on_data(batches, fault, world, bool(stop))
        if totals.stopping:
            hooks.on_stop()
            raise Preempted(f"preempted after step {step - 1} of {config.train.steps}")
        assert batches is not None
        left_out = allow_bad_samples(batches, totals, left_out, config.data.max_bad_samples, world)
        mark("forward")
        record = train_step(
            engine,
            batches,
            totals,
            lr=learning_rate(config.train, batches.step),
            seed=config.run.seed,
            world=world,
            device=device,
            waited=waited,
            together=together,
            mark=mark,
        )
        record["bad_samples"] = left_out
        bad_in_a_row = bad_in_a_row + 1 if is_bad(record) else 0
        if bad_in_a_row > config.train.max_bad_steps:
            hooks.on_not_finite(step - bad_in_a_row)
            raise _not_finite(record)
        tell(record)
        if step == done + 1:
            watchdog.arm()
            if config.run.hang_seconds:
                set_timeout(config.run.hang_seconds + 60)


def _tell(
    record: StepRecord,
    hooks: Hook,
    validation: Validation | None,
    run: Callable[[], dict[str, Any] | None] | None,
    mark: Callable[[str], None],
) -> None:
    """Call the hooks for a finished step, with its validation where one is due.

    Raises:
        Preempted: the validation was interrupted.
    """
    if validation and run and validation.is_due(record["step"]):
        found = run()
        if found is None:
            hooks.on_stop(record)
            raise Preempted(f"preempted after step {record['step']} of {validation.total_steps}, while validating")
        record |= found
    mark("hooks")
    hooks.on_step(record)


def _next(steps: Iterator[StepBatches]) -> tuple[StepBatches | None, BridgeError | None]:
    try:
        return next(steps), None
    except BridgeError as error:
        return None, error


def _not_finite(record: StepRecord) -> TrainingError:
    return TrainingError(
        f"step {record['step']} has loss {record['loss']} and gradient norm {record['grad_norm']} "
        f"(global batch {record['ids_hash']}); expected finite numbers; lower train.lr, look at that batch, or allow "
        "some with train.max_bad_steps."
    )
