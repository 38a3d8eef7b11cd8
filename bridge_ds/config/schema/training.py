"""Optimisation, and what is kept of it on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from bridge_ds.config.schema.fields import (
    NEITHER,
    TRAINING,
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    OrNone,
    Pair,
    PositiveFloat,
    PositiveInt,
    Probability,
    Real,
)

__all__ = ["CheckpointConfig", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    steps: Annotated[PositiveInt, TRAINING] = 1000
    """Optimizer steps in the whole run."""
    global_batch: Annotated[PositiveInt, TRAINING] = 128
    """Samples per optimizer step over all ranks; micro_batch x ranks must divide it."""
    micro_batch: Annotated[NonNegativeInt, NEITHER] = 8
    """Samples per rank per forward pass; 0 = the rank's whole share of the global batch at once."""
    encode_once: Annotated[Flag, NEITHER] = True
    """Let a frozen encoder read the micro-batches of a step together, as many as encode_once_gib allows: under ZeRO-3
    its layers are then gathered once for all of these, with the same losses. Under ZeRO-2 it changes nothing."""
    encode_once_gib: Annotated[NonNegativeFloat, NEITHER] = 4.0
    """Memory for encoder states on a rank (GiB; 0 = those of one micro-batch). A micro-batch counts as (layers + 1) x
    rows x data.max_source_tokens x width x 2 bytes (4 in float32), however short its texts are."""
    lr: Annotated[NonNegativeFloat, TRAINING] = 3e-5
    """Peak learning rate of AdamW."""
    betas: Annotated[tuple[Probability, Probability], Pair, TRAINING] = (0.8, 0.999)
    """AdamW's beta1 and beta2."""
    eps: Annotated[PositiveFloat, TRAINING] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[NonNegativeFloat, TRAINING] = 3e-7
    """AdamW's decoupled weight decay (on matrices; vectors and scalars have none)."""
    warmup_ratio: Annotated[Real, Ge(0), Le(1), TRAINING] = 0.05
    """Share of `steps` with linear warm-up."""
    schedule: Annotated[Literal["cosine", "linear", "constant"], TRAINING] = "cosine"
    """Learning rate after warm-up; cosine and linear end at 0."""
    tf32: Annotated[Flag, TRAINING] = True
    """Multiply what is float32 beside bfloat16 models (mapping, fusion) in TF32 on GPUs that have it."""
    max_grad_norm: Annotated[NonNegativeFloat, TRAINING] = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. 0 = no clipping."""
    validate_every: Annotated[NonNegativeInt | None, OrNone, NEITHER] = None
    """Optimizer steps between two computations of the loss on what data.validation_percent holds out, on all ranks and
    without dropout (the last step has one too); null = as checkpoint.every; 0 = never. Training does not change."""
    validation_samples: Annotated[NonNegativeInt, NEITHER] = 1024
    """Most samples of a validation, the same ones each time and whatever run.seed is (kept as token ids in the ranks'
    memory); 0 = all that are held out."""
    max_bad_steps: Annotated[NonNegativeInt, NEITHER] = 0
    """Steps in a row whose loss or gradient is not finite before the run stops; each one is skipped and shown."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: Annotated[PositiveInt, NEITHER] = 500
    """Optimizer steps between checkpoints (one is always written at the end)."""
    keep_last: Annotated[NonNegativeInt, NEITHER] = 2
    """Newest checkpoints kept; older ones are removed after a new one is valid. 0 keeps all."""
    keep_best: Annotated[NonNegativeInt, NEITHER] = 1
    """Checkpoints kept besides these for the lowest loss: the validation loss at that step where the run has it, else
    the training loss, mean since the save before (0 = none). `RUN/checkpoints/best` names the best one to other
    commands and to run.start_from."""
    max_failed_saves: Annotated[NonNegativeInt, NEITHER] = 3
    """Saves in a row that may fail (full disk, lost folder) before the run ends; only the run's last one is retried."""
