"""The contract between data and model: what one micro-batch holds.

Letters: B batch, S encoder tokens, P prompt tokens, T target tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

__all__ = ["Batch", "StepBatches"]


@dataclass
class Batch:
    """One micro-batch of one rank. All tensors are right-padded; masks are 1 on real tokens, 0 on padding."""

    source_ids: torch.Tensor
    """[B, S] int64, encoder token ids, end token included."""
    source_mask: torch.Tensor
    """[B, S] int64."""
    prompt_ids: torch.Tensor
    """[B, P] int64, LLM token ids shown beside the soft prompt; P may be 0."""
    prompt_mask: torch.Tensor
    """[B, P] int64."""
    target_ids: torch.Tensor
    """[B, T] int64, LLM token ids to predict, end token included."""
    target_mask: torch.Tensor
    """[B, T] int64."""

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})

    @property
    def target_tokens(self) -> int:
        """Tokens whose loss counts."""
        return int(self.target_mask.sum())

    @property
    def source_tokens(self) -> int:
        """Real encoder tokens."""
        return int(self.source_mask.sum())


@dataclass
class StepBatches:
    """All that one rank needs for one optimizer step."""

    step: int
    """Optimizer step, counted from 1."""
    micro: list[Batch]
    """Micro-batches of this rank; every rank has the same number of them."""
    ids_hash: str
    """Hex digest over the sample numbers of the whole GLOBAL batch in order: the same on every rank and world size."""
    consumed: int
    """Samples that the run has used once this step is done (the one integer that resumes)."""
    cut: dict[str, int] = field(default_factory=dict)
    """Samples of this rank cut to length, by field (`source`, `prompt`, `target`)."""
    bad: dict[str, int] = field(default_factory=dict)
    """Bad samples of this rank that were left out, by kind (see :data:`bridge_ds.data.samples.KINDS`)."""
    bad_reason: str = ""
    """Place, key and reason of the first of them."""
    example: str = ""
    """For the first step only: one sample in readable form (decoded ids)."""
