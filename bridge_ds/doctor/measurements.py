"""What is measured on a run; plain values, so that diagnosis needs neither models nor files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["BASES", "Measurements"]

BASES = ("llm", "llm_tokenizer", "llm_end_ids", "encoder", "encoder_tokenizer")
"""What a checkpoint records the identity of, as in its manifest."""


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Numbers of one checkpoint on some of the run's own training samples. None = could not be measured."""

    # What belongs together
    changed: tuple[str, ...] = ()
    """Of BASES, those that are not what the checkpoint was trained with."""
    differing_weights: tuple[str, ...] = ()
    """Of `encoder`, `llm`: those whose weights in memory are not those of their files."""
    outside_vocabulary: tuple[str, ...] = ()
    """Of `encoder`, `llm`: those whose tokenizer gives ids without an embedding. Then nothing below is measured."""
    not_finite: tuple[str, ...] = ()
    """What holds NaN or infinities: names of bridge tensors, `encoder states`, `soft prompt`, `loss`."""

    # Data
    samples: int = 0
    """Samples that were looked at."""
    sources_cut: float = 0.0
    """Share of sources longer than data.max_source_tokens (0 to 1)."""
    prompts_cut: float = 0.0
    """Share of prompts longer than data.max_prompt_tokens (0 to 1)."""
    targets_cut: float = 0.0
    """Share of targets longer than data.max_target_tokens (0 to 1)."""
    targets_lost: float = 0.0
    """Share of the targets' tokens that was truncated, end tokens not counted (0 to 1)."""
    unknown: float = 0.0
    """Share of the sources' tokens that are the encoder's unknown token (0 to 1)."""
    augmented: bool = False
    """The LLM reads the source itself, too (data.augment_prompt)."""

    # Losses, nats a target token, without dropout
    loss_right: float | None = None
    """With each sample's own source."""
    loss_shuffled: float | None = None
    """With the source of a sample that has another target."""
    loss_none: float | None = None
    """Without a soft prompt."""
    gap: float | None = None
    """loss_shuffled - loss_right, the mean over samples of their own differences."""
    gap_error: float | None = None
    """Standard error of that mean."""
    loss_near: float | None = None
    """With the source of the sample that is most like it among those with another target."""
    near_gap: float | None = None
    """loss_near - loss_right, as `gap`."""
    near_error: float | None = None
    """Standard error of that mean."""
    one_target: bool = False
    """All samples have the same target, so that no source can be a wrong one."""
    loss_recorded: float | None = None
    """Mean training loss of the last steps before the checkpoint, from metrics.jsonl."""

    # The soft prompt
    embedding_norm: float | None = None
    """Median norm of the LLM's token embeddings."""
    soft_norm: float | None = None
    """Median norm of the soft vectors, the end vector left out."""
    soft_norm_by_position: tuple[float, ...] = ()
    """Mean norm at the first positions of the soft prompt."""
    end_norm: float | None = None
    """Norm of the end vector."""
    variation: float | None = None
    """Share of the soft vectors' mean square that is no constant vector: 0 = all are the same, 1 = no common part."""
    variation_by_position: tuple[float, ...] = ()
    """The same between samples at one position, for the first positions."""
    mapping_moved: float | None = None
    """Distance of the mapping's matrices from how the seed made them, relative to their size."""
    steps: int = 0
    """Optimizer steps of the checkpoint."""

    # Fusion
    fusion: str = ""
    """Name."""
    layer_weights: tuple[float, ...] = ()
    """Mean weight of each encoder layer over tokens."""
    layer_rms: tuple[float, ...] = ()
    """Root mean square of each layer's states; a weight times this is what the layer brings into the sum."""

    notes: tuple[str, ...] = field(default=())
    """What else was met, such as a broken checkpoint that was skipped."""

    @property
    def size(self) -> float | None:
        """Norm of a soft vector as a multiple of a token embedding's."""
        return None if self.soft_norm is None or not self.embedding_norm else self.soft_norm / self.embedding_norm

    def as_json(self) -> dict[str, Any]:
        """Every field by name, and `size`."""
        return asdict(self) | {"size": self.size}
