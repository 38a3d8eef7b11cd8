"""An encoder of which nothing is trained but the embeddings of added pieces: every other weight, and so every text
without such pieces, stays as it is bit for bit.

Dimensions: B batch, S encoder tokens, D encoder width, N added pieces.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bridge_ds.adapt.extension import read_extension
from bridge_ds.compat.deepspeed import whole
from bridge_ds.config.names import resolve
from bridge_ds.encoder.base import Encoder
from bridge_ds.errors import ConfigError

__all__ = ["NewRowsEncoder", "first_new_row"]


def first_new_row(encoder: str) -> int:
    """The first id that `--extend-vocabulary` added to an encoder, as its folder says.

    Raises:
        ConfigError: the folder does not say so.
    """
    found = read_extension(Path(resolve(encoder)))
    if found is None or not found.first:
        raise ConfigError(
            f"adapt.new_rows_only is true and model.encoder {encoder!r} has no added pieces; expected a folder that "
            "bridge-ds adapt --extend-vocabulary wrote; give the option."
        )
    return found.first


class _Rows(nn.Module):
    """The new rows in float32. A module of its own, for under ZeRO-3 a weight is there inside its module's forward
    alone."""

    def __init__(self, rows_ND: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(rows_ND)

    def forward(self, ids_BS: torch.Tensor) -> torch.Tensor:
        """[B, S, D]; numbers from 0."""
        return F.embedding(ids_BS, self.weight)


class NewRowsEncoder(Encoder):
    """Frozen weights in `model.dtype`, with new rows beside the table. Without these it is its own teacher."""

    def __init__(self, model: Any, first: int) -> None:
        """Args:
        model: whole or sharded.
        first: id of the first new row; the others follow it.
        """
        super().__init__(model)
        self.first, self.original = first, False
        self.model.requires_grad_(False)
        table = model.get_input_embeddings()
        self.rows = _Rows(_rows_of(table.weight, first))
        self.trained = frozenset({"rows.weight"})
        # T5's layers have a table of their own, which shares its weight with the model's.
        tables = [each for each in model.modules() if isinstance(each, nn.Embedding) and each.weight is table.weight]
        self._hooks = [each.register_forward_hook(self._put) for each in tables]
        self.train(False)

    def train(self, mode: bool = True) -> NewRowsEncoder:
        """Stays in eval mode."""
        super().train(False)
        return self

    def _put(self, table: Any, inputs: tuple[Any, ...], old_BSD: torch.Tensor) -> torch.Tensor | None:
        if self.original:
            return None
        ids_BS = inputs[0]
        new_BSD = self.rows((ids_BS - self.first).clamp(min=0)) * getattr(table, "embed_scale", 1.0)
        # Of a batch without new pieces too, for ranks reduce gradients together.
        return torch.where((ids_BS >= self.first)[..., None], new_BSD.to(old_BSD.dtype), old_BSD)

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """The original encoder while open."""
        self.original = True
        try:
            yield
        finally:
            self.original = False

    @torch.no_grad()
    def merged(self) -> Any:
        """The transformers model, whole, with the rows in its table."""
        for hook in self._hooks:
            hook.remove()
        table = self.model.get_input_embeddings().weight
        table[self.first :] = self.rows.weight.to(table.dtype)
        return self.model


def _rows_of(table_VD: torch.Tensor, first: int) -> torch.Tensor:
    """A float32 copy of the rows from `first` on."""
    with whole([table_VD]):
        return table_VD.detach()[first:].float().clone()
