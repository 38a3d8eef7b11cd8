"""Which samples an optimizer step uses, and which rank gets which of them. No sample is read here.

Dimensions: G rows of a global batch, W ranks, A micro-batches per rank, K global batches of a window.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.corpus import Corpus, CorpusRows
from bridge_ds.data.sampling.bucket import bucket, bucket_by_tokens, bucket_once, spread
from bridge_ds.data.sampling.order import batch_positions
from bridge_ds.world import World

__all__ = ["StepPlan", "TokenCost", "order_of"]


def order_of(config: Config) -> dict[str, int | str]:
    """The settings that decide which sample is at which step (those of the kind ORDER), for state.json."""
    data = config.data
    order = f"shuffle_shards {data.shuffle_shards}, validation_percent {data.validation_percent}"
    order += f", length_window {data.length_window} x {data.length_chunk}" if data.length_window > 1 else ""
    return {"seed": config.run.seed, "global_batch": config.train.global_batch, "order": order}


class TokenCost(NamedTuple):
    """From characters to tokens, to estimate what a sample costs where data.tokens_per_micro_batch is set."""

    encoder: float = 1.0
    """Tokens per character of a source; 0 = the LLM reads it, as a prompt."""
    llm: float = 1.0
    """Tokens per character of a prompt or target."""
    around: int = 0
    """Tokens of a chat template."""


class StepPlan:
    """Steps of a run -> samples. A pure function of (config, corpus, step); the cached window only saves time."""

    def __init__(self, config: Config, corpus: Corpus, cost: TokenCost | None = None) -> None:
        """Args:
        config: `data`, `train` and `run.seed` are used.
        corpus: the data.
        cost: used where data.tokens_per_micro_batch is set.
        """
        self._config, self._corpus, self._cost = config, corpus, cost or TokenCost()
        self._window: tuple[int, CorpusRows, np.ndarray] | None = None

    def rows(self, step: int) -> CorpusRows:
        """The G samples of a step (from 1) over all ranks, in order; independent of ranks and micro-batches.

        Raises:
            DataError: a table is missing or damaged.
        """
        size, steps = self._config.train.global_batch, self._config.data.length_window
        if steps == 1:
            return self._corpus.rows(batch_positions(step, size))
        window, index = divmod(step - 1, steps)
        if self._window is None or self._window[0] != window:
            rows = self._corpus.rows(batch_positions(window + 1, size * steps))
            lengths = self._corpus.lengths(rows).sum(axis=1)
            chunk = self._config.data.length_chunk
            self._window = window, rows, spread(lengths, steps, chunk, self._config.run.seed, window)
        _, rows, bucketed_KG = self._window
        return rows.at(bucketed_KG[index])

    def bucket(self, rows: CorpusRows, world: World, uneven: bool = False) -> list[np.ndarray]:
        """Bucket the rows of a step by length into ranks and micro-batches.

        Args:
            rows: of a step.
            world: W ranks, and the one whose part is returned.
            uneven: the rows need not fill the micro-batches; some of a rank's last ones may be empty.

        Returns:
            A arrays of indices into `rows`; A is the same on every rank, each row is on one rank, once.

        Raises:
            DataError: a table is missing or damaged.
        """
        lengths, size = self._corpus.lengths(rows), self._config.train.micro_batch
        budget = self._config.data.tokens_per_micro_batch
        costs = self._tokens(lengths) if budget else lengths.sum(axis=1)
        if uneven:
            return bucket_once(costs, size, budget, world.size)[world.rank]
        if budget:
            return bucket_by_tokens(costs, budget, world.size)[world.rank]
        return list(bucket(costs, size, world.size)[world.rank])

    def _tokens(self, lengths: np.ndarray) -> np.ndarray:
        """Estimated tokens of each row after truncation, int64 [G]."""
        data, cost = self._config.data, self._cost
        source, prompt, target = lengths.T
        if data.objective == "prefix_lm":
            target = source  # either part of the text may be the longer one
        total = np.minimum(np.ceil(source * cost.encoder) + 1, data.max_source_tokens) + cost.around
        total += np.minimum(np.ceil(target * cost.llm) + 1, data.max_target_tokens)
        if data.augment_prompt or not cost.encoder:
            total += np.minimum(np.ceil(np.where(prompt > 0, prompt, source) * cost.llm), data.max_prompt_tokens)
        return total.astype(np.int64)
