"""Which samples an optimizer step uses, and which rank gets which of them. No sample is read here.

Letters: G rows of a global batch, W ranks, A micro-batches per rank, K global batches of a window.
"""

from __future__ import annotations

import numpy as np

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.corpus import Corpus, CorpusRows
from bridge_ds.data.sampling.bucket import bucket, bucket_by_tokens, bucket_once, spread
from bridge_ds.data.sampling.order import batch_positions

__all__ = ["StepPlan", "order_of"]


def order_of(config: Config) -> str:
    """The settings, other than seed and global batch, that decide which sample a position stands for, in words."""
    data = config.data
    order = f"shuffle_shards {data.shuffle_shards}, validation_percent {data.validation_percent}"
    return order + (f", length_window {data.length_window} x {data.length_chunk}" if data.length_window > 1 else "")


class StepPlan:
    """Steps of a run -> samples. A pure function of (config, corpus, step); the cached window only saves time."""

    def __init__(self, config: Config, corpus: Corpus) -> None:
        """Args:
        config: `data`, `train` and `run.seed` are used.
        corpus: the data.
        """
        self._config = config
        self._corpus = corpus
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

    def bucket(
        self, rows: CorpusRows, world_size: int, tokens_per_character: tuple[float, ...] | None = None
    ) -> list[list[np.ndarray]]:
        """Bucket the rows of a step by length into ranks and micro-batches.

        Args:
            rows: of a step.
            world_size: W.
            tokens_per_character: of the encoder's and of the LLM's tokenizer, and a chat template's tokens; needed
                where data.tokens_per_micro_batch is set.

        Returns:
            [W][A] arrays of indices into `rows`; A is the same on every rank, each row comes once.

        Raises:
            DataError: a table is missing or damaged.
        """
        lengths = self._corpus.lengths(rows)
        budget = self._config.data.tokens_per_micro_batch
        if not budget:
            return [list(part) for part in bucket(lengths.sum(axis=1), self._config.train.micro_batch, world_size)]
        assert tokens_per_character is not None
        return bucket_by_tokens(self._tokens(lengths, *tokens_per_character), budget, world_size)

    def bucket_once(
        self, rows: CorpusRows, world_size: int, tokens_per_character: tuple[float, ...] | None = None
    ) -> list[list[np.ndarray]]:
        """As :meth:`bucket`, any number of rows; some of a rank's last micro-batches may be empty."""
        costs, budget = self._corpus.lengths(rows), self._config.data.tokens_per_micro_batch
        if not budget:
            return bucket_once(costs.sum(axis=1), self._config.train.micro_batch, 0, world_size)
        assert tokens_per_character is not None
        return bucket_once(self._tokens(costs, *tokens_per_character), 0, budget, world_size)

    def _tokens(self, lengths: np.ndarray, encoder: float, llm: float, around: float = 0) -> np.ndarray:
        # Estimated tokens of each row after truncation, int64 [G].
        data = self._config.data
        source, prompt, target = lengths.T
        if data.objective == "prefix_lm":
            target = source  # either part of the text may be the longer one
        total = np.minimum(np.ceil(source * encoder) + 1, data.max_source_tokens) + around
        total += np.minimum(np.ceil(target * llm) + 1, data.max_target_tokens)
        if data.augment_prompt:
            total += np.minimum(np.ceil(np.where(prompt > 0, prompt, source) * llm), data.max_prompt_tokens)
        return total.astype(np.int64)
