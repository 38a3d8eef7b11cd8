"""From token lists to padded tensors, and a step's tensors as one flat buffer. Pure.

Dimensions: B batch, S encoder tokens, P prompt tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from bridge_ds.data.loading.batch import Batch, StepBatches, split_buffer
from bridge_ds.data.loading.bins import Packing
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.layout import layout_of

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
    packing: Packing | None = None,
    soft_prompt: bool = True,
    taught_share: float = 1.0,
) -> Batch:
    """One micro-batch of B samples: sources [B, S], prompts [B, P] (P may be 0), targets [B, T].

    Args:
        opening: whether the LLM has a BOS; if given, the batch has its layout, as training needs it.
        fixed_length: as of :func:`bridge_ds.data.loading.layout.layout_of`.
        packing: of the same; for a batch with a layout.
        soft_prompt: likewise.
        taught_share: of all samples. Below 1, some rows are in the lesson, or one without targets where there is none:
            under ZeRO-3 all ranks run the LLM equally often.
    """
    source_ids, source_mask = pad([row.source for row in rows], encoder_pad_id)
    prompt_ids, prompt_mask = pad([row.prompt for row in rows], llm_pad_id)
    target_ids, target_mask = pad([row.target for row in rows], llm_pad_id)
    head_ids, head_mask = pad([row.head for row in rows], llm_pad_id) if any(row.head for row in rows) else (None, None)
    lesson = taught = layout = None
    alone = [TokenizedSample([], row.lesson, row.target, (), row.head) for row in rows if row.lesson is not None]
    if alone or 0 < taught_share < 1:
        lesson = collate(
            alone or [TokenizedSample([], [llm_pad_id], [], ())],
            encoder_pad_id, llm_pad_id, opening, packing=packing and replace(packing, encoder_keys=0.0),
        )  # fmt: skip
        if taught_share < 1:
            is_taught = [row.lesson is not None for row in rows for _ in row.target]
            taught = torch.tensor(is_taught, dtype=torch.bool).nonzero().squeeze(1)
    if opening is not None:
        layout = layout_of(
            source_mask, prompt_mask, target_mask, target_ids, opening, head_mask, fixed_length, packing, soft_prompt
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
        lesson=lesson,
        taught=taught,
    )


@dataclass
class PackedBatch:
    """A step on its way from a worker to the main process, its tensors in one flat buffer.

    A worker sends each tensor as an open file descriptor; those of every micro-batch of every prefetched step exceed
    the usual limit of 1024. One buffer per step needs one, and one copy into page-locked memory. A small buffer is sent
    inside the message: for a descriptor the main process would have to wait for a thread of the worker, which is busy
    with the next step.
    """

    step: StepBatches
    """The step without its micro-batches."""
    shapes: list[dict[str, torch.Size]]
    """For each micro-batch, the shape of each tensor, in the order of the buffer."""
    buffer: torch.Tensor | np.ndarray
    """int64, all values; an array up to :data:`INLINE` of them."""

    def pin_memory(self) -> PackedBatch:
        """The same batch in page-locked memory (called by torch's DataLoader)."""
        return replace(self, buffer=torch.as_tensor(self.buffer).pin_memory())


def wrap(step: StepBatches) -> PackedBatch:
    """Concatenate the tensors of a step."""
    tensors = [batch.tensors() for batch in step.micro]
    shapes = [{name: tensor.shape for name, tensor in batch.items()} for batch in tensors]
    buffer = torch.cat([tensor.reshape(-1) for batch in tensors for tensor in batch.values()])
    return PackedBatch(replace(step, micro=[]), shapes, buffer.numpy() if buffer.numel() <= INLINE else buffer)


def unwrap(packed: PackedBatch) -> StepBatches:
    """The step again; its tensors are views of the buffer, nothing is copied."""
    sizes = [sum(shape.numel() for shape in shapes.values()) for shapes in packed.shapes]
    parts = torch.as_tensor(packed.buffer).split(sizes)
    micro = [Batch.of(split_buffer(part, shapes)) for part, shapes in zip(parts, packed.shapes, strict=True)]
    return replace(packed.step, micro=micro)
