"""The checks of `bridge-ds preflight`, in its order: all that would otherwise fail after hours in the queue."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable
from pathlib import Path

from bridge_ds.checks.bases import encoder_loads, llm_loads, tokenizers_match
from bridge_ds.checks.room import memory_fits, output_writable
from bridge_ds.checks.subject import Subject
from bridge_ds.config import zero
from bridge_ds.config.ds_models import check_with_deepspeed
from bridge_ds.config.finetune import asked_config
from bridge_ds.config.names import made_at_start
from bridge_ds.errors import DataError
from bridge_ds.first_stage import FirstStage

__all__ = ["CHECKS", "Subject", "config_resolves"]


def config_resolves(subject: Subject) -> str:
    """Recipe and overrides make a config, and with llm.finetune that of its first stage."""
    recipe, overrides = subject.options.recipe, subject.options.overrides
    subject.config = asked_config(recipe, overrides, subject.options.finetune)
    if subject.config.llm.finetune:
        subject.first = FirstStage(subject.config, recipe, overrides)
        subject.config = subject.first.bridge() if subject.first.is_done else subject.config
    return f"recipe {recipe}, {subject.config.train.steps} steps"


def batch_divides(subject: Subject) -> str:
    """Global batch, micro-batch and ranks fit together."""
    subject.config = zero.resolve_micro_batch(subject.config, subject.ranks)
    steps = zero.accumulation(subject.config, subject.ranks)
    of = subject.config.train
    return f"{of.global_batch} = {of.micro_batch} rows x {subject.ranks} ranks x {steps} micro-batches"


def deepspeed_config(subject: Subject) -> str:
    """The DeepSpeed file is one that this version reads."""
    check_with_deepspeed(subject.config, subject.ds_values, subject.ranks)
    return subject.config.run.ds_config


def compiler_found(subject: Subject) -> str:
    """What train.compile needs is on this machine."""
    from bridge_ds.engine.compiled import check_compiler

    return check_compiler(subject.config.train.compile)


def run_goes_on(subject: Subject) -> str:
    """The run folder, or run.start_from, can be continued with these settings."""
    from bridge_ds.checkpoint.load import refuse_other_run
    from bridge_ds.checkpoint.origin import find_origin
    from bridge_ds.data.loading.plan import order_of

    if subject.first and not subject.first.is_done:
        return subject.first.check(subject.ranks, subject.gpus)
    origin = find_origin(subject.config, Path(subject.config.run.output))
    subject.config = origin.config
    subject.step = origin.checkpoint.step if origin.checkpoint else None
    if origin.checkpoint:
        refuse_other_run(origin.checkpoint, order_of(origin.config))
    return "; ".join(map(str.strip, origin.lines())) or "a new run"


def names_are_known(subject: Subject) -> str:
    """Trackers, tasks and the files that settings name beside models and data."""
    from bridge_ds.adapt.english import check_english
    from bridge_ds.data.text.mixing import read_mixer
    from bridge_ds.evaluation.store import check_evaluation
    from bridge_ds.track.trackers import check_trackers

    of = subject.config
    check_trackers(of)
    check_english(of)
    if of.data.mix_words:
        read_mixer(of.data.mix_words, of.data.mix_words_share, of.data.mix_words_languages)
    if of.evaluation.tasks:
        check_evaluation(of)
    return f"sent to {', '.join(of.track.to) or 'no tracker'}; scored on {', '.join(of.evaluation.tasks) or 'nothing'}"


def shards_verify(subject: Subject) -> str:
    """Every data set has an index; local shards have its sizes and, with --hashes, its sha256."""
    from bridge_ds.data.loading.corpus import locations, open_index
    from bridge_ds.data.shards.verify import verify
    from bridge_ds.tasks.shards import rows_at_start

    data, samples, shards = subject.config.data, 0, 0
    if made_at_start(data):
        rows_at_start(subject.config)
        return f"{data.shards}, written at the first start"
    for location in locations(data)[0]:
        # Not staged: a login node does not have the local disk of a compute node.
        index = open_index(dataclasses.replace(data, stage_dir=""), location)
        samples, shards = samples + index.samples, shards + len(index.shards)
        if subject.options.hashes:
            deque(verify(index), maxlen=0)
    if samples < subject.config.train.global_batch:
        raise DataError(
            f"data.shards holds {samples} samples; expected at least one global batch of "
            f"{subject.config.train.global_batch}; pack more or lower train.global_batch."
        )
    how = "sha256 compared" if subject.options.hashes else "sizes compared; --hashes reads them"
    return f"{samples} samples in {shards} shards ({how})"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "config": config_resolves,
    "batch": batch_divides,
    "deepspeed": deepspeed_config,
    "compiler": compiler_found,
    "names": names_are_known,
    "run": run_goes_on,
    "encoder": encoder_loads,
    "llm": llm_loads,
    "tokenizers": tokenizers_match,
    "shards": shards_verify,
    "output": output_writable,
    "memory": memory_fits,
}
"""Name in the report -> check: returns a remark, raises BridgeError."""
