"""One optimizer step -> this rank's micro-batches of it: read, tokenize, collate. Pure in the step number."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import numpy as np
from torch.utils.data import Dataset

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.adapting import adapting_batch
from bridge_ds.data.loading.batch import Batch, StepBatches
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.collate import PackedBatch, collate, wrap
from bridge_ds.data.loading.corpus import Corpus, CorpusRows
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.plan import StepPlan, TokenCost
from bridge_ds.data.loading.texts import texts_of
from bridge_ds.data.loading.tokenize import Tokenizers, language_of, tokenize_samples
from bridge_ds.data.sampling.order import batch_positions, ids_hash
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.errors import BridgeError, DataError, LaunchError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.world import World

__all__ = ["StepDataset"]

# Samples from which tokens per character are estimated, for data.tokens_per_micro_batch.
_RATIO_SAMPLES = 64
# And those in which a word of the dictionary must be, for data.mix_words.
_WORD_SAMPLES = 512


class StepDataset(Dataset[PackedBatch | BridgeError]):
    """Maps an optimizer step (from 1) to this rank's micro-batches of it.

    A user error is returned, not raised: torch would wrap one that leaves a worker in the text of a traceback.
    """

    def __init__(
        self,
        config: Config,
        world: World,
        tokenizers: Tokenizers,
        corpus: Corpus,
        first_step: int,
        packing: Packing | None = None,
    ) -> None:
        """Args:
        config: sections `data`, `train`, `mapping` and `run.seed` are used.
        world: whose rows to make.
        tokenizers: both tokenizers.
        corpus: the data.
        first_step: the step that carries a readable example.
        packing: how rows are packed; None = they are not.

        Raises:
            DataError: a token budget is set, and the samples to estimate tokens from cannot be read.
        """
        self._config = config
        self._world = world
        self._tokenizers = tokenizers
        self._corpus = corpus
        self._first_step = first_step
        self._packing = packing
        self._objective = OBJECTIVES[config.data.objective]
        self._taught_share = config.data.taught_share(tokenizers.has_encoder)
        self._mixer = corpus.mixer if tokenizers.has_encoder and not tokenizers.adapting else None
        cost = self._token_cost() if config.data.tokens_per_micro_batch else None
        self._plan = StepPlan(config, corpus, cost)

    def __len__(self) -> int:
        return self._config.train.steps

    def __getitem__(self, step: int) -> PackedBatch | BridgeError:
        try:
            return wrap(self.make(step))
        except BridgeError as error:
            return error
        except OSError as error:
            return DataError(
                f"{error.filename or 'a file of the data set'} cannot be used ({error.strerror or error}); check that "
                "it still exists, and that this process may read it."
            )
        except MemoryError:
            return LaunchError(
                f"the memory ran out while the batches of step {step} were made; ask for more, or lower data.workers, "
                "data.prefetch or data.max_characters."
            )

    def make(self, step: int) -> StepBatches:
        """This rank's part of a step. A bad sample becomes an empty row: one token of padding and no target.

        Raises:
            DataError: a sample cannot be read or is not what was indexed.
        """
        rows = self._plan.rows(step)
        return self._made(step, rows, self._plan.bucket(rows, self._world))

    def check_words(self) -> None:
        """Look for a word of data.mix_words in the first samples of the run, which are read until one is found.

        Raises:
            DataError: none of them has one.
        """
        if self._mixer is None:
            return
        rows = self._corpus.rows(np.arange(min(_WORD_SAMPLES, self._corpus.samples)))
        for row in range(len(rows.numbers)):
            with contextlib.suppress(BadSample):
                sample = self._corpus.read(rows, row)
                if self._mixer.knows(sample[self._objective.read(sample)]):
                    return
        data = self._config.data
        raise DataError(
            f"no word of data.mix_words {data.mix_words} is in the first {len(rows.numbers)} sources of the run; "
            "expected English words in its first column that the texts have; compare it with the shards."
        )

    def once(self, limit: int) -> StepBatches:
        """This rank's part of :meth:`Corpus.once`, as a step of number 0 that consumes them all. Every rank has as many
        micro-batches; where one runs out of samples, its last ones have one empty row.

        Raises:
            DataError: as :meth:`make`.
        """
        rows = self._corpus.once(limit)
        return self._made(0, rows, self._plan.bucket(rows, self._world, uneven=True))

    def _made(self, step: int, rows: CorpusRows, groups: Sequence[np.ndarray]) -> StepBatches:
        mine = np.concatenate(groups)
        found = self.tokenize(rows, mine)
        truncated = {"source": 0, "prompt": 0, "target": 0}
        bad: dict[str, int] = {}
        samples: list[TokenizedSample] = []
        example, bad_reason = "", ""
        for which, sample in zip(mine.tolist(), found, strict=True):
            if isinstance(sample, BadSample):
                bad[sample.kind] = bad.get(sample.kind, 0) + 1
                bad_reason = bad_reason or str(sample)
                sample = self._empty()
            elif step == self._first_step and not example:
                example = self._show(sample, self._corpus.describe(rows, which))
            for name in sample.truncated:
                truncated[name] += 1
            samples.append(sample)
        ends = np.cumsum([len(group) for group in groups]).tolist()
        return StepBatches(
            step=step,
            micro=[
                self._collate(samples[start:end] or [self._empty()])
                for start, end in zip([0, *ends], ends, strict=False)
            ],
            ids_hash=ids_hash(rows.numbers),
            consumed=step * self._config.train.global_batch or len(rows.numbers),
            truncated=truncated,
            bad=bad,
            bad_reason=bad_reason,
            example=example,
        )

    def _empty(self) -> TokenizedSample:
        of = self._tokenizers
        if of.has_encoder:
            lesson = [of.pad_id] if self._taught_share == 1 else None
            # An LLM that gets no soft prompt would get a row without any position.
            prompt = [] if self._config.injection.prompt_in_input else [of.pad_id]
            return TokenizedSample([of.encoder_pad_id], prompt, [], (), lesson=lesson)
        return TokenizedSample([], [of.pad_id], [], ())

    def first_rows(self, count: int) -> Batch:
        """The first `count` good samples of the run's first step, the same on every rank and at every world size.

        Raises:
            DataError: a sample cannot be read or is not what was indexed, or none of the step is good.
        """
        rows = self._corpus.rows(batch_positions(1, self._config.train.global_batch)[:count])
        found = self.tokenize(rows, np.arange(len(rows.numbers)))
        good = [sample for sample in found if not isinstance(sample, BadSample)]
        if not good:
            raise next(sample for sample in found if isinstance(sample, BadSample))
        return self._collate(good)

    def first_texts(self, count: int) -> tuple[list[str], list[object]]:
        """What the encoder reads of the first `count` samples of the run (all, where there are fewer), no word
        replaced, and the language of each; the same on every rank and at every world size. Bad ones are left out.

        Raises:
            DataError: a sample cannot be read or is not what was indexed.
        """
        data, corpus = self._config.data, self._corpus
        rows = corpus.rows(np.arange(min(count, corpus.samples)))
        texts: list[str] = []
        languages: list[object] = []
        for row, (epoch, number) in enumerate(zip(rows.epochs.tolist(), rows.numbers.tolist(), strict=True)):
            with contextlib.suppress(BadSample):
                sample = corpus.read(rows, row)
                texts.append(texts_of(sample, data.objective, self._config.run.seed, epoch, number).source)
                languages.append(language_of(sample, data))
        return texts, languages

    def _collate(self, samples: Sequence[TokenizedSample]) -> Batch:
        of = self._tokenizers
        if of.adapting:
            return adapting_batch(samples, of.encoder_pad_id, of.adapting)
        fixed = self._config.mapping.fixed_length
        opening = of.bos_id is not None
        in_input = self._config.injection.prompt_in_input
        return collate(
            samples, of.encoder_pad_id, of.pad_id, opening, fixed, self._packing, in_input, self._taught_share
        )

    def tokenize(self, rows: CorpusRows, which: np.ndarray) -> list[TokenizedSample | BadSample]:
        """Some of the rows, or why they cannot be used. Raises DataError as :meth:`make`."""
        found: dict[int, TokenizedSample | BadSample] = {}
        good, contents = [], []
        on_disk = np.lexsort((rows.shard_rows[which], rows.shards[which], rows.sets[which]))
        for row in which[on_disk].tolist():
            try:
                contents.append(self._corpus.read(rows, row))
                good.append(row)
            except BadSample as error:
                found[row] = error
        tokenized = tokenize_samples(
            contents,
            self._tokenizers,
            self._config.data,
            seed=self._config.run.seed,
            epochs=rows.epochs[good].tolist(),
            numbers=rows.numbers[good].tolist(),
            mixer=self._mixer,
        )
        for row, sample in zip(good, tokenized, strict=True):
            if isinstance(sample, BadSample):
                sample = BadSample(sample.kind, f"{self._corpus.describe(rows, row)} {sample}.")
            found[row] = sample
        return [found[row] for row in which.tolist()]

    def _token_cost(self) -> TokenCost:
        rows = self._corpus.rows(np.arange(_RATIO_SAMPLES, dtype=np.int64))
        characters, tokens = [1, 1], [1, 1]
        for row in range(_RATIO_SAMPLES):
            try:
                sample = self._corpus.read(rows, row)
            except BadSample:
                continue
            text = sample[self._objective.read(sample)]
            kind = self._objective.of(sample)
            # Elsewhere `target` is some column that nothing has checked.
            target = (sample.get("target") if "target" in (*kind.required, *kind.optional) else None) or text
            counts = len(self._tokenizers.source_ids(text)) - 1, len(self._tokenizers.targets([target])[0])
            for side, (made, count) in enumerate(zip((text, target), counts, strict=True)):
                characters[side] += len(made)
                tokens[side] += count
        around = sum(map(len, self._tokenizers.frame_ids)) if self._tokenizers.frame else 0
        read, written = (count / length for count, length in zip(tokens, characters, strict=True))
        return TokenCost(read, written, around) if self._tokenizers.has_encoder else TokenCost(0.0, read, around)

    def _show(self, sample: TokenizedSample, location: str) -> str:
        parts = [
            ("head", self._tokenizers.llm, [] if self._tokenizers.adapting else list(sample.head)),
            ("source", self._tokenizers.encoder, sample.source),
            ("prompt", self._tokenizers.llm, sample.prompt),
            ("target", self._tokenizers.llm, sample.target),
            ("text of the LLM that teaches", self._tokenizers.llm, sample.lesson or []),
        ]
        lines = [f"{name} ({len(ids)} tokens): {tokenizer.decode(ids)}" for name, tokenizer, ids in parts if ids]
        return "\n".join([location, *lines])
