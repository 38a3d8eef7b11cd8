"""How the mapping begins: fitted to the LLM's token embeddings, or at their scale (`mapping.init`).

Both tokenizers read the same English texts, and say which characters each token stands for. The mapping's last layer is
the linear map that takes the fused state of each encoder token closest to the mean of the LLM's embeddings of the
tokens over the same characters, by ridge regression; the end vector begins as the embedding of the token before an
answer. So the LLM reads something like the text from the first step on, in place of vectors that mean nothing to it.

Dimensions: B batch, S encoder tokens, M of them that are fitted, K LLM tokens that they share characters with, D what
the layer gets, H LLM width.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import torch

from bridge_ds.compat.deepspeed import set_parameters
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.collate import collate
from bridge_ds.data.loading.ids import TokenizedSample
from bridge_ds.data.loading.loader import StepLoader
from bridge_ds.data.loading.spans import Covered, covered
from bridge_ds.data.loading.tokenize import Tokenizers
from bridge_ds.engine.calibrate import CALIBRATION_ROWS, calibrate, embedding_rms
from bridge_ds.engine.distributed import on_all
from bridge_ds.engine.kept import RunStates
from bridge_ds.errors import DataError
from bridge_ds.mapping.least_squares import LeastSquares
from bridge_ds.world import World

__all__ = ["begin_mapping"]

_log = logging.getLogger(__name__)
_RIDGE = 1e-3
"""Of the regression. On SIB-200 with a 118 M encoder 1e-3 and 1e-2 explained the same (R^2 0.63), 0.1 less."""
_ROWS = 16
"""Texts that are encoded together."""


def begin_mapping(
    engine: Any, config: Config, tokenizers: Tokenizers, loader: StepLoader, states: RunStates, world: World
) -> list[str]:
    """Give the mapping of a new run its first values, the same on every rank (a collective).

    Returns:
        lines for the log; none where it keeps what torch gave it.

    Raises:
        ConfigError: a tokenizer does not say which characters its tokens stand for.
        DataError: a sample cannot be read, or no text can be fitted to.
    """
    if not config.has_soft_prompt:
        return []
    if config.mapping.init == "embeddings":
        return [_fit(engine, config, tokenizers, loader, states, world)]
    if not config.mapping.match_embedding_rms:
        return []
    rows = on_all(lambda: loader.first_rows(CALIBRATION_ROWS), world)
    before, now = calibrate(engine, *states.of_rows(engine.module, rows))
    return [f"soft prompt RMS {before:.4g}, scaled to {now:.4g} as the LLM's token embeddings"]


@torch.no_grad()
def _fit(
    engine: Any, config: Config, tokenizers: Tokenizers, loader: StepLoader, states: RunStates, world: World
) -> str:
    model = engine.module
    texts, languages = on_all(lambda: loader.first_texts(config.mapping.init_samples), world)
    limit = config.data.max_source_tokens
    rows = on_all(lambda: covered(tokenizers, texts, languages, limit), world)
    if not rows:
        raise DataError(
            f"mapping.init is embeddings and none of the first {len(texts)} texts can be fitted to; expected texts of "
            f"at most data.max_source_tokens={limit} tokens that both tokenizers read; set mapping.init=random."
        )
    engine.eval()
    sums, scale = None, embedding_rms(model)
    end_H: torch.Tensor | None = None
    for part in _parts(rows):
        batch = collate([TokenizedSample(row.source, [], [], ()) for row in part], tokenizers.encoder_pad_id, 0)
        batch, kept = states.of_rows(model, batch)
        batch_device = batch.source_ids.device
        features_BSD = model.mapping.before_last(model.fused(batch, kept))
        index_M, owner_K, ids_K = _tokens(part, features_BSD.shape[1], features_BSD.device)
        lasts_B = torch.tensor([row.last for row in part], device=ids_K.device)
        embeds_KH = model.llm.embed(torch.cat([ids_K, lasts_B])[None].to(batch_device))[0].to(ids_K.device)
        embeds_KH = embeds_KH.double()
        own_KH, last_BH = embeds_KH[: len(ids_K)], embeds_KH[len(ids_K) :]
        mean_MH = own_KH.new_zeros(len(index_M), own_KH.shape[1]).index_add_(0, owner_K, own_KH)
        mean_MH /= torch.bincount(owner_K, minlength=len(index_M))[:, None]
        sums = sums or LeastSquares(features_BSD.shape[-1], own_KH.shape[1], features_BSD.device)
        sums.add(features_BSD.flatten(0, 1)[index_M], mean_MH)
        end_H = last_BH.sum(0) if end_H is None else end_H + last_BH.sum(0)
    assert sums is not None and end_H is not None
    found = sums.solve(_RIDGE)
    # Divided by the scale that follows: the learning rate meets weights of the size that it meets in a random mapping.
    last = model.mapping.last
    values = {last.weight: found.weight_HD, last.bias: found.bias_H, model.mapping.end: end_H / len(rows)}
    set_parameters(engine, {parameter: (value / scale).float() for parameter, value in values.items()})
    model.mapping.scale.copy_(scale)
    engine.train()
    return (
        f"mapping fitted to the LLM's embeddings of {sums.tokens:,} tokens in {len(rows):,} texts: they explain "
        f"{100 * found.explained:.0f} % of their variance (mapping.init)"
    )


def _parts(rows: list[Covered]) -> Iterator[list[Covered]]:
    """By length, so that little is padding."""
    rows = sorted(rows, key=lambda row: len(row.source))
    return (rows[start : start + _ROWS] for start in range(0, len(rows), _ROWS))


def _tokens(rows: list[Covered], width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Places [M] among B x S of encoder tokens with LLM tokens; for each of these [K] which of the M, and its id."""
    places = [(n * width + at, ids) for n, row in enumerate(rows) for at, ids in enumerate(row.same) if ids]
    owner = [m for m, (_, ids) in enumerate(places) for _ in ids]
    flat = [one for _, ids in places for one in ids]
    index_M, owner_K, ids_K = (torch.tensor(v, device=device) for v in ([at for at, _ in places], owner, flat))
    return index_M, owner_K, ids_K
