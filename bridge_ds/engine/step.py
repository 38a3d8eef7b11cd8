"""One optimizer step: forward and backward over this rank's micro-batches, weighted by the GLOBAL target count."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.compat.torch import free_workspaces
from bridge_ds.config.schema import Config
from bridge_ds.config.zero import encoded_together
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.shards.samples import KINDS
from bridge_ds.encoder.base import Encoder, States
from bridge_ds.encoder.groups import joined
from bridge_ds.engine.distributed import everyones, peak_memory_gib, sum_counts
from bridge_ds.engine.hooks import StepRecord
from bridge_ds.engine.schedule import set_learning_rate
from bridge_ds.errors import BridgeError, DataError
from bridge_ds.frozen.load import DTYPES
from bridge_ds.states.cache import KeptStates
from bridge_ds.world import World

__all__ = ["StepTotals", "agree_on_data", "allow_bad_samples", "encoded", "read_together", "train_step"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTotals:
    """Counts over the global batch: all micro-batches of all ranks."""

    target_tokens: int
    """Tokens whose loss counts."""
    source_tokens: int
    """Real encoder tokens."""
    prompt_tokens: int
    """Real LLM tokens around the soft prompt."""
    positions: int
    """All of these tokens, and the padding in encoder and LLM."""
    bad: tuple[int, ...]
    """Bad samples left out, by kind in the order of :data:`bridge_ds.data.shards.samples.KINDS`."""
    stopping: int = 0
    """Ranks that were asked to save and stop."""
    unread: int = 0
    """Samples whose encoder states `data.states_cache` lacks; where it is not set, 0."""
    taught_tokens: int = 0
    """Target tokens at which the LLM alone teaches."""

    @property
    def read_tokens(self) -> int:
        """Encoder tokens; where the LLM alone is trained, which has none, the LLM's tokens of the same texts."""
        return self.source_tokens or self.prompt_tokens

    @property
    def padding_share(self) -> float:
        """Share of positions that hold padding, 0 to 1."""
        return 1 - (self.target_tokens + self.source_tokens + self.prompt_tokens) / max(1, self.positions)


def agree_on_data(
    batches: StepBatches | None, fault: BridgeError | None, world: World, stop: bool = False
) -> StepTotals:
    """Count the global batch; if any rank could not read its part, every rank fails with that rank's reason.

    Without it the others would wait in the next collective for a rank that is gone. The same reduction carries `stop`,
    this rank's request to save and stop, so that agreeing on it before every step costs nothing. It runs over the hosts
    (gloo), on numbers that they have: no device is synchronized (a collective).

    Raises:
        BridgeError: `fault` of this rank, or the first one of another.
    """
    micro = batches.micro if batches else []
    counts = [int(fault is not None)]
    counts += [sum(getattr(b, of) for b in micro) for of in ("target_tokens", "source_tokens", "prompt_tokens")]
    counts += [sum(b.positions for b in micro), int(stop)]
    counts.append(sum(each.missing for each in batches.kept) if batches else 0)
    counts.append(sum(b.taught_tokens for b in micro))
    counts += [batches.bad.get(kind, 0) if batches else 0 for kind in KINDS]
    faults, targets, sources, prompts, positions, stopping, unread, taught, *bad = sum_counts(counts)
    if not faults:
        return StepTotals(targets, sources, prompts, positions, tuple(bad), stopping, unread, taught)
    messages = everyones(str(fault) if fault else "", world)
    raise fault or DataError(next(filter(None, messages)))


def allow_bad_samples(
    batches: StepBatches, totals: StepTotals, before: dict[str, int], allowed: int, world: World
) -> dict[str, int]:
    """Add this step's bad samples to those before it; every rank fails once there are more than allowed.

    Args:
        batches: this rank's part of the step, which names the first bad sample it met.
        totals: of the step.
        before: bad samples of the run so far, by kind.
        allowed: `data.max_bad_samples`.

    Returns:
        Bad samples of the run with this step, by kind.

    Raises:
        DataError: more than allowed; the message gives shard, key and reason of one of them (a collective then).
    """
    after = {kind: before[kind] + new for kind, new in zip(KINDS, totals.bad, strict=True)}
    if not any(totals.bad):
        return after
    reason = next(filter(None, everyones(batches.bad_reason, world)))
    if sum(after.values()) <= allowed:
        part = f"step {batches.step}" if batches.step else "validation"
        _log.info("left out of %s: %s (%d of %d allowed)", part, reason, sum(after.values()), allowed)
        return after
    counted = ", ".join(f"{count} {kind.replace('_', ' ')}" for kind, count in after.items() if count)
    more = f" (bad samples so far: {counted}; data.max_bad_samples is {allowed})" if allowed else ""
    raise DataError(f"{reason.rstrip('.')}{more}.")


def train_step(
    engine: Any,
    batches: StepBatches,
    totals: StepTotals,
    *,
    lr: float,
    seed: int,
    world: World,
    device: torch.device,
    waited: float,
    together: int,
    mark: Callable[[str], None],
) -> StepRecord:
    """Run one step and return its record, the same on every rank.

    The loss of every micro-batch is a sum; it is divided by the target tokens of the whole global batch, so that
    neither micro-batch size, accumulation nor world size changes the gradient. DeepSpeed averages over ranks (hence
    `x world.size`) and is told not to divide by the accumulation steps.

    Args:
        totals: counts of the global batch.
        lr: learning rate of this step.
        seed: run seed; dropout is seeded by (seed, step, rank), so that a resumed step draws what it drew before.
        waited: seconds spent waiting for this step's data.
        together: micro-batches that a frozen encoder reads together (:func:`read_together`).
        mark: called with each phase (:attr:`bridge_ds.engine.heartbeat.Beat.phase`) as it begins.
    """
    began = time.perf_counter()
    set_learning_rate(engine.optimizer.param_groups, lr)
    torch.manual_seed(((seed * 1_000_003 + batches.step) * 65_537 + world.rank) % 2**63)
    targets, skipped_before = max(1, totals.target_tokens), engine.skipped_steps
    lost = torch.zeros(2, dtype=torch.float64, device=device)
    micro = [batch.to(device) for batch in batches.micro]
    states: list[States | None] = []
    for number, batch in enumerate(micro, start=1):
        # Set here and not counted by DeepSpeed: with a token budget the number of micro-batches differs by step.
        engine.set_gradient_accumulation_boundary(number == len(micro))
        mark("forward")
        now = slice(number - 1, number - 1 + together)
        states = states or encoded(engine.module, micro[now], batches.kept[now], totals.unread)
        found = engine(batch, states.pop(0)).reshape(-1)  # its states are freed once backward has read them
        mark("backward")
        engine.backward(found[0] * (world.size / targets), scale_wrt_gas=False)
        mark("update")
        engine.step()
        lost += torch.stack([found[0], found[-1]]).detach().double()

    mark("reduce")
    sums = _report(engine, lost, [peak_memory_gib(), waited], world, device)
    seconds = time.perf_counter() - began + waited
    by_rank, weights = sums[3 : 3 + 2 * world.size].view(-1, 2), sums[3 + 2 * world.size :] / world.size
    return {
        "step": batches.step,
        "loss": float(sums[1]) / targets,
        **({"kl": float(sums[2]) / max(1, totals.taught_tokens)} if micro[0].lesson else {}),
        "lr": lr,
        "grad_norm": float(sums[0]),
        "target_tokens": totals.target_tokens,
        "source_tokens": totals.read_tokens,
        "ids_hash": batches.ids_hash,
        "consumed": batches.consumed,
        "seconds": seconds,
        "target_tokens_per_s": totals.target_tokens / seconds,
        "source_tokens_per_s": totals.read_tokens / seconds,
        "padding_share": totals.padding_share,
        "data_wait_share": float(by_rank[:, 1].max()) / max(seconds, 1e-9),
        "peak_memory_gib": float(by_rank[:, 0].max()),
        "peak_memory_gib_by_rank": [round(gib, 4) for gib in by_rank[:, 0].tolist()],
        "layer_weights": [round(w, 6) for w in weights.tolist()],
        "layer_weights_entropy": float(-(weights * weights.clamp(min=1e-30).log()).sum()),
        "skipped_steps": engine.skipped_steps,
        "skipped": engine.skipped_steps > skipped_before,
        "truncated": batches.truncated,
    }


def _report(engine: Any, lost: torch.Tensor, own: list[float], world: World, device: torch.device) -> torch.Tensor:
    """What is known at the end of a step, over all ranks: one reduction, and the only device synchronization of a step.

    Args:
        lost: [2], this rank's loss and divergence, summed.
        own: two numbers of this rank, returned beside those of the others.

    Returns:
        float64 on the CPU: the gradient norm, `lost`, two numbers for each rank in order, the summed layer weights.
    """
    norm = engine.get_global_grad_norm()  # the same on every rank
    if not world.is_main:
        norm = 0.0
    beside = torch.zeros(world.size, 2, dtype=torch.float64)
    beside[world.rank] = torch.tensor(own, dtype=torch.float64)
    norm = torch.as_tensor(math.nan if norm is None else norm, dtype=torch.float64, device=device)
    weights = engine.module.fusion.weights().to(device, torch.float64)
    sums = torch.cat([norm.view(1), lost, beside.flatten().to(device), weights])
    torch.distributed.all_reduce(sums)
    return sums.cpu()


def read_together(encoder: Encoder, config: Config) -> int:
    """Most micro-batches that a frozen encoder encodes together, by the config's numbers: the same on every rank."""
    data, train = config.data, config.train
    # Dropout would depend on what is encoded together.
    if not train.encode_once or not encoder.blocks or (config.encoder.dropout and not config.encoder.trainable):
        return 1
    tokens = data.tokens_per_micro_batch or train.micro_batch * data.max_source_tokens
    size = DTYPES[config.model.dtype].itemsize
    return encoded_together(train.encode_once_gib, tokens, encoder.blocks, encoder.width, size)


def encoded(
    model: BridgeModel, micro: list[Batch], kept: Sequence[KeptStates] = (), unread: int = 0
) -> list[States | None]:
    """The encoder's states of each of these micro-batches; None where the model's forward computes them.

    Args:
        micro: on the device.
        kept: what `data.states_cache` has of each; empty where it is not set.
        unread: samples that any rank lacks: under ZeRO-3 the encoder's gathers are collectives, which every rank enters
            where one does.
    """
    encoder: Any = model.encoder
    if kept:
        return _completed(encoder, micro, kept, unread)
    if len(micro) == 1 or encoder.by_layer is None:  # where nothing is gathered, it would only cost memory
        return [None] * len(micro)
    inputs = [model.encoder_inputs(batch) for batch in micro]
    found = iter(encoder.encode_all([each for of in inputs for each in of]))
    states = [joined(batch, list(islice(found, len(of)))) for batch, of in zip(micro, inputs, strict=True)]
    free_workspaces()
    return list(states)


def _completed(encoder: Any, micro: list[Batch], kept: Sequence[KeptStates], unread: int) -> list[States | None]:
    inputs = [of.inputs(batch) for of, batch in zip(kept, micro, strict=True)]
    every = [each for of in inputs for each in of]
    if unread and not every and encoder.by_layer is not None:
        one = micro[0].source_ids[:1, :1]
        every = [(one, torch.ones_like(one), False)]
    found = iter(encoder.encode_all(every) if every else ())
    device = micro[0].source_ids.device
    states = [of.completed(list(islice(found, len(own))), device) for of, own in zip(kept, inputs, strict=True)]
    free_workspaces()
    return list(states)
