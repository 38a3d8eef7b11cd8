"""What predicts the hidden part of a text from the encoder's last state: the head or decoder that the encoder was
pretrained with, where its files have it, or else its own token embeddings. None of it is kept after training.

Dimensions: B batch, S encoder tokens, D encoder width, N masked tokens, T tokens that a decoder writes, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from bridge_ds.config.schema import Config, ModelConfig
from bridge_ds.data.loading.batch import Batch
from bridge_ds.data.text.corrupt import Corruption
from bridge_ds.errors import ConfigError
from bridge_ds.frozen.check import BaseModel, check_base
from bridge_ds.frozen.configs import base_config
from bridge_ds.frozen.load import load_complete
from bridge_ds.frozen.tokenizer import load_tokenizer

__all__ = ["Head", "HeadKind", "SpanDecoder", "TokenHead", "corruption_of", "find_head", "load_head"]

_T5 = ("t5", "mt5", "umt5")
"""Types whose decoder was pretrained on spans."""
_DEBERTA = {
    r"^lm_predictions\.lm_head\.(dense|LayerNorm)\.": r"cls.predictions.transform.\1.",
    r"^lm_predictions\.lm_head\.bias": "cls.predictions.bias",
}
"""The head of DeBERTa v2 and v3 (mDeBERTa) under its published names -> those of a class with an output layer of its
own, which shares the embeddings' weight; transformers' class for the former reads that inside the head's forward."""


@dataclass(frozen=True)
class HeadKind:
    """What an encoder's files have to predict tokens with."""

    base: BaseModel | None
    """The model with its head or decoder; None = the files have none."""
    sentinels: tuple[int, ...]
    """Ids of `<extra_id_0>` and on, for a decoder; empty = single tokens are masked."""

    @property
    def remark(self) -> str:
        """How the encoder is trained on text, for the user."""
        if self.sentinels:
            return "spans of a text are hidden, which its decoder writes; the decoder is not kept"
        if self.base:
            return "tokens of a text are masked, which its own head predicts; the head is not kept"
        return (
            "tokens of a text are masked, which its token embeddings and a new bias predict, for its files hold no "
            "head for masked tokens"
        )


@lru_cache(maxsize=4)
def find_head(config: ModelConfig) -> HeadKind:
    """What `model.encoder` can predict tokens with; from its files' headers alone.

    Raises:
        ConfigError: there is no such encoder.
    """
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as masked

    key, name, trust = "model.encoder", config.encoder, config.trust_remote_code
    found = base_config(key, name, config.encoder_revision, trust)
    options: dict[str, Any] = {"revision": config.encoder_revision, "trust_remote_code": trust}
    if found.model_type in _T5:
        tokenizer = load_tokenizer(key, name, config.encoder_revision, trust)
        sentinels = _sentinels(tokenizer.get_vocab())
        base = BaseModel(key, name, found, transformers.AutoModelForSeq2SeqLM, _written, options)
        return HeadKind(base, sentinels) if sentinels and _is_whole(base) else HeadKind(None, ())
    if found.model_type == "deberta-v2":
        options["key_mapping"] = _DEBERTA
    base = BaseModel(key, name, found, transformers.AutoModelForMaskedLM, _masked, options)
    return HeadKind(base if found.model_type in masked and _is_whole(base) else None, ())


def corruption_of(config: Config, tokenizer: Any) -> Corruption:
    """How texts are corrupted for the encoder of a run.

    Raises:
        ConfigError: no such encoder, or nothing of its vocabulary can stand for a masked token.
    """
    sentinels, vocabulary = find_head(config.model).sentinels, tokenizer.get_vocab()
    spare = _sentinels(vocabulary)
    choices = (getattr(tokenizer, "mask_token_id", None), *spare[:1], tokenizer.unk_token_id)
    mask_id = next((each for each in choices if each is not None), None)
    if mask_id is None:
        raise ConfigError(
            f"the tokenizer of model.encoder {config.model.encoder!r} has no mask token, <extra_id_0> or unknown "
            "token; expected one to stand for a masked token; set mask_token in its tokenizer_config.json."
        )
    special = frozenset({*tokenizer.all_special_ids, *spare, mask_id})
    return Corruption(
        share=config.adapt.mask_share,
        special=special,
        vocabulary=tuple(sorted(set(vocabulary.values()) - special)),
        mask_id=mask_id,
        sentinels=sentinels,
        span=config.adapt.span_tokens,
        end_id=tokenizer.eos_token_id if tokenizer.eos_token_id is not None else mask_id,
    )


def load_head(config: Config, encoder: Any) -> Head:
    """The head of `model.encoder`, trained along with the encoder; a decoder beside LoRA's updates stays as it is.

    Args:
        config: of the run.
        encoder: the transformers model whose embeddings it shares.
    """
    kind = find_head(config.model)
    if kind.base is None:
        scale = encoder.config.d_model**-0.5 if encoder.config.model_type in _T5 else 1.0
        head: Head = TokenHead(_Tied(encoder.get_input_embeddings(), scale))
    elif kind.sentinels:
        head = SpanDecoder(_without_encoder(load_complete(kind.base, dtype=torch.float32), encoder))
    else:
        head = TokenHead(_without_backbone(load_complete(kind.base, dtype=torch.float32), encoder))
    shared = {id(parameter) for parameter in encoder.parameters()}
    trains = config.encoder.trainable or not kind.sentinels
    for parameter in head.parameters():
        if id(parameter) not in shared:
            parameter.requires_grad_(trains)
    head.trained = frozenset(name for name, p in head.named_parameters() if trains and id(p) not in shared)
    head.dropout = config.encoder.dropout and config.encoder.trainable
    return head


class Head(nn.Module):
    """Predicts hidden tokens from the last state."""

    trained: frozenset[str] = frozenset()
    """Names of its own parameters, if they are trained; those that it shares with the encoder are the encoder's."""
    dropout = False
    """As :attr:`bridge_ds.config.schema.EncoderConfig.dropout`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def train(self, mode: bool = True) -> Head:
        """Without dropout, unless the encoder has it too."""
        return super().train(mode and self.dropout)

    def forward(self, state_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
        """float32 [2]: the sum of -log p over the hidden tokens in nats, and how many of them were the argmax."""
        raise NotImplementedError


class TokenHead(Head):
    """Masked tokens, each from its own position."""

    def forward(self, state_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See :meth:`Head.forward`."""
        assert batch.layout is not None
        picked_1ND = state_BSD.flatten(0, 1).index_select(0, batch.layout.positions)[None]
        logits_NV = self.model(picked_1ND)[0]
        return _sums(logits_NV, batch.layout.labels)


class SpanDecoder(Head):
    """Spans, written by a decoder that reads the states."""

    def forward(self, state_BSD: torch.Tensor, batch: Batch) -> torch.Tensor:
        """See :meth:`Head.forward`; of a pair nothing is written."""
        wanted_BT = batch.target_mask.bool()
        if batch.prompt_mask.shape[1]:
            wanted_BT = wanted_BT & ~batch.prompt_mask.bool().any(1)[:, None]
        logits_BTV = self.model(
            encoder_outputs=(state_BSD,),
            attention_mask=batch.source_mask,
            decoder_input_ids=self.model._shift_right(batch.target_ids),
            use_cache=False,
        ).logits
        labels_M = batch.target_ids.masked_fill(~wanted_BT, -100).flatten()
        return _sums(logits_BTV.flatten(0, 1), labels_M)


def _sums(logits_NV: torch.Tensor, labels_N: torch.Tensor) -> torch.Tensor:
    nll = F.cross_entropy(logits_NV.float(), labels_N, reduction="sum", ignore_index=-100)
    return torch.stack([nll, (logits_NV.argmax(-1) == labels_N).sum().float()])


class _Tied(nn.Module):
    """Logits by the token embeddings, and a bias of their own."""

    def __init__(self, table: Any, scale: float) -> None:
        """Args:
        table: the token embeddings.
        scale: of the states (T5's embeddings are as large as the states; its own shared head divides by sqrt(D) too).
        """
        super().__init__()
        self.scale = scale
        # A module of its own, since under ZeRO-3 a weight is there inside its module's forward alone.
        self.project = nn.Linear(1, 1)
        self.project.weight = table.weight
        rows = getattr(table.weight, "ds_shape", table.weight.shape)[0]
        self.project.bias = nn.Parameter(torch.zeros(rows))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., V]."""
        projected: torch.Tensor = self.project(states * self.scale)
        return projected


class _Given(nn.Module):
    """Stands for a backbone that has run already."""

    states: torch.Tensor | None = None

    def forward(self, *args: Any, **options: Any) -> Any:
        """What a backbone returns."""
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=self.states)


class _Masked(nn.Module):
    """A model for masked tokens whose backbone is given the states."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """[..., D] -> [..., V]."""
        given = getattr(self.model, self.model.base_model_prefix)
        given.states = states
        try:
            logits: torch.Tensor = self.model(None, return_dict=True).logits
        finally:
            given.states = None
        return logits


def _without_backbone(model: Any, encoder: Any) -> nn.Module:
    _share(model, encoder)
    setattr(model, model.base_model_prefix, _Given())
    return _Masked(model)


def _without_encoder(model: Any, encoder: Any) -> nn.Module:
    _share(model, encoder)
    model.encoder = nn.Identity()
    model.shared = model.decoder.embed_tokens = encoder.get_input_embeddings()
    whole: nn.Module = model
    return whole


def _share(model: Any, encoder: Any) -> None:
    """Let an output head that shares the weight of its own embeddings share the encoder's."""
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        head.weight = encoder.get_input_embeddings().weight


def _sentinels(vocabulary: dict[str, int]) -> tuple[int, ...]:
    """Ids of `<extra_id_0>` and on; mT5 has them as pieces of words."""
    found: list[int] = []
    while (name := f"<extra_id_{len(found)}>") in vocabulary or f"▁{name}" in vocabulary:
        found.append(vocabulary.get(name, vocabulary.get(f"▁{name}", 0)))
    return tuple(found)


def _is_whole(base: BaseModel) -> bool:
    """Whether the files hold all that the model with a head or decoder reads."""
    try:
        check_base(base)
    except ConfigError:
        return False
    return True


def _written(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    return [model(input_ids=ids, decoder_input_ids=ids, use_cache=False).logits]


def _masked(model: Any, ids: torch.Tensor) -> list[torch.Tensor]:
    return [model(input_ids=ids).logits]
