"""Optimisation, and what is kept of it on disk."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CheckpointConfig", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimisation."""

    steps: int = 1000
    """Optimizer steps in the whole run."""
    global_batch: int = 128
    """Samples per optimizer step over all ranks; micro_batch x ranks must divide it."""
    micro_batch: int = 8
    """Samples per rank per forward pass; 0 = the rank's whole share of the global batch at once."""
    encode_once: bool = True
    """Let a frozen encoder read the micro-batches of a step together, as many as encode_once_gib allows (yes/no): under
    ZeRO-3 its layers are then gathered once for all of these, with the same losses. Under ZeRO-2 it changes nothing."""
    encode_once_gib: float = 4.0
    """Encoder states of a rank that may be there together (GiB; 0 = those of one micro-batch). A micro-batch counts as
    (layers + 1) x rows x data.max_source_tokens x width x 2 bytes (4 in float32), however short its texts are."""
    lr: float = 3e-5
    """Peak learning rate of AdamW."""
    betas: tuple[float, float] = (0.8, 0.999)
    """AdamW's beta1 and beta2."""
    eps: float = 1e-8
    """AdamW's epsilon."""
    weight_decay: float = 3e-7
    """AdamW's decoupled weight decay (on matrices; vectors and scalars have none)."""
    warmup_ratio: float = 0.05
    """Share of `steps` with linear warm-up (0 to 1)."""
    schedule: str = "cosine"
    """Learning rate after warm-up: cosine (to 0) | linear (to 0) | constant."""
    tf32: bool = True
    """Multiply what is float32 beside bfloat16 models (mapping, fusion) in TF32 on GPUs that have it (yes/no)."""
    max_grad_norm: float = 1.0
    """Largest global gradient norm; 0 = no clipping."""
    validate_every: int | None = None
    """Optimizer steps between two computations of the loss on what data.validation_percent holds out, on all ranks and
    without dropout (the last step has one too); none = as checkpoint.every; 0 = never. Training does not change."""
    validation_samples: int = 1024
    """Most samples of a validation, the same ones each time and whatever run.seed is (kept as token ids in the ranks'
    memory); 0 = all that are held out."""
    max_bad_steps: int = 0
    """Steps in a row whose loss or gradient is not finite before the run stops; each one is skipped and shown."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: int = 500
    """Optimizer steps between checkpoints (one is always written at the end)."""
    keep_last: int = 2
    """Newest checkpoints kept; older ones are removed after a new one is valid. 0 keeps all."""
    keep_best: int = 1
    """Checkpoints kept besides these for the lowest loss: the validation loss at that step where the run has it, else
    the training loss, mean since the save before (0 = none). `RUN/checkpoints/best` names the best one to other
    commands and to run.start_from."""
    max_failed_saves: int = 3
    """Saves in a row that may fail (full disk, lost folder) before the run ends; only the run's last one is retried."""
