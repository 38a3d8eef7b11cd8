"""A run as the doctor needs it: loaded even if its parts do not belong together, and what was found."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from bridge_ds.bridge import BridgeModel, build_bridge
from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.load import Checkpoint
from bridge_ds.compat.deepspeed import import_deepspeed
from bridge_ds.config.names import made_at_start, resolve
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.corpus import open_corpus
from bridge_ds.data.loading.tokenize import Tokenizers, check_vocabulary
from bridge_ds.data.shards.samples import BadSample
from bridge_ds.doctor.measurements import BASES
from bridge_ds.engine.setup import quiet_transformers
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.frozen.verify import verify_weights, weight_files
from bridge_ds.inference.bases import Placing
from bridge_ds.inference.load import load_model, open_run
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.tasks.shards import rows_at_start
from bridge_ds.track.metrics_file import iter_metrics
from bridge_ds.world import World

__all__ = ["LoadedRun", "load_run", "mapping_moved", "recorded_loss", "training_samples"]

_RECORDED_STEPS = 20
"""Steps whose mean is the recorded loss: one step's batch is too few samples."""


@dataclass
class LoadedRun:
    """A run, loaded."""

    run: Path
    config: Config
    model: BridgeModel
    tokenizers: Tokenizers
    checkpoint: Checkpoint
    facts: dict[str, Any] = field(default_factory=dict)
    """Fields of :class:`bridge_ds.doctor.measurements.Measurements` found while loading."""


def load_run(run: Path, device_map: Any, max_memory: Any = None) -> LoadedRun:
    """Load the newest valid checkpoint; other base models or tokenizers than its own are noted and not refused.

    Args:
        run: run folder.
        device_map: see :class:`bridge_ds.inference.bases.Placing`; likewise `max_memory`.
        max_memory: see `device_map`.

    Raises:
        ConfigError: no run folder, a run without a soft prompt, a base model that cannot be loaded at all, or a device
            map that cannot be used.
        LaunchError: the devices' memory does not suffice.
        CheckpointError: no valid checkpoint, or one that does not fit the models in shape.
    """
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line[:1].upper() + line[1:])

    config, checkpoint = open_run(run, finite=False, note=note)
    if not config.injection.makes_prompt:
        raise ConfigError(
            f"{run} has no soft prompt (injection.soft_prompt is false), and the doctor examines soft prompts; "
            "expected a run that makes one; bridge-ds report compares what such a run answers with the LLM alone."
        )
    recorded, predicts = checkpoint.manifest["base"], OBJECTIVES[config.data.objective].predicts
    if not predicts:
        note("its training loss is not that of the targets (data.objective), and is not compared")
    found: dict[str, str] = {}
    quiet_transformers()
    model, tokenizers = load_model(
        config,
        layout.trained_files(checkpoint.folder),
        recorded,
        found.update,
        Placing(device_map=device_map, max_memory=max_memory),
        check_ids=False,
    )
    facts = {
        "changed": tuple(part for part in BASES if found.get(part) != recorded.get(part)),
        "differing_weights": _differing(config, model),
        "outside_vocabulary": _outside(model, tokenizers),
        "mapping_moved": _mapping_moved(config, model, tokenizers),
        "loss_recorded": _recorded_or_noted(run, checkpoint.step, note) if predicts else None,
        "steps": checkpoint.step,
        "fusion": config.fusion.name,
        "augmented": config.data.augment_prompt,
        "notes": tuple(notes),
    }
    # What the soft prompt carries is measured beside what the LLM reads of all other samples.
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, replay=0.0))
    return LoadedRun(run, config, model, tokenizers, checkpoint, facts)


def _mapping_moved(config: Config, model: BridgeModel, tokenizers: Tokenizers) -> float | None:
    """None = the mapping did not begin as the seed makes it."""
    if config.mapping.init != "random" or config.run.start_from:
        return None
    initial = build_bridge(config, model.encoder, model.llm, tokenizers.bos_id).mapping.state_dict()
    of_input = {name: tensor for name, tensor in initial.items() if name.startswith("project.")}
    return mapping_moved(of_input, model.mapping.state_dict())


def mapping_moved(initial: dict[str, torch.Tensor], trained: dict[str, torch.Tensor]) -> float:
    """Distance of matrices from their initial values, relative to the larger of both sizes (at most 2)."""
    names = [name for name, tensor in initial.items() if tensor.ndim >= 2]
    before = torch.cat([initial[name].detach().float().flatten() for name in names])
    after = torch.cat([trained[name].detach().float().cpu().flatten() for name in names])
    return float((after - before.cpu()).norm() / max(before.norm(), after.norm()))


def _recorded_or_noted(run: Path, step: int, note: Callable[[str], None]) -> float | None:
    try:
        return recorded_loss(run / "metrics.jsonl", step)
    except DataError as error:
        note(f"the training loss is not known: {error}")
        return None


def recorded_loss(path: Path, step: int) -> float | None:
    """Mean training loss of the last steps up to `step`; None if metrics.jsonl is missing or has none.

    Raises:
        DataError: it is damaged.
    """
    losses: dict[int, float] = {}
    for each in iter_metrics(path) if path.is_file() else ():
        if each["step"] <= step and each.get("loss") is not None:
            losses[each["step"]] = each["loss"]
    return fmean(losses[each] for each in sorted(losses)[-_RECORDED_STEPS:]) if losses else None


def training_samples(run: Path, config: Config, count: int) -> tuple[list[dict[str, Any]], list[int]]:
    """The first samples of the run's own order, bad ones left out, with their numbers in the corpus.

    Raises:
        DataError: the shards cannot be read here.
    """
    written = run / "shards"
    if made_at_start(config.data):
        if not (written / "index.json").is_file():
            first = list(itertools.islice(rows_at_start(config)[0], count))
            return first, list(range(len(first)))
        shards = str(written)
    else:
        shards = config.data.shards
    corpus = open_corpus(dataclasses.replace(config.data, shards=shards), config.run.seed, World())
    rows = corpus.rows(np.arange(min(4 * count, corpus.samples), dtype=np.int64))
    samples: list[dict[str, Any]] = []
    numbers: list[int] = []
    for row in range(len(rows.numbers)):
        if len(samples) == count:
            break
        try:
            samples.append(corpus.read(rows, row))
        except BadSample:
            continue
        numbers.append(int(rows.numbers[row]))
    return samples, numbers


def _outside(model: BridgeModel, tokenizers: Tokenizers) -> tuple[str, ...]:
    pairs = (("llm", tokenizers.llm, model.llm), ("encoder", tokenizers.encoder, model.encoder))
    found = []
    for name, tokenizer, part in pairs:
        try:
            check_vocabulary(tokenizer, part.vocab_size, name)
        except ConfigError:
            found.append(name)
    return tuple(found)


def _differing(config: Config, model: BridgeModel) -> tuple[str, ...]:
    of = config.model
    parts: Sequence[tuple[str, Any, str, str | None]] = (
        ("llm", model.llm.model, of.llm, of.llm_revision),
        ("encoder", model.encoder.model, of.encoder, of.encoder_revision),
    )
    import_deepspeed()
    found = []
    for name, part, where, revision in parts:
        try:
            verify_weights(name, part, weight_files(resolve(where), revision), is_main=True, frozen_only=True)
        except ConfigError:
            found.append(name)
    return tuple(found)
