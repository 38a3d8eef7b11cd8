"""Write the encoder's states of all texts of a run ahead of time, so that training needs no encoder.

A frozen encoder gives the same states in every epoch, whatever is trained. With data.states_cache a run keeps them in
its first epoch and reads them later; this command writes them before. A run that finds all of them does not load the
encoder: its device has room for a larger LLM or batch. (Where evaluation.tasks is not empty it loads it, to score.)
Runs with other fusions, LLMs or seeds read the same folder: what counts is the encoder, model.dtype, whether the
fusion reads the last layer alone, and the texts.

examples:
  bridge-ds encode --recipe my.yaml --set data.states_cache=/local/states
      then: bridge-ds train --recipe my.yaml --set data.states_cache=/local/states
  bridge-ds encode --recipe my.yaml --set data.states_cache=/local/states --dry-run
      how large will it be?
  torchrun --nproc_per_node 8 -m bridge_ds encode --recipe my.yaml --set data.states_cache=/local/states
      the processes of a node share its texts; on several nodes, each node's disk gets all of them
      (also srun; into a folder that all nodes share, encode on one node)

The same command again goes on after a kill, and encodes only what is missing.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bridge_ds.cli import Parser, add_config_options, positive, say_repeated
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError
from bridge_ds.world import World

if TYPE_CHECKING:
    from bridge_ds.config.schema import Config
    from bridge_ds.data.loading.corpus import CorpusRows
    from bridge_ds.data.loading.ids import TokenizedSample
    from bridge_ds.data.loading.steps import StepDataset
    from bridge_ds.data.loading.tokenize import Tokenizers
    from bridge_ds.states.files import StatesFiles

__all__ = ["main"]

_log = logging.getLogger(__name__)
_WINDOW = 512
"""Samples that are sorted by length together."""


def main(argv: list[str] | None = None) -> int:
    """Encode what is missing; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.ds_config:
        options.overrides.append(f"run.ds_config={options.ds_config}")
    say_repeated(options.overrides)
    world = World.detect()
    from bridge_ds.config.effect import why_no_states
    from bridge_ds.config.load import load_config
    from bridge_ds.config.names import made_at_start, with_full_paths

    config = load_config(options.recipe, options.overrides)
    if not config.data.states_cache:
        raise ConfigError(
            "data.states_cache is empty; expected a folder on this node's disk; add --set data.states_cache=FOLDER."
        )
    if why := why_no_states(config):
        raise ConfigError(f"no encoder states can be kept, as {why}; expected a frozen encoder; train without this.")
    if made_at_start(config.data):
        raise ConfigError(
            f"data.shards is {config.data.shards}, which the first start of a run writes; expected shards that are "
            "there; name RUN/shards of a run that was started, or pack them with bridge-ds pack."
        )
    _encode(replace(config, model=with_full_paths(config.model)), world, options.tokens, options.dry_run)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="bridge-ds encode", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_options(parser)
    parser.add_argument(
        "--tokens", type=positive(int, most=10_000_000), default=8192,
        help="tokens of a forward pass, padding included; a longer text is read alone (default: 8192)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say how large it will be, and stop")
    return parser


def _encode(config: Config, world: World, tokens: int, dry_run: bool) -> None:
    from bridge_ds.data.loading.corpus import open_corpus
    from bridge_ds.data.loading.steps import StepDataset
    from bridge_ds.data.loading.tokenize import load_tokenizers
    from bridge_ds.encoder.absent import AbsentEncoder
    from bridge_ds.engine.setup import quiet_transformers
    from bridge_ds.states.cache import StatesCache, encoder_key, mark_complete, open_cache, texts_key

    quiet_transformers(world)
    tokenizers = load_tokenizers(config.model, data=config.data)
    corpus = open_corpus(config.data, config.run.seed, world)
    files = open_cache(config, encoder_key(config))
    data = StepDataset(config, World(), tokenizers, corpus, 1)
    sizes = StatesCache(files, AbsentEncoder(config.model), config)
    _log.info(sizes.measured(data.first_rows, corpus.samples))
    if dry_run:
        return
    parts = [(data, corpus.once())]
    held_out = corpus.held_out()
    if held_out:
        dataset = StepDataset(config, World(), tokenizers, held_out, 1)
        parts.append((dataset, held_out.once(config.train.validation_samples)))
    texts = texts_key(config, tokenizers.encoder, corpus.identity)
    found, made = _Encoding(config, files, tokenizers, world, tokens).run(parts)
    said = f"{made:,} texts were encoded, {found:,} were there"
    if files.full:
        _log.warning("note: %s; training computes the others, as %s.", said, files.full)
        return
    facts = {"encoder": config.model.encoder, "shards": config.data.shards, "texts": found + made}
    mark_complete(files.folder, texts, world.local_rank, world.local_size, facts)
    _log.info("done: %s, in %s", said, files.folder)


class _Encoding:
    """This process's part of the work."""

    def __init__(self, config: Config, files: StatesFiles, tokenizers: Tokenizers, world: World, tokens: int) -> None:
        from bridge_ds.config.names import resolve
        from bridge_ds.data.loading.tokenize import check_vocabulary
        from bridge_ds.encoder.frozen import load_encoder
        from bridge_ds.engine.cpu import settle_on_cpu
        from bridge_ds.engine.distributed import device_of
        from bridge_ds.engine.gpu import settle_numbers
        from bridge_ds.frozen.verify import verify_weights, weight_files
        from bridge_ds.states.cache import StatesCache

        # As in training, so that the states are the same.
        settle_numbers(config.run.deterministic, config.train.tf32 and config.model.dtype == "bfloat16")
        self.device = device_of(world)
        if self.device.type == "cpu":
            settle_on_cpu(world.local_size, 0)
        self.encoder: Any = load_encoder(config.model)
        files_of = weight_files(resolve(config.model.encoder), config.model.encoder_revision)
        verify_weights("encoder", self.encoder.model, files_of, True)
        check_vocabulary(tokenizers.encoder, self.encoder.vocab_size, "model.encoder")
        self.encoder.include_embeddings = config.fusion.include_embeddings
        self.encoder.to(self.device)
        self.cache = StatesCache(files, self.encoder, config)
        self.pad, self.world, self.tokens = tokenizers.encoder_pad_id, world, tokens

    def run(self, parts: Sequence[tuple[StepDataset, CorpusRows]]) -> tuple[int, int]:
        """Encode the samples of some data sets; returns how many texts were there, and how many are new."""
        import numpy as np
        from tqdm import tqdm

        from bridge_ds.data.loading.ids import TokenizedSample

        # What stands for a bad sample, or for none in a validation.
        found, made = self._encode([TokenizedSample([self.pad], [], [], ())])
        total = sum(len(rows.numbers) for _, rows in parts)
        shown = self.world.local_rank == 0 and sys.stderr.isatty()
        with tqdm(total=total, unit="sample", disable=not shown, dynamic_ncols=True, desc="encoding") as bar:
            for dataset, rows in parts:
                # Neighbors on disk, of which each process of the node takes a part.
                order = np.lexsort((rows.shard_rows, rows.shards, rows.sets))
                mine = np.array_split(order, self.world.local_size)[self.world.local_rank]
                for begin in range(0, len(mine), _WINDOW):
                    samples = dataset.tokenize(rows, mine[begin : begin + _WINDOW])
                    good = [sample for sample in samples if isinstance(sample, TokenizedSample)]
                    for batch in self._batches(good):
                        were, are = self._encode(batch)
                        found, made = found + were, made + are
                        if self.cache.files.full:
                            return found, made
                    bar.update(len(samples) * self.world.local_size)
        return found, made

    def _batches(self, samples: list[TokenizedSample]) -> Iterator[list[TokenizedSample]]:
        """Of similar length, and at most `tokens` with padding."""
        samples = sorted(samples, key=lambda sample: len(sample.source))
        while samples:
            count = 1
            while count < len(samples) and (count + 1) * len(samples[count].source) <= self.tokens:
                count += 1
            yield samples[:count]
            samples = samples[count:]

    def _encode(self, samples: list[TokenizedSample]) -> tuple[int, int]:
        from bridge_ds.data.loading.collate import collate

        batch = collate(samples, self.pad, 0)
        (kept,) = self.cache.read([batch])
        if kept.missing:
            kept.completed(self.encoder.encode_all(kept.inputs(batch.to(self.device))), self.device)
        return len(samples) - kept.missing, kept.missing


if __name__ == "__main__":
    run_command(main)
