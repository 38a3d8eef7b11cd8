"""`data.states_cache` in a run: found at the start, read for each step, and no encoder loaded where none is needed."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from bridge_ds.config.effect import why_no_states
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.corpus import Corpus
from bridge_ds.data.loading.loader import StepLoader
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.encoder.base import Encoder, States
from bridge_ds.engine.distributed import any_rank, on_all, on_main
from bridge_ds.engine.step import encoded
from bridge_ds.engine.validate import Validation
from bridge_ds.states.cache import StatesCache, encoder_key, is_complete, open_cache, texts_key
from bridge_ds.world import World

__all__ = ["RunStates"]

_log = logging.getLogger(__name__)


class RunStates:
    """What a run keeps of its encoder's states; nothing where it does not ask for it."""

    cache: StatesCache | None = None
    """None = nothing is kept."""
    complete = False
    """All texts are encoded and nothing else needs the encoder, on any rank: it is not loaded."""

    def __init__(
        self, config: Config, tokenizers: Tokenizers, corpus: Corpus, world: World, device: torch.device
    ) -> None:
        """A collective.

        Args:
            config: the run.
            tokenizers: both.
            corpus: the training data.
            world: the ranks.
            device: of the run.

        Raises:
            ConfigError: a file of the encoder's weights cannot be read.
            LaunchError: the folder cannot be made.
        """
        self._config, self._world, self._samples, self._device = config, world, corpus.samples, device
        self._files = None
        if not config.data.states_cache or why_no_states(config):
            return
        key = on_main(lambda: encoder_key(config), world)
        texts = on_main(lambda: texts_key(config, tokenizers.encoder, corpus.identity), world)
        self._files = on_all(lambda: open_cache(config, key), world)
        lacking = bool(config.evaluation.tasks) or not is_complete(self._files.folder, texts)
        self.complete = not any_rank(lacking)

    def begin(self, encoder: Encoder, loader: StepLoader, validation: Validation | None) -> None:
        """Say how large it is, once the encoder's sizes are known (a collective).

        Args:
            encoder: of the run, loaded or not.
            loader: of the training data.
            validation: reads its states from now on, too.

        Raises:
            DataError: a sample cannot be read.
        """
        if self._files is None:
            return
        self.cache = cache = StatesCache(self._files, encoder, self._config)
        if validation:
            validation.states = cache
        _log.info(on_main(lambda: cache.measured(loader.first_rows, self._samples), self._world))
        if self.complete:
            _log.info("the encoder is not loaded: bridge-ds encode has written the states of all texts.")

    def attached(self, steps: Iterator[StepBatches]) -> Iterator[StepBatches]:
        """The steps, each with what is kept of its micro-batches at the time when it is asked for.

        Raises:
            DataError: something is missing, and the encoder is not loaded.
        """
        for batches in steps:
            if self.cache:
                batches.kept = self.cache.read(batches.micro)
            yield batches

    def of_rows(self, model: Any, rows: Batch) -> tuple[Batch, States | None]:
        """Samples of the run before its first step, the same on every rank (a collective).

        Args:
            model: the bridge, in its engine.
            rows: on the CPU.

        Returns:
            the batch on the run's device, and where the encoder is not loaded its states; else None, and nothing is
            kept of them: in a first epoch, each text is to be computed in its micro-batch, as without a cache.

        Raises:
            DataError: as :meth:`attached`.
        """
        batch, cache = rows.to(self._device), self.cache
        if cache is None or cache.runs_encoder:
            return batch, None
        kept = on_all(lambda: cache.read([rows]), self._world)
        return batch, encoded(model, [batch], kept)[0]
