"""The complete model: encoder -> fusion -> mapping -> splice -> LLM -> loss. Or, in its place, the LLM alone.

Dimensions: B batch, S encoder tokens, P prompt tokens, T target tokens, X spliced length, H LLM width, C labels.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from bridge_ds.config.schema import Config
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.layout import Layout, layout_of
from bridge_ds.data.text.truncate import SoftPrompt
from bridge_ds.encoder.base import Encoder, Input, States
from bridge_ds.encoder.encoded import Encoded, source_rows
from bridge_ds.encoder.groups import joined
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.device_map import input_device
from bridge_ds.fusion import FUSIONS, refuse_other_heads
from bridge_ds.injection.base import Form, Injected
from bridge_ds.llm.attention import AttentionLayers
from bridge_ds.llm.base import LLM
from bridge_ds.llm.loss import nll_sum
from bridge_ds.llm.splice import IGNORE, Segment, Spliced, splice
from bridge_ds.llm.teaching import Teaching, divergence_sum
from bridge_ds.mapping import MAPPINGS
from bridge_ds.mapping.projector import Projector
from bridge_ds.objectives import OBJECTIVES

__all__ = ["TRAINABLE", "Absent", "BridgeModel", "Ids", "LLMAlone", "build_bridge"]

Ids: TypeAlias = tuple[torch.Tensor, torch.Tensor]
"""Token ids and mask, both [B, K]."""

TRAINABLE = ("fusion.", "mapping.", "injection.")
"""Prefixes of the parameters that are always trained, those of the bridge."""


class BridgeModel(nn.Module):
    """Both base models, frozen unless the run trains one (or LoRA's updates), and the bridge between them."""

    bases: tuple[str, ...] = ("encoder", "llm")
    """Attributes that hold a base model."""

    def __init__(self, encoder: Encoder, fusion: nn.Module, mapping: Projector, llm: LLM, bos: int | None) -> None:
        """Args:
        bos: first token id of the LLM's input; None = no BOS.
        """
        super().__init__()
        self.encoder = encoder
        self.fusion = fusion
        self.mapping = mapping
        self.llm = llm
        self.bos = bos
        self.apart = False
        """Whether encoder and LLM take their inputs on different devices (device map)."""
        self.teaching = Teaching()
        """The loss of batches with a lesson."""
        self.injection: Form | None = None
        """What the LLM's layers attend to beside their text; None = nothing."""
        self.prompt_in_input = True
        """Whether the soft prompt stands in the LLM's input."""

    @property
    def makes_prompt(self) -> bool:
        """Whether there is a soft prompt; otherwise fusion and mapping are absent."""
        return not isinstance(self.mapping, Absent)

    @property
    def soft_prompt(self) -> SoftPrompt:
        """Which positions of the LLM it takes."""
        return SoftPrompt.at(self.mapping.fixed_length, self.makes_prompt, self.prompt_in_input)

    @property
    def device(self) -> torch.device:
        """Device of all ids, that of the LLM's input. Not for models sharded by ZeRO-3."""
        return input_device(self.llm.model)

    def is_trained(self, name: str) -> bool:
        """Whether the parameter (or the bridge's buffer) of that name belongs to what the run trains."""
        part, _, rest = name.partition(".")
        return name.startswith(TRAINABLE) or (part in ("encoder", "llm") and rest in getattr(self, part).trained)

    def forward(self, batch: Batch, states: States | None = None, counted: bool = False) -> torch.Tensor:
        """Sum of the loss over the batch's target tokens, in nats, float32: -log p, or with a lesson what
        :attr:`teaching` says.

        If the batch has a layout, the host never waits for the GPU (tests/test_host_waits.py).

        Args:
            states: of the batch's sources, if the encoder has run already (`train.encode_once`).
            counted: add how many target tokens were the argmax; in self-teaching alone, those of the LLM alone.

        Returns:
            the sum alone, a scalar; with a lesson or a count [sum], [count], [sum of the divergence], as far as there.
        """
        taught_NV = None
        if batch.lesson is not None:  # first, so that nothing that backward needs is in memory meanwhile
            with torch.no_grad():
                taught_NV, _ = self._answers(batch.lesson)
        logits_NV, labels_N = self._answers(batch, states)
        right_N = labels_N if taught_NV is None or self.teaching.predicts else taught_NV.argmax(-1)
        count = [(logits_NV.argmax(-1) == right_N).sum().float()] if counted else []
        told_N = labels_N if batch.taught is None else labels_N.index_fill(0, batch.taught, IGNORE)
        nll = nll_sum(logits_NV, told_N) if taught_NV is None or self.teaching.predicts else torch.zeros(())
        if taught_NV is None:
            return torch.stack([nll, *count]) if counted else nll
        if batch.taught is not None:
            logits_NV = logits_NV.index_select(0, batch.taught)
        kl = divergence_sum(logits_NV, taught_NV, self.teaching.temperature)
        return torch.stack([self.teaching.loss(nll, kl), *count, kl.detach()])

    def _answers(self, batch: Batch, states: States | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits [N, V] from which the target tokens are predicted, and those tokens [N]."""
        layout = self._layout(batch)
        segments, injected = self._parts(batch, states)
        segments = [replace(segment, labels_BK=None) for segment in segments]
        embeds_BXH = splice(segments, order=layout.splice_order()).embeds_BXH
        # Right padding and a causal model: no real position ever attends to padding, so no mask is needed.
        logits_NV, _ = self.llm.logits_at(
            embeds_BXH, layout.positions, packed=layout.packed, injected=injected, use_cache=False
        )
        return logits_NV, layout.labels

    def spliced(self, batch: Batch, side: str = "right") -> Spliced:
        """The LLM's complete input, [head | soft, end | prompt | target], with labels on the targets.

        Args:
            batch: head, source, prompt and target may have no columns. A row without encoder tokens has no soft
                prompt.
            side: of the padding: `right` to train, `left` to generate.
        """
        layout = batch.layout
        order = layout.splice_order() if layout and not layout.packed and side == "right" else None
        segments, injected = self._parts(batch)
        return replace(splice(segments, side, order), injected=injected)

    def prefix(self, batch: Batch) -> Spliced:
        """The input before the answer, left-padded: :meth:`spliced` without the targets."""
        none = batch.target_ids[:, :0]
        return self.spliced(replace(batch, target_ids=none, target_mask=none, layout=None), side="left")

    def soft(self, batch: Batch, states: States | None = None) -> Segment:
        """The soft prompt: one vector per encoder token (or `mapping.fixed_length`), and the end vector. Rows without
        encoder tokens are masked out."""
        return self._soft(self._read(batch, states))

    def fused(self, batch: Batch, states: States | None = None) -> torch.Tensor:
        """What the mapping gets, [B, S, D], on the encoder's device; arguments as of :meth:`soft`."""
        return self._fused(self._read(batch, states))

    def _fused(self, read: Encoded) -> torch.Tensor:
        fused_BSD: torch.Tensor = self.fusion(read.states, read.mask_BS, read.rows)
        return fused_BSD

    def _read(self, batch: Batch, states: States | None) -> Encoded:
        device, own_BS = batch.source_ids.device, batch.source_mask
        batch = self.at_encoder(batch)
        if batch.layout is None:  # else every row has a source
            seen_BS = batch.source_mask.clone()
            seen_BS[~seen_BS.any(1), 0] = 1  # an encoder may return NaN for a row of padding
            batch = replace(batch, source_mask=seen_BS)
        found = self.encode(batch) if states is None else states
        return Encoded(found, batch.source_mask, source_rows(batch), own_BS, batch.layout is None, device)

    def _soft(self, read: Encoded) -> Segment:
        soft_BSH, mask_BS = self.mapping(self._fused(read), read.mask_BS)
        if read.some_empty:
            mask_BS = mask_BS * read.own_BS.any(1, keepdim=True).to(mask_BS)
        return Segment(soft_BSH.to(read.device), mask_BS.to(read.device))

    def _injected(self, read: Encoded, soft: Segment | None) -> Injected | None:
        """What the LLM's layers attend to beside the text."""
        if self.injection is None:
            return None
        if self.prompt_in_input or soft is None:
            return self.injection.injected(read.states, read.own_BS.to(read.mask_BS.device), read.rows, ())
        prompt, mask_BK = self.llm.keys_and_values(soft)
        return self.injection.injected(read.states, mask_BK, None, prompt)

    def at_encoder(self, batch: Batch) -> Batch:
        """The batch on the encoder's device. States, fusion and mapping are there too; :meth:`soft` moves the soft
        prompt back to the device of the LLM's input."""
        if not self.apart:
            return batch
        home = input_device(self.encoder.model)
        return Batch.of({name: tensor.to(home) for name, tensor in batch.tensors().items()})

    def encode(self, batch: Batch) -> States:
        """The encoder's states of the batch, L tensors [B, S, D]."""
        inputs, encoder = self.encoder_inputs(batch), cast(Any, self.encoder)
        return encoder(*inputs[0]) if len(inputs) == 1 else joined(batch, encoder.encode_all(inputs))

    def encoder_inputs(self, batch: Batch) -> list[Input]:
        """Arguments of the encoder, from the batch: of all rows together, or of each group of them that is to be read
        together. Where one is trained they are not, for ranks must call it equally often."""
        if batch.layout and batch.layout.groups and not self.encoder.trained:
            ids, mask = batch.source_ids.flatten(), batch.source_mask.flatten()
            return [(ids[group], mask[group], True) for group in batch.layout.groups]
        rows = source_rows(batch)
        return [(batch.source_ids, batch.source_mask, None if rows is None else rows.index is not None)]

    def head(self, batch: Batch) -> Ids:
        """LLM ids before the soft prompt: those of the batch, else BOS if the LLM has one."""
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
            soft_prompt=self.prompt_in_input,
        )

    def _parts(self, batch: Batch, states: States | None = None) -> tuple[list[Segment], Injected | None]:
        """[head | soft, end | prompt | target], and what is beside them; ONE call of the LLM's embedding (under ZeRO-3
        each call gathers it)."""
        head_ids, head_mask = self.head(batch)
        ids = [head_ids, batch.prompt_ids, batch.target_ids]
        embeds = self.llm.embed(torch.cat(ids, dim=1)).split([part.shape[1] for part in ids], dim=1)
        head = Segment(embeds[0], head_mask)
        prompt = Segment(embeds[1], batch.prompt_mask)
        target = Segment(embeds[2], batch.target_mask, batch.target_ids if batch.target_ids.shape[1] else None)
        if not batch.source_mask.shape[1] or (batch.layout is None and not bool(batch.source_mask.any())):
            return [head, prompt, target], None
        read = self._read(batch, states)
        soft = None
        if self.makes_prompt:
            soft = self._soft(read)
            soft = replace(soft, embeds_BKH=soft.embeds_BKH.to(head.embeds_BKH.dtype))
        injected = self._injected(read, soft)
        if injected is not None:
            injected = injected.to(head.embeds_BKH.dtype)
        if soft is None or not self.prompt_in_input:
            return [head, prompt, target], injected
        return [head, soft, prompt, target], injected


class LLMAlone(BridgeModel):
    """The LLM without a bridge, which is trained on prompt and target as text (`model.encoder: none`). No batch of it
    has an encoder token, so that nothing calls what is absent."""

    bases = ("llm",)

    def __init__(self, llm: LLM, bos: int | None) -> None:
        absent: Any = Absent()
        super().__init__(absent, absent, absent, llm, bos)


class Absent(nn.Module):
    """What is asked of an encoder, a fusion, a mapping and an LLM where there is none."""

    blocks, fixed_length = 0, 0
    by_layer = None
    trained: frozenset[str] = frozenset()

    def weights(self) -> torch.Tensor:
        """Of no layer."""
        return torch.zeros(0)


def build_bridge(config: Config, encoder: Encoder, llm: LLM, bos: int | None) -> BridgeModel:
    """Make fusion and mapping in float32 (without separate masters) from `run.seed`, the same on every rank.

    Raises:
        ConfigError: fusion.heads does not divide the encoder's width.
    """
    kind, injection = FUSIONS[config.fusion.name], config.injection
    encoder.include_embeddings = config.fusion.include_embeddings
    options = {option: getattr(config.fusion, option) for option in kind.options}
    fusion: Any = Absent()
    mapping: Any = Absent()
    form = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        if injection.makes_prompt:
            refuse_other_heads(config.fusion.name, config.fusion.heads, encoder.width)
            fusion = kind(num_layers=encoder.num_layers, width=encoder.width, **options)
            of = config.mapping
            sizes = {key: getattr(of, key) for key in MAPPINGS[of.kind].options}
            mapping = Projector(of.kind, encoder.width, llm.width, end_init=of.end_init, **sizes)
        if injection.spec is not None:
            llm.attention = AttentionLayers(llm.model, injection.llm_layers, injection.spec.projects)
            own = {key: getattr(injection, key) for key in injection.spec.options}
            form = injection.spec(encoder.num_layers, encoder.width, llm.width, len(llm.attention), **own)
            form.backend = config.fusion.backend
    model = BridgeModel(encoder, fusion, mapping, llm, bos)
    model.injection = form
    model.prompt_in_input = injection.prompt_in_input
    always = config.data.augment_prompt and config.data.augment_share == 1
    if bos is None and not (model.prompt_in_input or always):
        raise ConfigError(
            f"injection.form is {injection.form} without a soft prompt in the LLM's input, the LLM has no BOS and "
            "reads no text, so that an answer follows nothing; expected one of them; set data.augment_prompt=true, or "
            "data.bos=always if its tokenizer has one."
        )
    train, predicts = config.train, OBJECTIVES[config.data.objective].predicts
    weight = train.teaching_weight if predicts else 1.0
    model.teaching = Teaching(weight, train.teaching_temperature, predicts)
    return model
