"""The training data of one rank, one item per optimizer step.

A step's samples are a pure function of (seed, step), so a loader has no state: workers are handed step numbers, and a
run that continues after step k asks for the steps from k + 1 on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from bridge_ds.config.schema import Config
from bridge_ds.config.zero import accumulation
from bridge_ds.data.batch import Batch, StepBatches
from bridge_ds.data.collate import Parcel, collate, unwrap, wrap
from bridge_ds.data.index import ShardIndex, load_index
from bridge_ds.data.order import batch_positions, deal, ids_hash, permute
from bridge_ds.data.reader import SampleReader
from bridge_ds.data.tokenize import TokenizedSample, Tokenizers, tokenize_sample
from bridge_ds.errors import BridgeError, DataError
from bridge_ds.world import World

__all__ = ["StepDataset", "StepLoader", "make_loader"]

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
# Slurm signals every process of a job step. Workers must outlive these, for the main process still finishes its step
# and saves; they end when it says so, or when it is gone.


class StepDataset(Dataset[Parcel | BridgeError]):
    """Maps an optimizer step (from 1) to this rank's micro-batches of it.

    A user error is returned, not raised: torch would wrap it in the text of a traceback on its way out of a worker.
    """

    def __init__(
        self, config: Config, world: World, tokenizers: Tokenizers, index: ShardIndex, first_step: int
    ) -> None:
        """Args:
        config: sections `data`, `train` and `run.seed` are used.
        world: whose rows to make.
        tokenizers: both tokenizers.
        index: the shards.
        first_step: the step that carries a readable example.
        """
        self._config = config
        self._world = world
        self._tokenizers = tokenizers
        self._index = index
        self._first_step = first_step
        self._reader = SampleReader(index, config.data.objective)

    def __len__(self) -> int:
        return self._config.train.steps

    def __getitem__(self, step: int) -> Parcel | BridgeError:
        try:
            return wrap(self.make(step))
        except BridgeError as error:
            return error

    def make(self, step: int) -> StepBatches:
        """This rank's part of a step.

        Raises:
            DataError: a sample cannot be read or tokenised.
        """
        train, n, seed = self._config.train, self._index.samples, self._config.run.seed
        positions = batch_positions(step, train.global_batch)
        epochs = positions // n
        numbers = permute(positions % n, n, seed, epochs)
        rows_AB = deal(self._index.characters[numbers], train.micro_batch, self._world.size)[self._world.rank]
        cut = {"source": 0, "prompt": 0, "target": 0}
        micro: list[Batch] = []
        example = ""
        for rows_B in rows_AB:
            samples = [self._tokenize(int(numbers[row]), int(epochs[row])) for row in rows_B]
            for name in (name for sample in samples for name in sample.cut):
                cut[name] += 1
            if step == self._first_step and not example:
                example = self._show(samples[0], int(numbers[rows_B[0]]))
            micro.append(collate(samples, self._tokenizers.encoder_pad_id, self._tokenizers.pad_id))
        return StepBatches(
            step=step,
            micro=micro,
            ids_hash=ids_hash(numbers),
            consumed=step * train.global_batch,
            cut=cut,
            example=example,
        )

    def first_rows(self, count: int) -> Batch:
        """The first `count` samples of the run's first step, the same on every rank and at every world size.

        Raises:
            DataError: a sample cannot be read or tokenised.
        """
        train, n, seed = self._config.train, self._index.samples, self._config.run.seed
        positions = batch_positions(1, train.global_batch)[:count]
        numbers = permute(positions % n, n, seed, positions // n)
        rows = [self._tokenize(int(number), int(place // n)) for number, place in zip(numbers, positions, strict=True)]
        return collate(rows, self._tokenizers.encoder_pad_id, self._tokenizers.pad_id)

    def _tokenize(self, number: int, epoch: int) -> TokenizedSample:
        sample = self._reader.read(number)
        try:
            return tokenize_sample(
                sample,
                self._tokenizers,
                self._config.data,
                seed=self._config.run.seed,
                epoch=epoch,
                number=number,
            )
        except DataError as error:
            raise DataError(f"{self._index.describe(number)} {error}") from None

    def _show(self, sample: TokenizedSample, number: int) -> str:
        parts = [
            ("source", self._tokenizers.encoder, sample.source),
            ("prompt", self._tokenizers.llm, sample.prompt),
        ]
        parts.append(("target", self._tokenizers.llm, sample.target))
        lines = [f"{name} ({len(ids)} tokens): {tokenizer.decode(ids)}" for name, tokenizer, ids in parts if ids]
        return "\n".join([self._index.describe(number), *lines])


class StepLoader:
    """Iterates over the remaining steps of a run; every `iter()` begins at the same step with workers of its own.

    Workers start, and begin to prefetch, at `iter()`: call it before slow work that it may run beside, such as loading
    models. They end with the iterator.
    """

    def __init__(self, dataset: StepDataset, steps: range, *, workers: int, prefetch: int, pin_memory: bool) -> None:
        """Args:
        dataset: makes the items.
        steps: step numbers, in order.
        workers: processes; 0 makes items in this process.
        prefetch: steps that each worker prepares ahead.
        pin_memory: whether to hand out page-locked tensors.
        """
        self._dataset = dataset
        self._steps = steps
        self._workers = workers
        self._prefetch = prefetch
        self._pin_memory = pin_memory

    def __len__(self) -> int:
        return len(self._steps)

    def first_rows(self, count: int) -> Batch:
        """See :meth:`StepDataset.first_rows`; made in this process."""
        return self._dataset.first_rows(count)

    def __iter__(self) -> Generator[StepBatches, None, None]:
        # Set before the fork: a tokenizer that has run in parallel here would else warn in each worker.
        if self._workers:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        items = DataLoader(
            self._dataset,
            batch_size=None,
            sampler=self._steps,
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            pin_memory=self._pin_memory,
            worker_init_fn=_start_worker if self._workers else None,
            multiprocessing_context=_context() if self._workers else None,
            # One of its own, for the loader draws a seed: the global state must not depend on where a run was resumed.
            generator=torch.Generator(),
        )
        # Workers are born with the signals blocked; one that comes before they could block them is not lost on us.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            # Not a generator itself: workers are to start now, not at the first next().
            return _unwrap_all(iter(items))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_loader(
    config: Config,
    world: World,
    tokenizers: Tokenizers,
    start_step: int = 0,
    *,
    index: ShardIndex | None = None,
    pin_memory: bool = False,
) -> StepLoader:
    """The loader of the steps start_step + 1 .. train.steps of this rank.

    Args:
        config: the run.
        world: which rank of how many.
        tokenizers: from `load_tokenizers`.
        start_step: optimizer steps already done: samples consumed // train.global_batch.
        index: the shards; without it they are looked for at `data.shards`.
        pin_memory: whether to hand out page-locked tensors (needs an accelerator).

    Raises:
        LaunchError: the batch sizes do not fit the world.
        DataError: the shards are missing or damaged; while iterating, also a sample that cannot be used.
    """
    accumulation(config, world.size)
    dataset = StepDataset(config, world, tokenizers, index or load_index(config.data.shards), start_step + 1)
    steps = range(start_step + 1, config.train.steps + 1)
    return StepLoader(dataset, steps, workers=config.data.workers, prefetch=config.data.prefetch, pin_memory=pin_memory)


def _unwrap_all(items: Iterator[Parcel | BridgeError]) -> Generator[StepBatches, None, None]:
    for item in items:
        if isinstance(item, BridgeError):
            raise item
        yield unwrap(item)


def _context() -> str:
    # A forked worker has torch and the tokenizers already; a spawned one would import them again, for seconds.
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _start_worker(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_exit_when_parent_asks, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)


def _exit_when_parent_asks(parent: int) -> None:
    # multiprocessing ends a process with SIGTERM to its daemons, then waits for them for ever: a worker that ignored it
    # would hang every run that stops early. So that one SIGTERM counts, and it is known by its sender.
    # macOS has no sigwaitinfo; a Mac runs without Slurm, so there any SIGTERM may end the worker.
    while hasattr(signal, "sigwaitinfo"):
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)
