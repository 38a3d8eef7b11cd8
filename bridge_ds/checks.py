"""What `bridge-ds preflight` checks, in its order: all that would otherwise fail after hours in the queue."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bridge_ds.config import zero
from bridge_ds.config.ds_models import check_with_deepspeed
from bridge_ds.config.finetune import asked_config
from bridge_ds.config.names import made_at_start
from bridge_ds.config.schema import Config
from bridge_ds.disk import real
from bridge_ds.errors import ConfigError, DataError, LaunchError
from bridge_ds.first_stage import FirstStage
from bridge_ds.plan.job import PROCESS_GIB, Job, planned, trained_parameters
from bridge_ds.plan.memory import device_gib, memory

__all__ = ["CHECKS", "Subject", "config_resolves"]


@dataclass
class Subject:
    """What is checked; the checks fill it in order."""

    options: argparse.Namespace
    config: Config = dataclasses.field(default_factory=Config)
    bases: dict[str, Any] = dataclasses.field(default_factory=dict)
    """transformers configs of the base models whose check passed."""
    step: int | None = None
    """Of the checkpoint that the run goes on from; None = there is none."""
    first: FirstStage | None = None
    """What comes before it, or came (llm.finetune); None = nothing."""

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return int(self.options.ranks)

    @property
    def gpus(self) -> int:
        """GPUs of a node.

        Raises:
            LaunchError: the nodes do not divide the ranks.
        """
        nodes = self.options.nodes or int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if self.ranks % nodes:
            raise LaunchError(
                f"{self.ranks} ranks do not divide over {nodes} nodes; expected as many on each; change --ranks or "
                "--nodes (without it: the Slurm job's)."
            )
        return self.ranks // nodes

    @property
    def ds_values(self) -> dict[str, Any]:
        """The DeepSpeed file for these nodes."""
        return zero.resolve_hpz(zero.read_ds_config(self.config.run.ds_config), self.ranks, self.gpus)


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


def encoder_loads(subject: Subject) -> str:
    """The encoder's files are whole and fit its config; its forward pass runs, without numbers."""
    from bridge_ds.encoder.frozen import encoder_base

    there = subject.config.model.has_encoder
    return _loads(subject, "encoder", encoder_base) if there else "none: the LLM alone is trained"


def llm_loads(subject: Subject) -> str:
    """The LLM's likewise, and it takes a soft prompt."""
    from bridge_ds.llm import frozen, support
    from bridge_ds.llm.attention import AttentionLayers, refuse_other_layers
    from bridge_ds.llm.tiny_copy import llm_class, tiny_copy

    if not (of := subject.config.model).has_llm:
        return "none: the encoder alone is trained"
    done = _loads(subject, "llm", frozen.llm_base)
    done += _remark(support.check_llm(of.llm, subject.bases["llm"], of.trust_remote_code))
    if (spec := subject.config.injection.spec) is not None:
        kind, text = llm_class(subject.bases["llm"], of.llm, of.trust_remote_code)
        AttentionLayers(tiny_copy(kind, text), projects=spec.projects)
        if layers := int(getattr(text, "num_hidden_layers", 0) or 0):  # of which the copy has fewer
            refuse_other_layers(subject.config.injection.llm_layers, layers, kind.__name__)
    return done


def _loads(subject: Subject, what: str, base_of: Callable[..., Any]) -> str:
    from bridge_ds.engine.setup import quiet_transformers
    from bridge_ds.frozen.check import check_base

    quiet_transformers()
    base = base_of(subject.config.model)
    done = check_base(base, run=True)
    subject.bases[what] = base.config
    remarks = "".join(map(_remark, (done.remark, done.left_out)))
    return f"{done.bytes / 2**30:.2f} GiB in {done.files} file{'s'[: done.files != 1]}{remarks}"


def _remark(text: str) -> str:
    return f"; {text}" if text else ""


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


def tokenizers_match(subject: Subject) -> str:
    """Both tokenizers load and fit their models' embedding tables; there is a chat template if one is needed; texts of
    the configured lengths fit the models' positions."""
    from bridge_ds.adapt.model import tokenizers_of
    from bridge_ds.data.loading.tokenize import check_vocabulary
    from bridge_ds.llm.positions import check_positions

    tokenizers = tokenizers_of(subject.config)
    if tokenizers.languages:
        tokenizers.languages.check("data.source_language", subject.config.data.source_language)
    for what, tokenizer in (("encoder", tokenizers.encoder), ("llm", tokenizers.llm)):
        if rows := getattr(subject.bases.get(what), "vocab_size", None):
            check_vocabulary(tokenizer, rows, f"model.{what}")
    done = f"{len(tokenizers.encoder)} and {len(tokenizers.llm)} tokens"
    of, encoder, llm = subject.config, subject.bases.get("encoder"), subject.bases.get("llm")
    if len(subject.bases) == tokenizers.has_encoder + of.model.has_llm and (subject.step or 0) < of.train.steps:
        done += "".join(map(_remark, check_positions(of, encoder, llm, tokenizers, subject.step is not None)))
    return done


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


def output_writable(subject: Subject) -> str:
    """The run folder can be written."""
    folder = real(subject.config.run.output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".preflight-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink(missing_ok=True)  # a node with which this one shares the folder may have a process of this pid
    except OSError as error:
        raise LaunchError(
            f"run.output {folder} cannot be written ({error.strerror}); expected a folder that you may write; "
            "choose another with --set run.output=PATH."
        ) from None
    free = shutil.disk_usage(folder).free
    try:
        needed = sum(_written(config, job) for config, job in _plans(subject))
    except ConfigError:  # said of the memory
        return f"{folder}, {free / 2**30:.1f} GiB free"
    if free < needed:
        raise LaunchError(
            f"run.output {folder} has {free / 2**30:.2f} GiB free; expected {needed / 2**30:.2f} GiB for checkpoints; "
            "make room, choose another with --set run.output=PATH, or lower checkpoint.keep_last."
        )
    return f"{folder}, {free / 2**30:.1f} GiB free, checkpoints take {needed / 2**30:.2f}"


def _written(config: Config, job: Job) -> float:
    """Bytes of a run's checkpoints, and of the LLM that it teaches."""
    of = config.checkpoint
    # Parameter and two moments in float32; one checkpoint more while the next is written.
    kept = (of.keep_last or config.train.steps // of.every) + of.keep_best + 1
    taught = 0 if config.model.has_encoder else job.llm.parameters * job.bytes
    return 12 * trained_parameters(job) * kept + taught


def memory_fits(subject: Subject) -> str:
    """The plan's memory of a rank fits the device (`--gpu-gib`, or the one that is here)."""
    try:
        plans = _plans(subject)
    except ConfigError as error:
        return f"not planned: {error}"
    size = subject.options.gpu_gib or device_gib()
    needs = [memory(job)["total"] for _, job in plans]
    of = f"{plans[0][1].nodes} x {plans[0][1].gpus} GPUs"
    said = " for the bridge and ".join(f"{need:.1f} GiB" for need in needs)
    said += " for what comes first (llm.finetune)" * (len(needs) > 1)
    if not size:
        return f"{said} a rank planned on {of}; no GPU here to compare with (--gpu-gib)"
    if needs[0] > size:
        raise LaunchError(
            f"the plan needs {needs[0]:.1f} GiB a rank; the device has {size:.1f} GiB; lower train.micro_batch, set "
            "model.activation_checkpointing=true, or see bridge-ds plan for another run.ds_config."
        )
    if needs[-1] > size:
        raise LaunchError(
            f"teaching the LLM first (llm.finetune) needs {needs[-1]:.1f} GiB a rank by the plan, the bridge "
            f"{needs[0]:.1f}; the device has {size:.1f} GiB; set llm.finetune_settings, such as "
            "[run.ds_config=zero3.json, model.activation_checkpointing=true], or take more GPUs."
        )
    return f"{said} a rank planned on {of}, {size:.1f} GiB there"


def _plans(subject: Subject) -> list[tuple[Config, Job]]:
    """The run, and what comes before it unless that is done, each with its plan.

    Raises:
        ConfigError: a model's shape is not known without loading it.
    """
    configs = [subject.config]
    if subject.first and not subject.first.is_done:
        configs.append(zero.resolve_micro_batch(subject.first.config, subject.ranks))
    nodes = subject.ranks // subject.gpus
    return [(of, planned(of, nodes, subject.gpus).having(process=PROCESS_GIB)) for of in configs]


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
