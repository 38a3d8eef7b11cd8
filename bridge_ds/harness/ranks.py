"""What lm_eval asks of a model that several ranks share."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["Ranks"]


class Ranks:
    """Mixin of :class:`bridge_ds.harness.model.BridgeLM`."""

    rank: int
    """This process."""
    world_size: int
    """How many there are."""

    def all_gather(self, tensor: torch.Tensor) -> torch.Tensor:
        """Every rank's tensor, end to end."""
        if self.world_size == 1:
            return tensor
        found = [torch.empty_like(tensor) for _ in range(self.world_size)]
        torch.distributed.all_gather(found, tensor.contiguous())
        return torch.cat([part.reshape(-1) for part in found]) if tensor.ndim == 0 else torch.cat(found)

    def gather_object(self, obj: Any, dst: int = 0) -> list[Any] | None:
        """Every rank's object, on rank `dst`."""
        if self.world_size == 1:
            return [obj]
        found: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, found, dst=dst)
        return found

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            torch.distributed.barrier()
