"""What a computation allocates and how large its results are, seen by every operator that runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Counts bytes of storages made inside, while anything still holds them; views count once, with their storage."""

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self.largest = 0
        """Elements of the largest new tensor."""
        self._known = {tensor.untyped_storage().data_ptr() for tensor in known}
        self._seen: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._note(tensor)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if storage.nbytes() == 0 or storage.data_ptr() in self._known or key in self._seen:
            return
        size = storage.nbytes()
        self.largest = max(self.largest, size // tensor.element_size())
        self.live += size
        self.peak = max(self.peak, self.live)
        self._seen[key] = weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.pop(key, None)
        self.live -= size
