"""The two base models and the bridge between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from annotated_types import Le

from bridge_ds.config.schema.fields import (
    FUNCTION,
    NEITHER,
    TRAINING,
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    OptionalText,
    Path,
    PositiveInt,
    Probability,
    Texts,
)
from bridge_ds.fusion import BACKENDS, FUSIONS
from bridge_ds.mapping import END_INITS, INITS, MAPPINGS

__all__ = [
    "NO_ENCODER",
    "NO_LLM",
    "EncoderConfig",
    "FusionConfig",
    "LlmConfig",
    "LoraConfig",
    "MappingConfig",
    "ModelConfig",
]


if TYPE_CHECKING:
    FusionName: TypeAlias = str
    Backend: TypeAlias = str
    MappingKind: TypeAlias = str
    EndInit: TypeAlias = str
    MappingInit: TypeAlias = str
else:  # a new fusion or mapping is one line in its table
    FusionName, Backend = Literal[*FUSIONS], Literal["auto", *BACKENDS]
    MappingKind, EndInit, MappingInit = Literal[*MAPPINGS], Literal[*END_INITS], Literal[*INITS]


NO_ENCODER = "none"
"""The value of `model.encoder` for a run of the LLM alone."""
NO_LLM = "none"
"""The value of `model.llm` for a run of the encoder alone."""
_WIDEST = 262_144
"""Most numbers of a token inside a layer of the bridge; the widest models have about 100,000 in their MLPs."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two base models, frozen unless `encoder`, `llm` or `lora` say otherwise."""

    encoder: Annotated[Path, NEITHER] = "testbed/encoder"
    """Multilingual encoder (hub id, local folder, or `testbed/encoder`); only its encoder half is loaded. `none` = the
    LLM alone is trained, and reads the samples as text (bridge-ds finetune)."""
    llm: Annotated[Path, NEITHER] = "testbed/llm"
    """Causal language model (hub id, local folder, or `testbed/llm`). `none` = the encoder alone is trained, on text or
    translations of a language that it does not know (bridge-ds adapt)."""
    encoder_revision: Annotated[OptionalText, NEITHER] = None
    """Hub revision of the encoder (commit, tag or branch); null = the default branch."""
    llm_revision: Annotated[OptionalText, NEITHER] = None
    """Hub revision of the LLM; null = the default branch."""
    dtype: Annotated[Literal["bfloat16", "float32"], FUNCTION] = "bfloat16"
    """dtype of both base models (float16 overflows in T5, transformers#9295). What is trained is float32 always."""
    activation_checkpointing: Annotated[Flag, NEITHER] = False
    """Recompute the LLM's layers in the backward pass instead of keeping their activations."""
    trust_remote_code: Annotated[Flag, NEITHER] = False
    """Run Python code that comes with a hub model."""

    @property
    def has_encoder(self) -> bool:
        """Whether there is an encoder; otherwise the LLM alone is trained."""
        return self.encoder != NO_ENCODER

    @property
    def has_llm(self) -> bool:
        """Whether there is an LLM; otherwise the encoder alone is trained."""
        return self.llm != NO_LLM

    @property
    def has_bridge(self) -> bool:
        """Whether there are both, and a bridge between them."""
        return self.has_encoder and self.has_llm


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Whether the encoder is trained along with the bridge. Defaults beside `trainable` are LangBridge's (arXiv
    2401.10695 and its public code), except `dropout`."""

    trainable: Annotated[Flag, FUNCTION] = False
    """Train the encoder's weights too. LangBridge advises it for LLMs trained on unlabeled text alone, and a frozen
    encoder for instruction-tuned ones. The weights are then float32 and computed on in model.dtype."""
    train_embeddings: Annotated[Flag, FUNCTION] = True
    """Train its token embeddings as well. false = tokens of languages that the data does not hold keep their
    embeddings, and mT5's largest tensor needs no gradient and no moments."""
    lr_scale: Annotated[NonNegativeFloat, TRAINING] = 0.03
    """Learning rate of the encoder's parameters, as a multiple of train.lr (LangBridge: 2e-5 beside 6e-4)."""
    weight_decay: Annotated[NonNegativeFloat, TRAINING] = 0.1
    """AdamW's decoupled weight decay of the encoder's matrices, in place of train.weight_decay."""
    dropout: Annotated[Flag, TRAINING] = False
    """The encoder's own dropout in training, whether it is trained (LangBridge: yes) or frozen. Without it the losses
    depend on neither ranks nor micro-batches; layers are never dropped. A frozen encoder with dropout encodes each
    micro-batch by itself (no train.encode_once)."""
    activation_checkpointing: Annotated[Flag, NEITHER] = False
    """Recompute the encoder's layers in the backward pass instead of keeping their activations."""


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """Whether all of the LLM is trained along with the bridge; for a few per cent of that see `lora`."""

    trainable: Annotated[Flag, FUNCTION] = False
    """Train the LLM's own weights too. They are then float32 and computed on in model.dtype, 16 bytes a parameter with
    gradient and moments. The LLM alone, as it was, is then not scored beside the bridge."""
    train_embeddings: Annotated[Flag, FUNCTION] = True
    """Train its token embeddings as well, and with them an output head that shares their weight."""
    lr_scale: Annotated[NonNegativeFloat, TRAINING] = 0.5
    """Learning rate of the LLM's parameters, as a multiple of train.lr (1e-5 to 2e-5 in all is usual)."""
    weight_decay: Annotated[NonNegativeFloat, TRAINING] = 0.0
    """AdamW's decoupled weight decay of the LLM's matrices, in place of train.weight_decay."""
    dropout: Annotated[Flag, TRAINING] = False
    """The LLM's own dropout in training, where it has any."""
    finetune: Annotated[Flag, NEITHER] = False
    """Teach the LLM the task first: a run of `bridge-ds finetune` on the same samples, in RUN/finetune, comes before
    that of the bridge, whose model.llm is then RUN/finetune/llm."""
    finetune_settings: Annotated[Texts, NEITHER] = ()
    """Settings of that first run as KEY=VALUE, such as [train.steps=80, train.lr=1e-3], over those of this run."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the LLM's matrices (arXiv 2106.09685), through `peft`, trained along with the bridge; or of
    the encoder's (bridge-ds adapt)."""

    rank: Annotated[NonNegativeInt, Le(16_384), FUNCTION] = 0
    """Rank of each update; 0 = off, the LLM stays as it is."""
    alpha: Annotated[PositiveInt, FUNCTION] = 16
    """Each update is scaled by alpha / rank."""
    dropout: Annotated[Probability, TRAINING] = 0.0
    """Dropout probability on the input of each update."""
    targets: Annotated[Texts, FUNCTION] = ()
    """Name endings of the linear layers that get an update, as peft's target_modules, such as [q_proj, v_proj]; empty =
    all but the output head."""
    bias: Annotated[Literal["none", "all", "lora_only"], FUNCTION] = "none"
    """Biases of the LLM that are trained too, as in peft; lora_only = those of the layers that get an update."""
    lr_scale: Annotated[NonNegativeFloat, TRAINING] = 1.0
    """Learning rate of the updates and biases, as a multiple of train.lr."""

    def conflicts(self) -> Iterator[str]:
        """A sentence for each two settings that contradict each other."""
        if self.bias != "none" and not self.rank:
            yield (
                f"lora.bias is {self.bias} and lora.rank 0, so that nothing of the LLM is trained; expected a rank; "
                "set lora.rank, or lora.bias=none."
            )


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the encoder's L layers become one."""

    name: Annotated[FusionName, FUNCTION] = "transformer_softmax"
    """last_layer (LangBridge) | global_softmax | transformer_softmax | layer_attention (one learned query over the
    layers, without the transformer layer); the last three are arXiv 2508.09091's."""
    backend: Annotated[Backend, NEITHER] = "auto"
    """Implementation: auto = triton on a GPU, else torch; reference = the full layer, slow."""
    dropout: Annotated[Probability, TRAINING] = 0.1
    """Dropout probability inside transformer_softmax; the other fusions have none."""
    heads: Annotated[PositiveInt, Le(100_000), FUNCTION] = 1
    """Attention heads of transformer_softmax's layer (the paper has 1); must divide the encoder's width."""
    state_norm: Annotated[Literal["none", "rms"], FUNCTION] = "none"
    """rms = divide each layer's state of each token by its root mean square (RMS) before every fusion but
    last_layer."""
    include_embeddings: Annotated[Flag, FUNCTION] = False
    """Fuse the encoder's embedding output too, as layer 0 before its L layers."""
    feedforward: Annotated[PositiveInt, Le(262_144), FUNCTION] = 2048
    """Hidden width of the MLP in transformer_softmax's layer (2048 in the paper, whatever the encoder's width)."""
    lr_scale: Annotated[NonNegativeFloat, TRAINING] = 1.0
    """Learning rate of the fusion's parameters, as a multiple of train.lr; below 1 the layer weights move more slowly
    than the mapping."""


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """From the encoder's width D to the LLM's width H."""

    kind: Annotated[MappingKind, FUNCTION] = "linear"
    """linear (D->H, the paper) | mlp (D->2D->H with ReLU, MindMerger) | mlp_gelu (with GELU, LangBridge's ffn) | latent
    (a perceiver resampler, LangBridge's latent: a fixed number of soft tokens, whatever the source's length)."""
    init: Annotated[MappingInit, NEITHER] = "random"
    """How the mapping starts: random (the paper) | embeddings (its last layer is fitted by least squares before the
    first step, so that each soft token begins as the LLM's own embeddings of the characters that the encoder token
    stands for, in English samples of the run)."""
    init_samples: Annotated[PositiveInt, Le(1_000_000), NEITHER] = 1000
    """Samples that `embeddings` is fitted to, the first of the run; fewer where the data has fewer."""
    end_init: Annotated[EndInit, NEITHER] = "normal"
    """How the end vector starts: normal (LangBridge) | zeros (MindMerger, and the code of arXiv 2508.09091)."""
    latents: Annotated[PositiveInt, Le(16_384), FUNCTION] = 64
    """Soft tokens of `latent`, the end vector aside; this and the keys down to `dropout` have LangBridge's defaults."""
    depth: Annotated[PositiveInt, Le(100), FUNCTION] = 1
    """Layers of `latent`."""
    heads: Annotated[PositiveInt, Le(1024), FUNCTION] = 8
    """Attention heads of each of its layers."""
    head_width: Annotated[PositiveInt, Le(4096), FUNCTION] = 64
    """Width of an attention head."""
    feedforward: Annotated[PositiveInt, Le(100), FUNCTION] = 4
    """Hidden width of each layer's MLP, as a multiple of the encoder's width."""
    dropout: Annotated[Probability, TRAINING] = 0.1
    """Dropout probability on what each layer of `latent` gives; the other mappings have none."""
    match_embedding_rms: Annotated[Flag, TRAINING] = True
    """Scale the initial mapping so that soft tokens start at the RMS of the LLM's token embeddings."""

    def conflicts(self) -> Iterator[str]:
        """A sentence for sizes that no memory holds together."""
        if self.heads * self.head_width > _WIDEST:
            yield (
                f"mapping.heads {self.heads} x mapping.head_width {self.head_width} is more than {_WIDEST:,}; expected "
                "about the encoder's width; lower one of them."
            )
        if self.init == "embeddings" and MAPPINGS[self.kind].resamples:
            yield (
                f"mapping.init is embeddings and mapping.kind is {self.kind}, whose soft tokens stand for no part of "
                "the text; expected a mapping that keeps the encoder's tokens; set mapping.init=random."
            )

    @property
    def fixed_length(self) -> int:
        """Soft tokens of a row whatever its source's length, the end vector aside; 0 = one for each encoder token."""
        return self.latents if MAPPINGS[self.kind].resamples else 0
