"""The two base models and the bridge between them."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_ds.mapping import MAPPINGS

__all__ = ["EncoderConfig", "FusionConfig", "LlmConfig", "LoraConfig", "MappingConfig", "ModelConfig"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The two base models, frozen unless `encoder`, `llm` or `lora` say otherwise."""

    encoder: str = "testbed/encoder"
    """Multilingual encoder (hub id, local folder, or `testbed/encoder`); only its encoder half is loaded."""
    llm: str = "testbed/llm"
    """Causal language model (hub id, local folder, or `testbed/llm`)."""
    encoder_revision: str | None = None
    """Hub revision of the encoder (commit, tag or branch); none = the default branch."""
    llm_revision: str | None = None
    """Hub revision of the LLM; none = the default branch."""
    dtype: str = "bfloat16"
    """Number format of both base models: bfloat16 | float32 (float16 overflows in T5, transformers#9295). What is
    trained is float32 always."""
    activation_checkpointing: bool = False
    """Recompute the LLM's layers in the backward pass instead of keeping their activations (yes/no)."""
    trust_remote_code: bool = False
    """Run Python code that comes with a hub model (yes/no)."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Whether the encoder is trained along with the bridge. Defaults beside `trainable` are LangBridge's (arXiv
    2401.10695 and its public code), except `dropout`."""

    trainable: bool = False
    """Train the encoder's weights too (yes/no). LangBridge advises it for LLMs trained on unlabelled text alone, and a
    frozen encoder for instruction-tuned ones. The weights are then float32 and computed on in model.dtype."""
    train_embeddings: bool = True
    """Train its token embeddings as well (yes/no). No = tokens of languages that the data does not hold stay exactly
    where they are, and mT5's largest tensor needs no gradient and no moments."""
    lr_scale: float = 0.03
    """Learning rate of the encoder's parameters, as a multiple of train.lr (LangBridge: 2e-5 beside 6e-4)."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay of the encoder's matrices, in place of train.weight_decay."""
    dropout: bool = False
    """The encoder's own dropout in training, whether it is trained (LangBridge: yes) or frozen (yes/no). Without it the
    losses depend on neither ranks nor micro-batches; layers are never dropped. A frozen encoder that drops reads each
    micro-batch by itself (no train.encode_once)."""
    activation_checkpointing: bool = False
    """Recompute the encoder's layers in the backward pass instead of keeping their activations (yes/no)."""


@dataclass(frozen=True, kw_only=True)
class LlmConfig:
    """Whether all of the LLM is trained along with the bridge; for a few per cent of that see `lora`."""

    trainable: bool = False
    """Train the LLM's own weights too (yes/no). They are then float32 and computed on in model.dtype, 16 bytes a
    parameter with gradient and moments. The LLM alone, as it was, is then not scored beside the bridge."""
    train_embeddings: bool = True
    """Train its token embeddings as well (yes/no), and with them an output head that shares their weight."""
    lr_scale: float = 0.5
    """Learning rate of the LLM's parameters, as a multiple of train.lr (1e-5 to 2e-5 in all is usual)."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay of the LLM's matrices, in place of train.weight_decay."""
    dropout: bool = False
    """The LLM's own dropout in training, where it has any (yes/no)."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank updates of the LLM's matrices (arXiv 2106.09685), through `peft`, trained along with the bridge."""

    rank: int = 0
    """Rank of each update; 0 = off, the LLM stays as it is."""
    alpha: int = 16
    """Each update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout probability on the input of each update (0 to below 1)."""
    targets: tuple[str, ...] = ()
    """Endings of the names of the linear layers that get an update, such as [q_proj, v_proj]; empty = all of them but
    the output head."""
    bias: str = "none"
    """Biases of the LLM that are trained too, as in peft: none | all | lora_only (of the layers that get an update)."""
    lr_scale: float = 1.0
    """Learning rate of the updates and biases, as a multiple of train.lr."""


@dataclass(frozen=True, kw_only=True)
class FusionConfig:
    """How the encoder's L layers become one."""

    name: str = "transformer_softmax"
    """last_layer (LangBridge) | global_softmax | transformer_softmax | layer_attention (one learnt query over the
    layers, without the transformer layer); the last three are arXiv 2508.09091's."""
    backend: str = "auto"
    """Code path: auto (triton on a GPU, else torch) | reference (the full layer, slow) | torch | triton."""
    dropout: float = 0.1
    """Dropout probability inside transformer_softmax (0 to below 1); the other fusions have none."""
    heads: int = 1
    """Attention heads of transformer_softmax's layer (the paper has 1); must divide the encoder's width."""
    state_norm: str = "none"
    """none | rms: divide each layer's state of each token by its root mean square before every fusion but
    last_layer."""
    include_embeddings: bool = False
    """Fuse the encoder's embedding output too, as layer 0 before its L layers (yes/no)."""
    feedforward: int = 2048
    """Hidden width of the MLP in transformer_softmax's layer (2048 in the paper, whatever the encoder's width)."""
    lr_scale: float = 1.0
    """Learning rate of the fusion's parameters, as a multiple of train.lr; below 1 the layer weights move more slowly
    than the mapping."""


@dataclass(frozen=True, kw_only=True)
class MappingConfig:
    """From the encoder's width D to the LLM's width H."""

    kind: str = "linear"
    """linear (D->H, the paper) | mlp (D->2D->H with ReLU, MindMerger) | mlp_gelu (with GELU, LangBridge's ffn) |
    latent (a perceiver resampler, LangBridge's latent: a fixed number of soft tokens, whatever the source's length)."""
    end_init: str = "normal"
    """How the end vector starts: normal (LangBridge) | zeros (MindMerger, and the code of arXiv 2508.09091)."""
    latents: int = 64
    """Soft tokens of `latent`, the end vector aside; this and the keys down to `dropout` have LangBridge's defaults."""
    depth: int = 1
    """Layers of `latent`."""
    heads: int = 8
    """Attention heads of each of its layers."""
    head_width: int = 64
    """Width of an attention head."""
    feedforward: int = 4
    """Hidden width of each layer's MLP, as a multiple of the encoder's width."""
    dropout: float = 0.1
    """Dropout probability on what each layer of `latent` gives (0 to below 1); the other mappings have none."""
    match_embedding_rms: bool = True
    """Scale the initial mapping so that soft tokens start at the RMS of the LLM's token embeddings (yes/no)."""

    @property
    def fixed_length(self) -> int:
        """Soft tokens of a row whatever its source's length, the end vector aside; 0 = one for each encoder token."""
        return self.latents if MAPPINGS[self.kind].resamples else 0
