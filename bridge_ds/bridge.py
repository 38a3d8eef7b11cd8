"""The whole model, the one module that sees every stage: encoder -> fusion -> mapping -> splice -> LLM -> loss.

Letters: B batch, S encoder tokens, P prompt tokens, T target tokens, X spliced length, H LLM width, C labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeAlias

import torch
from torch import nn

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.layout import Layout, layout_of
from bridge_ds.encoder.base import Encoder, Input, States
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.device_map import input_device
from bridge_ds.fusion import FUSIONS
from bridge_ds.fusion.kernels.rows import Rows
from bridge_ds.llm.base import LLM
from bridge_ds.llm.loss import nll_sum
from bridge_ds.llm.splice import Segment, Spliced, splice
from bridge_ds.mapping import MAPPINGS
from bridge_ds.mapping.projector import Projector

__all__ = ["TRAINABLE", "BridgeModel", "Ids", "build_bridge"]

Ids: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Token ids and mask, both [B, K]."""

TRAINABLE = ("fusion.", "mapping.")
"""Prefixes of the parameters that are trained always, the bridge's."""


class BridgeModel(nn.Module):
    """Two base models, frozen unless the run trains one, or updates of the LLM, and the bridge between them."""

    def __init__(self, encoder: Encoder, fusion: nn.Module, mapping: Projector, llm: LLM, bos: int | None) -> None:
        """Args:
        bos: token id that opens the LLM's input, or none where the LLM has none.
        """
        super().__init__()
        self.encoder = encoder
        self.fusion = fusion
        self.mapping = mapping
        self.llm = llm
        self.bos = bos
        self.apart = False
        """The encoder takes its input on another device than the LLM (by a device map)."""

    @property
    def device(self) -> torch.device:
        """Where the input goes, encoder ids too: where the LLM takes its own. Not for models sharded by ZeRO-3."""
        return input_device(self.llm.model)

    def is_trained(self, name: str) -> bool:
        """Whether the parameter (or the bridge's buffer) of that name belongs to what the run trains."""
        part, _, rest = name.partition(".")
        return name.startswith(TRAINABLE) or (part in ("encoder", "llm") and rest in getattr(self, part).trained)

    def forward(self, batch: Batch, states: States | None = None, counted: bool = False) -> torch.Tensor:
        """Sum of -log p over the batch's target tokens, in nats, a float32 scalar.

        A batch that has its layout is computed without waiting for the device (tests/test_host_waits.py).

        Args:
            states: of the batch's sources, where the encoder has made them before (`train.encode_once`).
            counted: give float32 [2], the sum and the number of target tokens that were the likeliest.
        """
        layout = self._layout(batch)
        open_BK, prompt, target = self._text(batch, with_targets=True)
        segments = [open_BK, self.soft(batch, states), prompt, replace(target, labels_BK=None)]
        embeds_BXH = splice(segments, order=layout.splice_order()).embeds_BXH
        # Right padding and a causal model: no real place ever sees padding, so no mask is needed.
        logits_NV, _ = self.llm.logits_at(embeds_BXH, layout.places, use_cache=False)
        nll = nll_sum(logits_NV, layout.labels)
        return torch.stack([nll, (logits_NV.argmax(-1) == layout.labels).sum().float()]) if counted else nll

    def spliced(self, batch: Batch) -> Spliced:
        """[head | soft | end | prompt | target], right-padded, with labels on the targets."""
        open_BK, prompt, target = self._text(batch, with_targets=True)
        return splice([open_BK, self.soft(batch), prompt, target], order=self._layout(batch).splice_order())

    def prefix(self, batch: Batch, use_bridge: bool = True) -> Spliced:
        """All that comes before the answer, left-padded; without the bridge the soft prompt is left out."""
        open_BK, prompt, _ = self._text(batch, with_targets=False)
        soft = [self.soft(batch)] if use_bridge else []
        return splice([open_BK, *soft, prompt], side="left")

    def soft(self, batch: Batch, states: States | None = None) -> Segment:
        """The soft prompt: one vector for each encoder token, or as many as the mapping makes, and the end vector."""
        device = batch.source_ids.device
        batch = self.at_encoder(batch)
        if states is None:
            states = self.encode(batch)
        fused_BSD = self.fusion(states, batch.source_mask, _source_rows(batch))
        soft_BSH, mask_BS = self.mapping(fused_BSD, batch.source_mask)
        return Segment(soft_BSH.to(device), mask_BS.to(device))

    def at_encoder(self, batch: Batch) -> Batch:
        """The batch where the encoder takes it. Its states, fusion and mapping are there too; the soft prompt comes
        back to the ids' device, where the LLM takes it."""
        if not self.apart:
            return batch
        home = input_device(self.encoder.model)
        return Batch.of({name: tensor.to(home) for name, tensor in batch.tensors().items()})

    def encode(self, batch: Batch) -> States:
        """The encoder's states of the batch, L tensors [B, S, D]."""
        return self.encoder(*self.encoder_input(batch))

    def encoder_input(self, batch: Batch) -> Input:
        """What the encoder takes of the batch."""
        rows = _source_rows(batch)
        return batch.source_ids, batch.source_mask, None if rows is None else rows.index is not None

    def around(self, before: Ids, source: Ids, after: Ids, target: Ids | None = None, side: str = "left") -> Spliced:
        """[before | soft, end | after | target]: LLM tokens on both sides of the soft prompt, as a chat template needs.

        Args:
            before: LLM ids and mask [B, K]; K may be 0, as everywhere here.
            source: encoder ids and mask [B, S]; a row without a token has no soft prompt.
            after: LLM ids and mask.
            target: LLM ids and mask of what is to be predicted.
            side: of the padding.
        """
        parts = [before, after, *([target] if target else [])]
        embeds = self.llm.embed(torch.cat([ids for ids, _ in parts], dim=1))
        first, *rest = embeds.split([ids.shape[1] for ids, _ in parts], dim=1)
        segments = [Segment(first, before[1])]
        if bool(source[1].any()):
            soft = self.soft_of(*source)
            segments.append(Segment(soft.embeds_BKH.to(first), soft.mask_BK.to(first.device)))
        segments.append(Segment(rest[0], after[1]))
        if target:
            segments.append(Segment(rest[1], target[1], target[0]))
        return splice(segments, side)

    def soft_of(self, source_ids: torch.Tensor, source_mask: torch.Tensor) -> Segment:
        """The soft prompt of encoder ids and mask [B, S]; masked out whole in rows without a token."""
        has_B = source_mask.any(1)
        seen_BS = source_mask.clone()
        seen_BS[~has_B, 0] = 1  # an encoder may make NaN of a row of padding
        none = source_ids.new_zeros(len(source_ids), 0)
        soft = self.soft(Batch(source_ids, seen_BS, none, none, none, none))
        return Segment(soft.embeds_BKH, soft.mask_BK * has_B[:, None].to(soft.mask_BK))

    def head(self, batch: Batch) -> Ids:
        """LLM ids before the soft prompt: those of the batch, else BOS, where the LLM has one."""
        if batch.head_ids is not None and batch.head_mask is not None:
            return batch.head_ids, batch.head_mask
        rows = batch.source_ids.shape[0]
        opening = batch.prompt_ids.new_full((rows, 0 if self.bos is None else 1), self.bos or 0)
        return opening, torch.ones_like(opening)

    def _layout(self, batch: Batch) -> Layout:
        opening = self.bos is not None
        return batch.layout or layout_of(
            batch.source_mask,
            batch.prompt_mask,
            batch.target_mask,
            batch.target_ids,
            opening,
            batch.head_mask,
            fixed_length=self.mapping.fixed_length,
        )

    def _text(self, batch: Batch, with_targets: bool) -> tuple[Segment, Segment, Segment]:
        """Head, prompt and target segments from ONE call of the embedding (under ZeRO-3 each call gathers it)."""
        first_ids, first_mask = self.head(batch)
        masks = [first_mask, batch.prompt_mask, batch.target_mask]
        ids = [first_ids, batch.prompt_ids, batch.target_ids]
        if not with_targets:
            ids[2], masks[2] = ids[2][:, :0], masks[2][:, :0]
        parts = self.llm.embed(torch.cat(ids, dim=1)).split([part.shape[1] for part in ids], dim=1)
        labels = [None, None, ids[2]]
        first, prompt, target = (Segment(e, m, y) for e, m, y in zip(parts, masks, labels, strict=True))
        return first, prompt, target


def _source_rows(batch: Batch) -> Rows | None:
    """The encoder's real tokens, where the batch has its layout."""
    if batch.layout is None:
        return None
    index_M, total = batch.layout.source_rows, batch.source_mask.numel()
    return Rows(total, len(index_M), index_M if len(index_M) < total else None)


def build_bridge(config: Config, encoder: Encoder, llm: LLM, bos: int | None) -> BridgeModel:
    """Make fusion and mapping in float32 (they are their own masters) from `run.seed`, the same on every rank.

    Raises:
        ConfigError: fusion.heads does not divide the encoder's width.
    """
    if encoder.width % config.fusion.heads:
        raise ConfigError(
            f"fusion.heads is {config.fusion.heads}, which does not divide the encoder's width {encoder.width}."
        )
    kind = FUSIONS[config.fusion.name]
    encoder.include_embeddings = config.fusion.include_embeddings
    options = {option: getattr(config.fusion, option) for option in kind.options}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        fusion = kind(num_layers=encoder.num_layers, width=encoder.width, **options)
        of = config.mapping
        sizes = {key: getattr(of, key) for key in MAPPINGS[of.kind].options}
        mapping = Projector(of.kind, encoder.width, llm.width, end_init=of.end_init, **sizes)
    return BridgeModel(encoder, fusion, mapping, llm, bos)
