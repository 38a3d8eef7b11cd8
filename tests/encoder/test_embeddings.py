"""`fusion.include_embeddings`: one state more, first."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn

from bridge_ds.encoder.frozen import FrozenEncoder


class FakeModel(nn.Module):
    """Three blocks whose states are their numbers; 0 is the embeddings."""

    config = SimpleNamespace(num_layers=3, d_model=2)

    def forward(self, input_ids: torch.Tensor, **_: object) -> SimpleNamespace:
        return SimpleNamespace(hidden_states=[torch.full((*input_ids.shape, 2), float(n)) for n in range(4)])


def test_embeddings_come_first_and_only_when_asked_for() -> None:
    encoder = FrozenEncoder(FakeModel())
    ids = torch.zeros(1, 2, dtype=torch.long)
    assert encoder.num_layers == 3
    assert [state[0, 0, 0].item() for state in encoder(ids, ids)] == [1, 2, 3]
    encoder.include_embeddings = True
    assert encoder.num_layers == 4
    assert [state[0, 0, 0].item() for state in encoder(ids, ids)] == [0, 1, 2, 3]
