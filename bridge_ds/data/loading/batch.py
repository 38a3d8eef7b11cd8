"""The contract between data and model: what one micro-batch holds.

Dimensions: B batch, S encoder tokens, P prompt tokens, T target tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from bridge_ds.data.loading.layout import Layout

__all__ = ["Batch", "StepBatches", "split_buffer"]

_LESSON = "lesson."
"""Before the names of :attr:`Batch.lesson`'s tensors."""


@dataclass
class Batch:
    """One micro-batch of one rank. All tensors are right-padded; masks are 1 on real tokens, 0 on padding."""

    source_ids: torch.Tensor
    """[B, S] int64, encoder token ids, end token included."""
    source_mask: torch.Tensor
    """[B, S] int64."""
    prompt_ids: torch.Tensor
    """[B, P] int64, LLM token ids after the soft prompt; P may be 0."""
    prompt_mask: torch.Tensor
    """[B, P] int64."""
    target_ids: torch.Tensor
    """[B, T] int64, LLM token ids to predict, end token included."""
    target_mask: torch.Tensor
    """[B, T] int64."""
    head_ids: torch.Tensor | None = None
    """[B, K] int64, LLM token ids before the soft prompt, BOS included (of a chat template); none = BOS alone, where
    the LLM has one."""
    head_mask: torch.Tensor | None = None
    """[B, K] int64."""
    layout: Layout | None = None
    """Index tensors that follow from the lengths; with them the forward pass never waits for the device."""
    lesson: Batch | None = None
    """What the LLM reads that teaches: rows and their targets without an encoder token, the text as prompt."""
    taught: torch.Tensor | None = None
    """[K] int64, which of the N labels are those of the lesson, in its order; none = all of them, or no lesson."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name."""
        own = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        own |= self.layout.tensors() if self.layout else {}
        return own | {_LESSON + name: value for name, value in (self.lesson.tensors() if self.lesson else {}).items()}

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Batch:
        """The batch that has these :meth:`tensors`."""
        own = {each.name: tensors[each.name] for each in fields(cls) if each.name in tensors}
        lesson = {name.removeprefix(_LESSON): value for name, value in tensors.items() if name.startswith(_LESSON)}
        return cls(**own, layout=Layout.of(tensors), lesson=cls.of(lesson) if lesson else None)

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on `device`: one copy where the tensors are views of one flat buffer, as the loader's are.

        A copy to a GPU is asynchronous: whatever reads it there is queued after it in the stream.
        """
        tensors = self.tensors()
        non_blocking = torch.device(device).type != "cpu"  # the host could read a copy to it before it is complete
        buffer = _buffer(list(tensors.values()))
        if buffer is None or buffer.device == torch.device(device):
            return Batch.of({name: tensor.to(device, non_blocking=non_blocking) for name, tensor in tensors.items()})
        moved = buffer.to(device, non_blocking=non_blocking)
        return Batch.of(split_buffer(moved, {name: tensor.shape for name, tensor in tensors.items()}))

    @property
    def target_tokens(self) -> int:
        """Tokens whose loss counts."""
        return int(self.target_mask.sum())

    @property
    def taught_tokens(self) -> int:
        """Those of them at which the LLM alone teaches."""
        return self.lesson.target_tokens if self.lesson else 0

    @property
    def prompt_tokens(self) -> int:
        """Real LLM tokens before and after the soft prompt; a head of BOS alone does not count."""
        return int(self.prompt_mask.sum()) + (0 if self.head_mask is None else int(self.head_mask.sum()))

    @property
    def positions(self) -> int:
        """Tokens of all ids, and the positions of both models that are padding."""
        if self.layout is None:
            masks = (self.source_mask, self.prompt_mask, self.target_mask, self.head_mask)
            return sum(mask.numel() for mask in masks if mask is not None)
        read = sum(group.numel() for group in self.layout.groups) or self.source_mask.numel()
        padding = self.layout.order.numel() - int(self.layout.lengths.sum())
        return read + self.prompt_tokens + self.target_tokens + padding

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
    """Hex digest over the sample numbers of the GLOBAL batch in order: the same on every rank and world size."""
    consumed: int
    """Samples that the run has used once this step is done (the one integer that resumes)."""
    truncated: dict[str, int] = field(default_factory=dict)
    """Samples of this rank that were truncated, by field (`source`, `prompt`, `target`)."""
    bad: dict[str, int] = field(default_factory=dict)
    """Bad samples of this rank that were skipped, by kind (see :data:`bridge_ds.data.shards.samples.KINDS`)."""
    bad_reason: str = ""
    """Location, key and reason of the first of them."""
    example: str = ""
    """For the first step only: one sample in readable form (decoded ids)."""
    kept: list[Any] = field(default_factory=list)
    """Of each micro-batch, its :class:`bridge_ds.states.cache.KeptStates`; empty where the run keeps none."""


def split_buffer(buffer: torch.Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, torch.Tensor]:
    """Consecutive pieces of a flat buffer as views of it, by name."""
    pieces = buffer.split([shape.numel() for shape in shapes.values()])
    return {name: piece.view(shape) for piece, (name, shape) in zip(pieces, shapes.items(), strict=True)}


def _buffer(tensors: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """The flat buffer of which these are consecutive pieces; None if they are not."""
    start = end = tensors[0].storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == tensors[0].untyped_storage().data_ptr()
        if not (same and tensor.is_contiguous() and tensor.storage_offset() == end and tensor.dtype == torch.int64):
            return None
        end += tensor.numel()
    return tensors[0].as_strided((end - start,), (1,), start)
