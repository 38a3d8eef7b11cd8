"""The encoder alone as it is trained (`model.llm: none`): the encoder, what predicts hidden tokens, and its teacher.

Dimensions: B batch, S encoder tokens, L encoder layers, D encoder width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F

from bridge_ds.adapt.align import apart, infonce
from bridge_ds.adapt.head import Head, corruption_of, find_head, load_head
from bridge_ds.adapt.rows import NewRowsEncoder, first_new_row
from bridge_ds.bridge import Absent, BridgeModel
from bridge_ds.config.schema import Config
from bridge_ds.config.schema.adapt import AdaptConfig
from bridge_ds.data.loading.adapting import Adapting
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.loading.tokenize import Tokenizers, load_tokenizers
from bridge_ds.encoder.base import Encoder, States
from bridge_ds.encoder.frozen import encoder_base, load_encoder
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.device_map import input_device
from bridge_ds.frozen.load import DTYPES, load_complete
from bridge_ds.llm.updated import Updated
from bridge_ds.objectives import OBJECTIVES

__all__ = ["EncoderAlone", "UpdatedEncoder", "build_encoder_alone", "refuse_other_layers", "tokenizers_of"]

_log = logging.getLogger(__name__)


class UpdatedEncoder(Updated, Encoder):
    """Frozen weights in `model.dtype` with LoRA's updates beside them. Without the updates it is its own teacher."""

    called = "encoder"
    task_type = "FEATURE_EXTRACTION"

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.nothing_updated()
        self.train(False)

    def train(self, mode: bool = True) -> UpdatedEncoder:
        """Stays in eval mode, but for LoRA's dropout."""
        super().train(False)
        self.drop(mode)
        return self


class EncoderAlone(BridgeModel):
    """Trained on texts of which something is hidden, on translations, or on both; see `data.objective`."""

    bases = ("encoder",)

    def __init__(
        self, encoder: Encoder, predictor: Head | None, teacher: Encoder | None, config: AdaptConfig, dtype: torch.dtype
    ) -> None:
        """Args:
        encoder: with something to train.
        predictor: of hidden tokens; None = no text is read.
        teacher: the original encoder, frozen; None = `encoder` without its updates is that.
        config: of the run.
        dtype: of the matrix products.
        """
        absent: Any = Absent()
        super().__init__(encoder, absent, absent, absent, None)
        self.predictor = predictor
        self.teacher = teacher
        self.config = config
        self.dtype = dtype
        self.layers = sorted(layer - 1 for layer in config.layers) or list(range(encoder.num_layers))

    @property
    def device(self) -> torch.device:
        """See :attr:`BridgeModel.device`."""
        return input_device(self.encoder.model)

    def is_trained(self, name: str) -> bool:
        """See :meth:`BridgeModel.is_trained`."""
        part, _, rest = name.partition(".")
        return part in ("encoder", "predictor") and rest in getattr(self, part).trained

    def forward(self, batch: Batch, states: States | None = None, counted: bool = False) -> torch.Tensor:
        """Sum of -log p over the hidden tokens and, weighted, over the pairs, in nats.

        Args:
            states: see :meth:`BridgeModel.forward`; there are none.
            counted: return float32 [2], the sum and how many (likewise weighted) were right.
        """
        pairs = bool(batch.prompt_mask.shape[1])
        english = self.taught(batch) if pairs else ()  # first: under ZeRO-3 backward follows the later pass
        own = self.encoder(batch.source_ids, batch.source_mask)
        found = torch.zeros(2, device=batch.source_ids.device)
        if self.predictor is not None:
            casting: Any = nullcontext()
            if self.dtype != torch.float32:
                casting = torch.autocast(batch.source_ids.device.type, self.dtype, cache_enabled=False)
            with casting:
                found = found + self.predictor(own[-1], batch)
        if pairs:
            pair_B = batch.prompt_mask.bool().any(1)
            found = found + self.config.pair_weight * infonce(
                own, batch.source_mask, english, batch.prompt_ids, batch.prompt_mask, pair_B, self.config.temperature,
                self.layers,
            )  # fmt: skip
            if self.config.token_weight:
                pulled = apart(own, batch.source_mask, english, batch.prompt_mask, pair_B, self.layers)
                found = found + self.config.pair_weight * self.config.token_weight * F.pad(pulled[None], (0, 1))
        if self.predictor is None and self.layers[-1] + 1 < len(own):
            found = found + 0.0 * own[-1].float().sum()  # ZeRO-3 waits for a gradient of all that is trained
        return found if counted else found[0]

    @torch.no_grad()
    def taught(self, batch: Batch) -> States:
        """The original encoder's states of the English sentences, L of [B, P, D]."""
        seen_BP = batch.prompt_mask.clone()
        seen_BP[:, 0] = 1  # an encoder may return NaN for a row of padding
        if self.teacher is not None:
            found: States = self.teacher(batch.prompt_ids, seen_BP)
            return found
        assert isinstance(self.encoder, UpdatedEncoder | NewRowsEncoder)
        with self.encoder.without_adapters():
            found = self.encoder(batch.prompt_ids, seen_BP)
        return found


def build_encoder_alone(config: Config, sharding: Callable[[str], Any]) -> EncoderAlone:
    """Load the encoder, what predicts hidden tokens, and the teacher; updates are put in afterwards.

    Args:
        config: of the run.
        sharding: called with the dtype of what is loaded next; its result must live until that is loaded.

    Raises:
        ConfigError: the encoder is missing or incomplete, or has fewer layers than `adapt.layers` names.
    """
    of, whole = config.model, config.encoder.trainable
    keep_alive = sharding("float32" if whole else of.dtype)
    encoder = load_encoder(of, config.encoder) if whole else _beside(config)
    refuse_other_layers(config.adapt, encoder.num_layers)
    predictor, teacher, objective = None, None, OBJECTIVES[config.data.objective]
    if objective.denoises:
        keep_alive = sharding("float32")
        predictor = load_head(config, encoder.model)
    if objective.aligns and whole:
        keep_alive = sharding(of.dtype)
        teacher = load_encoder(of)
    model = EncoderAlone(encoder, predictor, teacher, config.adapt, DTYPES[of.dtype])
    model.keep_alive = keep_alive
    return model


def refuse_other_layers(config: AdaptConfig, layers: int) -> None:
    """Raises ConfigError where `adapt.layers` names one that an encoder of so many does not have."""
    if max(config.layers, default=0) > layers:
        raise ConfigError(
            f"adapt.layers is {list(config.layers)} and the encoder has {layers} layers; expected numbers of these, "
            "from 1; correct it."
        )


def _beside(config: Config) -> Encoder:
    """Frozen weights, with what is trained beside them."""
    of = config.model
    first = first_new_row(of.encoder) if config.adapt.new_rows_only else 0
    model = load_complete(encoder_base(of), dtype=DTYPES[of.dtype])
    return NewRowsEncoder(model, first) if first else UpdatedEncoder(model)


def tokenizers_of(config: Config) -> Tokenizers:
    """The tokenizers of any run; where the encoder alone is trained, they also say how its samples are made.

    Raises:
        ConfigError: as :func:`bridge_ds.data.loading.tokenize.load_tokenizers`; or nothing of the encoder's vocabulary
            can stand for a masked token.
    """
    found = load_tokenizers(config.model, data=config.data)
    if config.model.has_llm:
        return found
    objective = OBJECTIVES[config.data.objective]
    if objective.denoises:
        _log.info(f"note: {find_head(config.model).remark}.")
    corruption = corruption_of(config, found.encoder) if objective.denoises else None
    return replace(found, adapting=Adapting(corruption, config.adapt, objective.aligns))
