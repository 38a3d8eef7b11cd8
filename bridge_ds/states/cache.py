"""States of a frozen encoder that are read from disk in place of running it (`data.states_cache`).

A text's states depend on the ids that the encoder reads and on the encoder alone, so they are found by these ids:
whatever the settings, epoch, rank or batch, a state that is found is one that was computed for this text.

Dimensions: B batch, L encoder layers, N of their states that the fusion reads, S encoder tokens, D encoder width.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config, reads_all_layers
from bridge_ds.data.loading.batch import Batch
from bridge_ds.disk import real, write_text
from bridge_ds.encoder.absent import AbsentEncoder
from bridge_ds.encoder.base import Encoder, Input, States
from bridge_ds.errors import DataError, TrainingError
from bridge_ds.frozen.identity import model_identity, published_config, tokenizer_identity
from bridge_ds.frozen.load import DTYPES
from bridge_ds.partial import writing
from bridge_ds.states.files import StatesFiles, key_of, used_bytes

__all__ = ["KeptStates", "StatesCache", "encoder_key", "is_complete", "mark_complete", "open_cache", "texts_key"]

_GIB = 2**30
_MEASURED = 64
"""Most samples whose tokens are counted to say how large the states are."""
_READ = (
    "augment_prompt", "source_language", "max_source_tokens", "max_prompt_tokens", "truncation_side", "objective",
    "max_characters", "validation_percent",
)  # fmt: skip
"""Keys of `data` that decide which texts a run's encoder reads, and what of them."""


def encoder_key(config: Config) -> str:
    """Name of the folder of what this run's encoder computes: a hash over the encoder, the dtype, which of its states
    are kept, and the version of transformers.

    Raises:
        ConfigError: a file of the encoder's weights cannot be read.
    """
    from transformers import __version__

    of = config.model
    name = resolve(of.encoder)
    identity = model_identity(published_config(name, of.encoder_revision), name, of.encoder_revision)
    return _hash([identity, of.dtype, _states_kept(config), __version__])


def texts_key(config: Config, tokenizer: Any, corpus: str) -> str:
    """Hash over what decides which texts a run's encoder reads.

    Args:
        config: the run.
        tokenizer: the encoder's, loaded.
        corpus: identity of the data.
    """
    of = config.model
    identity = tokenizer_identity(tokenizer, resolve(of.encoder), of.encoder_revision)
    # Which of the held-out samples are read depends on the order that shuffle_shards gives.
    held_out = [config.train.validation_samples, config.data.shuffle_shards] if config.data.validation_percent else []
    return _hash([identity, corpus, held_out, *(getattr(config.data, key) for key in _READ)])


def _states_kept(config: Config) -> str:
    if not reads_all_layers(config.fusion, config.injection):
        return "last"
    return "all and embeddings" if config.fusion.include_embeddings else "all"


def _hash(facts: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def mark_complete(folder: Path, key: str, part: int, parts: int, facts: Mapping[str, object]) -> None:
    """Note that this part of the texts of `key` (of :func:`texts_key`) has been encoded. Raises LaunchError."""
    with writing(folder):
        write_text(folder / f"complete-{key}-{part}-of-{parts}.json", json.dumps(dict(facts), indent=1) + "\n")


def is_complete(folder: Path, key: str) -> bool:
    """Whether all parts have been."""
    for first in folder.glob(f"complete-{key}-0-of-*.json"):
        parts = int(first.stem.rpartition("-")[2])
        if all((folder / f"complete-{key}-{part}-of-{parts}.json").is_file() for part in range(parts)):
            return True
    return False


@dataclass
class KeptStates:
    """Of one micro-batch: what was found, and what remains to be computed."""

    cache: StatesCache
    """Of the run."""
    keys: list[str]
    """Of each row."""
    lengths: list[int]
    """Encoder tokens of each row."""
    found_NBSD: torch.Tensor
    """Host memory; 0 on padding and in rows that were not found."""
    parts: list[tuple[list[int], bool]]
    """Rows that were not found and are computed together, and whether the mask of these has a 0."""

    @property
    def missing(self) -> int:
        """Rows that were not found."""
        return sum(len(rows) for rows, _ in self.parts)

    def inputs(self, batch: Batch) -> list[Input]:
        """The encoder's arguments for each part.

        Args:
            batch: the micro-batch, on the encoder's device.
        """
        found: list[Input] = []
        for rows, padded in self.parts:
            longest = max(self.lengths[row] for row in rows)
            index = torch.tensor(rows, device=batch.source_ids.device)
            found.append((batch.source_ids[index, :longest], batch.source_mask[index, :longest], padded))
        return found

    def completed(self, computed: Sequence[States], device: torch.device) -> States:
        """The states of the micro-batch on `device`; what was computed is kept from now on.

        Args:
            computed: the encoder's results for :meth:`inputs`.

        Raises:
            TrainingError: the states are not of `model.dtype`.
        """
        kept = [self.cache.of(states) for states in computed]
        if self.parts:
            self.cache.keep(self, kept)
        if len(kept) == 1 and len(self.parts[0][0]) == len(self.keys):
            states_N = kept[0]
        else:
            whole_NBSD = self.found_NBSD.to(device, non_blocking=True)
            for (rows, _), part in zip(self.parts, kept, strict=True):
                index = torch.tensor(rows, device=device)
                for whole_BSD, state in zip(whole_NBSD, part, strict=True):
                    whole_BSD[index, : state.shape[1]] = state
            states_N = whole_NBSD.unbind(0)
        return self.cache.as_returned(states_N)


class StatesCache:
    """The states that a run keeps, on this node."""

    def __init__(self, files: StatesFiles, encoder: Encoder, config: Config) -> None:
        """Args:
        files: of :func:`encoder_key`.
        encoder: of the run, loaded or not.
        config: the run.
        """
        self.files = files
        self.runs_encoder = not isinstance(encoder, AbsentEncoder)
        self.states = encoder.blocks + int(config.fusion.include_embeddings)
        self.width, self.dtype = encoder.width, DTYPES[config.model.dtype]
        self.kept = 1 if _states_kept(config) == "last" else self.states
        """N."""

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the kept states of a token."""
        return self.kept * self.width * self.dtype.itemsize

    def of(self, states: States) -> States:
        """Those of the encoder's states that are kept."""
        return states[-self.kept :]

    def as_returned(self, kept: States) -> States:
        """As many states as the encoder returns; those that the fusion does not read are its last one again."""
        return kept if self.kept == self.states else kept * self.states

    def read(self, micro: Sequence[Batch]) -> list[KeptStates]:
        """What is found for each of these micro-batches (on the host), with what was added until now. Memory: all of
        it, B * S tokens of each micro-batch.

        Raises:
            DataError: something is missing, and the encoder is not loaded.
        """
        self.files.refresh()
        found = [self._read(batch) for batch in micro]
        missing = sum(each.missing for each in found)
        if missing and not self.runs_encoder:
            raise DataError(
                f"{self.files.folder} lacks the encoder's states of {missing} samples of a step, although all were "
                f"encoded; expected them undamaged; remove {self.files.folder}/complete-*.json, and what is missing is "
                "computed (or is encoded by bridge-ds encode)."
            )
        return found

    def _read(self, batch: Batch) -> KeptStates:
        lengths = batch.source_mask.sum(1).tolist()
        keys = [key_of(ids[:length]) for ids, length in zip(batch.source_ids, lengths, strict=True)]
        shape = self.kept, *batch.source_ids.shape, self.width
        states_NBSD = torch.zeros(shape, dtype=self.dtype, pin_memory=torch.cuda.is_available())
        missing = {
            row
            for row, (key, length) in enumerate(zip(keys, lengths, strict=True))
            if not (key in self.files and self.files.read(key, states_NBSD[:, row, :length]))
        }
        # As the encoder would read the micro-batch by itself, without the rows that were found.
        groups = batch.layout.groups if batch.layout else ()
        together = [(group[:, 0] // batch.source_ids.shape[1]).tolist() for group in groups] or [[*range(len(keys))]]
        parts = [rows for every in together if (rows := [row for row in every if row in missing])]
        padded = [bool(groups) or len({lengths[row] for row in rows}) > 1 for rows in parts]
        return KeptStates(self, keys, lengths, states_NBSD, list(zip(parts, padded, strict=True)))

    def keep(self, of: KeptStates, computed: Sequence[States]) -> None:
        """Write the states of a micro-batch's missing rows, see :meth:`KeptStates.completed`."""
        if computed[0][0].dtype != self.dtype:
            raise TrainingError(
                f"the encoder gives states of {computed[0][0].dtype} in a run of {self.dtype}; expected the same for "
                "data.states_cache, which keeps what it reads; leave it empty."
            )
        if self.files.full:
            return
        added = []
        for (rows, _), states in zip(of.parts, computed, strict=True):
            for number, row in enumerate(rows):
                block = torch.stack([state[number, : of.lengths[row]] for state in states])
                added.append((of.keys[row], block.cpu()))
        self.files.add(added)

    def measured(self, first_rows: Callable[[int], Batch], samples: int) -> str:
        """:meth:`describe` with the mean tokens of the first samples, of which `first_rows` gives as many as asked for.

        Raises:
            DataError: a sample cannot be read.
        """
        mask_BS = first_rows(_MEASURED).source_mask
        return self.describe(float(mask_BS.sum()) / len(mask_BS), samples)

    def describe(self, tokens: float, samples: int) -> str:
        """Size, limit and room, in a line.

        Args:
            tokens: of a sample, on average.
            samples: that the run may read.
        """
        each = tokens * self.bytes_per_token
        folder = self.files.folder
        own, used = sum(path.stat().st_size for path in folder.glob("*.states")), used_bytes(folder.parent)
        which = "the last layer's state" if self.kept == 1 else f"{self.kept} states"
        return (
            f"encoder states in {folder}: {which} of {self.bytes_per_token:,} bytes a token, "
            f"{each / 1e6:.2g} MB a sample of {tokens:.0f} tokens, about {each * samples / _GIB:.3g} GiB for "
            f"{samples:,} samples; {own / _GIB:.3g} GiB are there, {(used - own) / _GIB:.3g} GiB of other runs beside "
            f"them; data.states_cache_gib is {self.files.limit / _GIB:g}, "
            f"{shutil.disk_usage(folder).free / _GIB:.3g} GiB of the disk are free."
        )


def open_cache(config: Config, key: str) -> StatesFiles:
    """The files of `key` (of :func:`encoder_key`) on this node.

    Raises:
        LaunchError: the folder cannot be made.
    """
    folder = real(config.data.states_cache) / key
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    files = StatesFiles(folder, int(config.data.states_cache_gib * _GIB))
    files.refresh()
    return files
