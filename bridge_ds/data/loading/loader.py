"""The training data of one rank, one item per optimizer step.

A step's samples are a pure function of (seed, step), so a loader has no state: workers get step numbers, and a run that
continues after step k asks for the steps from k + 1 on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch
from torch.utils.data import DataLoader

from bridge_ds.config.schema import Config
from bridge_ds.config.zero import accumulation
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.collate import PackedBatch, unwrap
from bridge_ds.data.loading.corpus import Corpus, open_corpus
from bridge_ds.data.loading.steps import StepDataset
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.errors import BridgeError, LaunchError
from bridge_ds.world import World

__all__ = ["StepLoader", "held_out", "make_loader"]

_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2}
# Slurm signals every process of a job step. Workers must survive these, for the main process still finishes its step
# and saves; they end when it asks them to, or when it is gone.


class StepLoader:
    """Iterates over the remaining steps of a run; every `iter()` begins at the same step with workers of its own.

    Workers start, and begin to prefetch, at `iter()`: call it before slow work that may overlap, such as loading
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

    def first_texts(self, count: int) -> tuple[list[str], list[object]]:
        """See :meth:`StepDataset.first_texts`; read in this process."""
        return self._dataset.first_texts(count)

    def first_rows(self, count: int) -> Batch:
        """See :meth:`StepDataset.first_rows`; made in this process."""
        return self._dataset.first_rows(count)

    def __iter__(self) -> Generator[StepBatches, None, None]:
        # Set before the fork: a tokenizer that has run in parallel here would otherwise warn in each worker.
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
            # The loader draws a seed: the global state must not depend on the step at which a run was resumed.
            generator=torch.Generator(),
        )
        # Workers start with the signals blocked, so that none arrives before they could block them themselves.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        on_child = signal.getsignal(signal.SIGCHLD)
        try:
            # Not a generator itself: workers start now, not at the first next().
            return _unwrap_all(iter(items))
        except OSError as error:  # of fork, or of the pipes to a worker
            raise LaunchError(
                f"the {self._workers} data workers of this rank cannot be started ({error.strerror or error}); lower "
                "data.workers, or ask for more memory, processes or open files."
            ) from None
        finally:
            # torch's handler raises wherever the main process is when a worker dies, also inside a collective for which
            # the other ranks wait; without it the error comes with the next batch, where all ranks agree on it.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, on_child if on_child is not None else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make_loader(
    config: Config,
    world: World,
    tokenizers: Tokenizers,
    start_step: int = 0,
    *,
    corpus: Corpus | None = None,
    pin_memory: bool = False,
    packing: Packing | None = None,
) -> StepLoader:
    """The loader of the steps start_step + 1 .. train.steps of this rank.

    Args:
        config: the run.
        world: which rank of how many.
        tokenizers: from `load_tokenizers`.
        start_step: optimizer steps already done: samples consumed // train.global_batch.
        corpus: the data; by default opened as `config.data` says.
        pin_memory: whether to hand out page-locked tensors (needs an accelerator).
        packing: how the rows of a micro-batch are packed; None = they are not.

    Raises:
        LaunchError: the batch sizes do not fit the world.
        ConfigError: data.source_language, or what an index says instead, is none of the encoder's languages.
        DataError: the shards are missing or damaged, or data.mix_words has no word of them; while iterating, also a
            sample that cannot be used.
    """
    accumulation(config, world.size)
    corpus = corpus or open_corpus(config.data, config.run.seed, world)
    _check_languages(config, tokenizers, corpus)
    dataset = StepDataset(config, world, tokenizers, corpus, start_step + 1, packing)
    dataset.check_words()
    steps = range(start_step + 1, config.train.steps + 1)
    return StepLoader(dataset, steps, workers=config.data.workers, prefetch=config.data.prefetch, pin_memory=pin_memory)


def _check_languages(config: Config, tokenizers: Tokenizers, corpus: Corpus) -> None:
    if tokenizers.languages is None:
        return
    tokenizers.languages.check("data.source_language", config.data.source_language)
    if not config.data.source_language:
        for part in corpus.sets:
            for language in sorted({shard.language for shard in part.shards}):
                tokenizers.languages.check(
                    f"the index of {part.location} (data.source_language overrides it)", language
                )


def held_out(
    config: Config, world: World, tokenizers: Tokenizers, corpus: Corpus, packing: Packing | None = None
) -> StepBatches | None:
    """This rank's part of the samples for validation, whatever the run's seed; None if none is held out.

    Args:
        config: the run; `train.validation_samples` limits their number.
        world: which rank of how many.
        tokenizers: from `load_tokenizers`.
        corpus: the training data.
        packing: as of :func:`make_loader`.

    Raises:
        DataError: a sample cannot be read or is not what was indexed.
    """
    found = corpus.held_out()
    if found is None:
        return None
    # Where prefix_lm splits a text depends on the seed, and validation losses of runs are to be compared. The LLM reads
    # the text as it does in scoring.
    data = replace(config.data, replay=0.0, augment_share=1.0, augment_cipher=0.0)
    config = replace(config, run=replace(config.run, seed=0), data=data)
    return StepDataset(config, world, tokenizers, found, 1, packing).once(config.train.validation_samples)


def _unwrap_all(items: Iterator[PackedBatch | BridgeError]) -> Generator[StepBatches, None, None]:
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            if "DataLoader worker" not in reason:
                raise
            raise LaunchError(
                f"a data worker process died ({reason.rstrip('.')}); most likely the system killed it because "
                "memory or shared memory ran out: lower data.workers or data.prefetch, or ask for more."
            ) from None
        if isinstance(item, BridgeError):
            raise item
        yield unwrap(item)


def _context() -> str:
    # A forked worker has torch and the tokenizers already; a spawned one would import them again, which takes seconds.
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"


def _start_worker(_: int) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    threading.Thread(target=_exit_when_parent_asks, args=(os.getppid(),), daemon=True).start()
    torch.set_num_threads(1)


def _exit_when_parent_asks(parent: int) -> None:
    # multiprocessing ends its daemons with SIGTERM and then waits for them forever: a worker that ignored it would hang
    # every run that stops early. So a SIGTERM from the parent ends the worker.
    # macOS has no sigwaitinfo; a Mac runs without Slurm, so there any SIGTERM may end the worker.
    while hasattr(signal, "sigwaitinfo"):
        if signal.sigwaitinfo({signal.SIGTERM}).si_pid == parent:
            os._exit(0)
    signal.sigwait({signal.SIGTERM})
    os._exit(0)
