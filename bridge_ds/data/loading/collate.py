"""From token lists to padded tensors, and a step's tensors as one block. Pure.

Letters: B batch, S encoder tokens, P prompt tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bridge_ds.data.loading.batch import Batch, StepBatches, pieces_of
from bridge_ds.data.loading.layout import layout_of
from bridge_ds.data.loading.tokenize import TokenizedSample

__all__ = ["INLINE", "PackedBatch", "collate", "pad", "unwrap", "wrap"]


INLINE = 7168
"""Values of a step, 8 bytes each, that fit into a pipe's buffer (64 KiB) together with what describes them."""


def pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-pad rows of ids to the longest of them.

    Returns:
        ids and mask, both [B, longest] int64; the mask comes from the lengths, so `pad_id` may be a real id.
    """
    lengths = torch.tensor([len(row) for row in rows], dtype=torch.int64)
    width = max(map(len, rows), default=0)
    ids = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], dtype=torch.int64)
    mask = (torch.arange(width) < lengths[:, None]).to(torch.int64)
    return ids.reshape(len(rows), width), mask


def collate(
    rows: Sequence[TokenizedSample],
    encoder_pad_id: int,
    llm_pad_id: int,
    opening: bool | None = None,
    fixed_length: int = 0,
) -> Batch:
    """One micro-batch of B samples: sources [B, S], prompts [B, P] (P may be 0), targets [B, T].

    Args:
        opening: whether the LLM has a BOS. Given, the batch has its layout, as training wants it; without, it has none.
        fixed_length: as of :func:`bridge_ds.data.loading.layout.layout_of`.
    """
    source_ids, source_mask = pad([row.source for row in rows], encoder_pad_id)
    prompt_ids, prompt_mask = pad([row.prompt for row in rows], llm_pad_id)
    target_ids, target_mask = pad([row.target for row in rows], llm_pad_id)
    head_ids, head_mask = pad([row.head for row in rows], llm_pad_id) if any(row.head for row in rows) else (None, None)
    layout = None
    if opening is not None:
        layout = layout_of(
            source_mask, prompt_mask, target_mask, target_ids, opening, head_mask, fixed_length=fixed_length
        )
    return Batch(
        source_ids=source_ids,
        source_mask=source_mask,
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        target_ids=target_ids,
        target_mask=target_mask,
        head_ids=head_ids,
        head_mask=head_mask,
        layout=layout,
    )


@dataclass
class PackedBatch:
    """A step on its way from a worker to the main process, its tensors laid end to end in one.

    A worker hands over each tensor as an open file descriptor; those of every micro-batch of every prefetched step pass
    the usual limit of 1024. One block a step needs one, and one copy into page-locked memory. A small block travels
    inside the message: for a descriptor the main process would have to wait until a thread of the worker, busy with the
    next step, hands it out.
    """

    step: StepBatches
    """The step without its micro-batches."""
    shapes: list[dict[str, torch.Size]]
    """For each micro-batch, the shape of each tensor, in the order of the block."""
    block: torch.Tensor | np.ndarray
    """int64, all values; an array up to :data:`INLINE` of them."""

    def pin_memory(self) -> PackedBatch:
        """The same parcel in page-locked memory (called by torch's DataLoader)."""
        return replace(self, block=torch.as_tensor(self.block).pin_memory())


def wrap(step: StepBatches) -> PackedBatch:
    """Lay the tensors of a step end to end."""
    tensors = [batch.tensors() for batch in step.micro]
    shapes = [{name: tensor.shape for name, tensor in batch.items()} for batch in tensors]
    block = torch.cat([tensor.reshape(-1) for batch in tensors for tensor in batch.values()])
    return PackedBatch(replace(step, micro=[]), shapes, block.numpy() if block.numel() <= INLINE else block)


def unwrap(parcel: PackedBatch) -> StepBatches:
    """The step again; its tensors are views of the block, nothing is copied."""
    blocks = torch.as_tensor(parcel.block).split([sum(s.numel() for s in shapes.values()) for shapes in parcel.shapes])
    micro = [Batch.of(pieces_of(block, shapes)) for block, shapes in zip(blocks, parcel.shapes, strict=True)]
    return replace(parcel.step, micro=micro)
