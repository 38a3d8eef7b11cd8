"""The loss on held-out samples, between two steps, on all ranks; it does not change training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.corpus import Corpus
from bridge_ds.data.loading.loader import held_out
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.data.shards.samples import KINDS
from bridge_ds.engine.distributed import any_rank, on_all
from bridge_ds.engine.preempt import StopRequest
from bridge_ds.engine.step import StepTotals, agree_on_data, allow_bad_samples, encoded
from bridge_ds.errors import DataError
from bridge_ds.states.cache import KeptStates, StatesCache
from bridge_ds.world import World

__all__ = ["Validation", "make_validation", "validates_every"]

_log = logging.getLogger(__name__)


def validates_every(config: Config) -> int:
    """Optimizer steps from one validation to the next; 0 = there is none."""
    if not config.data.validation_percent:
        return 0
    every = config.train.validate_every
    return config.checkpoint.every if every is None else every


class Validation:
    """This rank's part of the held-out samples, in memory for the whole run, and when to compute their loss."""

    states: StatesCache | None = None
    """Of the run, once its encoder's sizes are known."""

    def __init__(
        self, part: StepBatches, totals: StepTotals, samples: int, every: int, total_steps: int, world: World
    ) -> None:
        """Args:
        part: the same number of micro-batches on every rank.
        totals: counts over all ranks.
        samples: good ones over all ranks.
        every: optimizer steps from one to the next; the last step has one too.
        total_steps: of the run.
        world: the ranks.
        """
        self.part, self.totals, self.samples, self.every, self.total_steps = part, totals, samples, every, total_steps
        self.world = world

    def is_due(self, step: int) -> bool:
        """Whether the loss is computed after this step."""
        return step % self.every == 0 or step == self.total_steps

    @torch.no_grad()
    def run(
        self,
        engine: Any,
        device: torch.device,
        together: int,
        stop: StopRequest,
        mark: Callable[[str], None],
    ) -> dict[str, float | int] | None:
        """The numbers for the step's record, the same on every rank (a collective); none if `stop` was set on one.

        In eval mode: no dropout, and no random number is drawn. Each sample counts once and each target token equally,
        whatever the ranks and micro-batches.

        Args:
            together: micro-batches that a frozen encoder encodes together.
            stop: checked before each micro-batch.
            mark: called with `validate` before each.
        """
        began = time.perf_counter()
        sums = torch.zeros(3, dtype=torch.float64, device=device)
        engine.eval()
        try:
            states: list[Any] = []
            for number in range(len(self.part.micro)):
                mark("validate")
                now = [] if states else self.part.micro[number : number + together]
                stopping, kept, unread = self._agree(now, bool(stop))
                if stopping:
                    return None
                if now:
                    ahead = [batch.to(device) for batch in now]
                    states = list(zip(ahead, encoded(engine.module, ahead, kept, unread), strict=True))
                found = engine(*states.pop(0), counted=True).double()
                sums[: len(found)] += found
        finally:
            engine.train()
        mark("reduce")
        torch.distributed.all_reduce(sums)
        targets = max(1, self.totals.target_tokens)
        loss, right, kl = sums.tolist()
        taught = any(batch.lesson for batch in self.part.micro)
        return {
            "validation_loss": loss / targets,
            **({"validation_kl": kl / max(1, self.totals.taught_tokens)} if taught else {}),
            "validation_accuracy": right / targets,
            "validation_samples": self.samples,
            "validation_tokens": self.totals.target_tokens,
            "validation_seconds": time.perf_counter() - began,
        }

    def _agree(self, micro: list[Batch], stop: bool) -> tuple[bool, list[KeptStates], int]:
        """Whether to stop, what is kept of these micro-batches, and what all ranks lack of theirs (a collective)."""
        if not (self.states and micro):
            return any_rank(stop), [], 0
        kept, fault = [], None
        try:
            kept = self.states.read(micro)
        except DataError as error:
            fault = error
        totals = agree_on_data(replace(self.part, micro=micro, kept=kept), fault, self.world, stop)
        return totals.stopping > 0, kept, totals.unread


def make_validation(
    config: Config, world: World, tokenizers: Tokenizers, corpus: Corpus, packing: Packing | None = None
) -> Validation | None:
    """Read and tokenize the held-out samples (a collective); none where the run has no validation.

    Args:
        corpus: the run's training data.
        packing: how the rows of a micro-batch are packed.

    Raises:
        DataError: a sample cannot be read, more than `data.max_bad_samples` are bad, or `train.validate_every` asks for
            validation and no sample is held out.
    """
    every = validates_every(config)
    if not every:
        return None
    part = on_all(lambda: held_out(config, world, tokenizers, corpus, packing), world)
    if part is None:
        found = f"no sample is held out (data.validation_percent {config.data.validation_percent} of {corpus.samples})"
        if config.train.validate_every:
            raise DataError(f"{found}; train.validate_every expects some; hold out more, or set it to 0.")
        _log.info("no validation: %s.", found)
        return None
    totals = agree_on_data(part, None, world)
    left_out = allow_bad_samples(part, totals, dict.fromkeys(KINDS, 0), config.data.max_bad_samples, world)
    return Validation(part, totals, part.consumed - sum(left_out.values()), every, config.train.steps, world)
