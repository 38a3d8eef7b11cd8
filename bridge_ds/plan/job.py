"""What is planned: models, GPUs, batch and modes; and how a run's config says the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bridge_ds.config.build import one_of
from bridge_ds.config.schema import Config, FusionConfig, InjectionConfig, MappingConfig, TrainConfig, reads_all_layers
from bridge_ds.config.zero import encoded_together, gather_sizes, read_ds_config
from bridge_ds.data.text.truncate import SoftPrompt
from bridge_ds.errors import ConfigError
from bridge_ds.fusion import FUSIONS
from bridge_ds.mapping import MAPPINGS
from bridge_ds.plan.lora import lora_parameters
from bridge_ds.plan.shapes import ENCODERS, LLMS, Shape, find_shape, largest_layer

__all__ = ["ENCODE_ONCE", "PROCESS_GIB", "Job", "bridge_parameters", "layout", "planned", "trained_parameters"]

PROCESS_GIB = 1.5
"""Memory of a rank on a GPU before any model: CUDA's context, cuBLAS and NCCL."""
ENCODE_ONCE = "train.encode_once"
"""The setting behind :attr:`Job.encode_once`."""


@dataclass(frozen=True)
class Job:
    """What is planned."""

    encoder: Shape
    llm: Shape
    nodes: int = 1
    gpus: int = 1
    """GPUs (ranks) a node."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    mapping: MappingConfig = field(default_factory=MappingConfig)
    source: int = 512
    """Encoder tokens a sample, padding included."""
    prompt: int = 0
    """LLM prompt tokens a sample."""
    target: int = 128
    """Target tokens a sample."""
    lesson: int = 0
    """LLM tokens a sample of the text from which it teaches itself (data.objective, data.replay); 0 = it does not."""
    taught_share: float = 1.0
    """Share of the samples in which it does."""
    micro_batch: int = 8
    """Samples a rank in one forward pass."""
    global_batch: int = 128
    """Samples an optimizer step."""
    bytes: int = 2
    """Bytes of a frozen weight or activation (bfloat16: 2)."""
    tf32: bool = True
    """float32 matrices are multiplied in TF32 (train.tf32)."""
    stage: int = 3
    """ZeRO stage."""
    hpz: bool = False
    """A second copy of the frozen shards (zero_hpz_partition_size)."""
    hpz_ranks: int = 0
    """Ranks that hold it together, where the DeepSpeed file says how many; 0 = the GPUs of a node."""
    offload: bool = False
    """Frozen shards live in host memory (offload_param)."""
    checkpointing: bool = False
    """The LLM's layers are computed again in backward (model.activation_checkpointing)."""
    encoder_trained: bool = False
    """The encoder is trained too (encoder.trainable)."""
    encoder_embeddings: bool = True
    """Then its token embeddings as well (encoder.train_embeddings)."""
    encoder_dropout: bool = False
    """It drops in training, where it is frozen too (encoder.dropout)."""
    encoder_checkpointing: bool = False
    """Its layers are computed again in backward (encoder.activation_checkpointing)."""
    llm_trained: bool = False
    """The LLM is trained too (llm.trainable)."""
    llm_embeddings: bool = True
    """Then its token embeddings as well, with a projection that shares their weight (llm.train_embeddings)."""
    lora: int = 0
    """Rank of LoRA's updates of the LLM's linear layers (lora.rank)."""
    lora_targets: tuple[str, ...] = ()
    """Names of those that get one; empty = all (lora.targets)."""
    lora_bias: str = "none"
    """Biases that are trained with them (lora.bias)."""
    encode_once: bool = False
    """Under stage 3 a frozen encoder's layers are gathered once for several micro-batches (train.encode_once)."""
    encode_once_gib: float = TrainConfig().encode_once_gib
    """GiB of encoder states that may be there together (train.encode_once_gib)."""
    prefetch: int = 0
    """stage3_prefetch_bucket_size (elements); 0 = from the models, as all three."""
    live: int = 0
    """stage3_max_live_parameters (elements)."""
    reuse: int = 0
    """stage3_max_reuse_distance (elements)."""
    bucket: int = 50_000_000
    """reduce_bucket_size (elements, float32)."""
    copies: int = 0
    """Copies that the backend makes of a tensor it gathers: gloo goes through a flat one (1), NCCL does not (0)."""
    process: float = 0.0
    """Memory of the process before any model (GiB): CUDA's context, or the interpreter and its libraries on a CPU."""

    def __post_init__(self) -> None:
        """Raises ConfigError where there is no LLM, or the fusion or the mapping is none that is known."""
        if not self.llm.layers:
            raise ConfigError("model.llm is none, and no plan is made of the encoder alone; name an LLM.")
        one_of("fusion.name", self.fusion.name, FUSIONS)
        one_of("mapping.kind", self.mapping.kind, MAPPINGS)

    @property
    def states(self) -> int:
        """Encoder states that the bridge reads: L, one more with the embeddings."""
        return self.encoder.layers + (self.fusion.include_embeddings and self.reads_all_layers)

    @property
    def reads_all_layers(self) -> bool:
        """See :func:`bridge_ds.config.schema.reads_all_layers`."""
        return reads_all_layers(self.fusion, self.injection)

    @property
    def kept_bytes(self) -> int:
        """Bytes of a token's encoder states that `data.states_cache` keeps; 0 = none can be."""
        if self.encoder_trained or self.encoder_dropout:
            return 0
        states = self.states if self.reads_all_layers else min(1, self.states)
        return states * self.encoder.width * self.bytes

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.gpus

    @property
    def models_trained(self) -> tuple[int, int]:
        """Trained parameters of the encoder and of the LLM."""
        encoder = self.encoder.parameters - self.encoder.embedding * (not self.encoder_embeddings)
        llm = self.llm.parameters - self.llm.embedding * (not self.llm_embeddings)
        return encoder * self.encoder_trained, llm * self.llm_trained

    @property
    def frozen_bytes(self) -> int:
        """Bytes of the weights of both models that are not trained."""
        return self.weights - 4 * sum(self.models_trained)

    @property
    def encoder_bytes(self) -> int:
        """Bytes of a weight of the encoder: those of a trained one are float32, frozen embeddings too."""
        return 4 if self.encoder_trained else self.bytes

    @property
    def llm_bytes(self) -> int:
        """Bytes of a weight of the LLM, likewise."""
        return 4 if self.llm_trained else self.bytes

    @property
    def weights(self) -> int:
        """Bytes of both models' weights, also of one that is trained."""
        return self.encoder.parameters * self.encoder_bytes + self.llm.parameters * self.llm_bytes

    @property
    def spliced(self) -> int:
        """LLM tokens a sample: BOS, soft prompt and its end vector, prompt, target."""
        return 1 + self.soft + self.prompt + self.target

    @property
    def soft(self) -> int:
        """LLM tokens of a sample's soft prompt and its end vector; 0 = no encoder, the LLM alone is trained."""
        return self._soft_prompt.positions(self.source) if self.encoder.layers else 0

    @property
    def apart(self) -> int:
        """LLM tokens of a soft prompt that the LLM reads by itself, with its end vector (gated_prompt)."""
        soft = self._soft_prompt
        return soft.vectors(self.source) - soft.positions(self.source) if self.encoder.layers else 0

    @property
    def _soft_prompt(self) -> SoftPrompt:
        made = self.injection.makes_prompt, self.injection.prompt_in_input
        return SoftPrompt.at(self.mapping.fixed_length, *made)

    @property
    def second(self) -> int:
        """Ranks that together hold a second copy of the frozen shards; 0 = there is none, as where all are in one group
        (:func:`bridge_ds.config.zero.resolve_hpz`)."""
        size = self.hpz_ranks or self.gpus
        return size if self.hpz and size < self.ranks else 0

    @property
    def attending(self) -> int:
        """Layers of the LLM that attend beside their text."""
        return len(self.injection.llm_layers) or self.llm.layers

    @property
    def shards(self) -> int:
        """Ranks that a frozen weight is gathered from under stage 3."""
        return self.second or self.ranks

    @property
    def sizes(self) -> dict[str, int]:
        """What DeepSpeed is told about gathering under stage 3 (elements; of hpZ, ranks): the file's numbers, the rest
        from the models."""
        found = gather_sizes(largest_layer(self.encoder, self.llm, self.encoder_trained))
        given = (self.prefetch, self.live, self.reuse)
        sizes = {key: own or size for own, (key, size) in zip(given, found.items(), strict=True)}
        return sizes | ({"zero_hpz_partition_size": self.second} if self.second else {})

    @property
    def may_encode_once(self) -> bool:
        """Whether `encode_once` changes anything."""
        if self.stage != 3 or self.encoder_trained or self.encoder_dropout:
            return False
        return self.encoder.layers > 0 and min(self.accumulation, self._fitting) > 1

    @property
    def together(self) -> int:
        """Micro-batches that the encoder reads together."""
        return min(self.accumulation, self._fitting) if self.encode_once and self.may_encode_once else 1

    @property
    def readings(self) -> int:
        """Times a step that the encoder's layers are gathered under stage 3, each way."""
        return math.ceil(self.accumulation / self.together)

    @property
    def _fitting(self) -> int:
        tokens = self.micro_batch * self.source
        return encoded_together(self.encode_once_gib, tokens, self.encoder.layers, self.encoder.width, self.bytes)

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank and step."""
        return max(1, self.global_batch // (self.micro_batch * self.ranks))

    def having(self, **changes: object) -> Job:
        """A copy with some values changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def bridge_parameters(job: Job) -> int:
    """Trained parameters of the bridge, and of LoRA's updates."""
    if not job.encoder.layers:
        return lora_parameters(job.llm, job.lora, job.lora_bias, job.lora_targets)
    fusion = FUSIONS[job.fusion.name].parameters(job.states, job.encoder.width, job.fusion)
    mapping = MAPPINGS[job.mapping.kind].parameters(job.encoder.width, job.llm.width, job.mapping)
    soft = (fusion + mapping + job.llm.width) * job.injection.makes_prompt
    spec, injected = job.injection.spec, 0
    if spec:
        injected = spec.parameters(job.states, job.encoder.width, job.llm.width, job.attending, job.injection)
    return soft + injected + lora_parameters(job.llm, job.lora, job.lora_bias, job.lora_targets)


def trained_parameters(job: Job) -> int:
    """All trained parameters."""
    return bridge_parameters(job) + sum(job.models_trained)


def planned(config: Config, nodes: int, gpus: int) -> Job:
    """The run of `config` on `nodes` of `gpus` GPUs each.

    Raises:
        ConfigError: there is no LLM, the shape of a model is not known, or there is no such DeepSpeed file.
    """
    data, train, bridge = config.data, config.train, config.model.has_encoder
    job = Job(
        encoder=find_shape(config.model.encoder, ENCODERS),
        llm=find_shape(config.model.llm, LLMS),
        nodes=nodes,
        gpus=gpus,
        fusion=config.fusion,
        mapping=config.mapping,
        injection=config.injection,
        source=data.max_source_tokens * bridge,
        prompt=data.max_prompt_tokens if data.augment_prompt or not bridge else 0,
        target=data.max_target_tokens,
        lesson=data.max_prompt_tokens * (data.taught_share(bridge) > 0),
        taught_share=data.taught_share(bridge) or 1.0,
        global_batch=train.global_batch,
        bytes=4 if config.model.dtype == "float32" else 2,
        tf32=train.tf32,
        checkpointing=config.model.activation_checkpointing,
        encoder_trained=config.encoder.trainable,
        encoder_embeddings=config.encoder.train_embeddings,
        encoder_checkpointing=config.encoder.trainable and config.encoder.activation_checkpointing,
        llm_trained=config.llm.trainable,
        llm_embeddings=config.llm.train_embeddings,
        lora=config.lora.rank,
        lora_bias=config.lora.bias,
        lora_targets=config.lora.targets,
        encoder_dropout=config.encoder.dropout,
        encode_once=train.encode_once,
        encode_once_gib=train.encode_once_gib,
        **layout(read_ds_config(config.run.ds_config)),
    )
    share = max(1, train.global_batch // job.ranks)
    rows = train.micro_batch or share
    if data.tokens_per_micro_batch:
        rows = min(share, max(1, data.tokens_per_micro_batch // (job.source + job.prompt + job.target)))
    return job.having(micro_batch=rows)


def layout(ds_values: Mapping[str, Any]) -> dict[str, Any]:
    """What a DeepSpeed file decides, as fields of a :class:`Job`."""
    zero = ds_values["zero_optimization"]
    size = zero.get("zero_hpz_partition_size", 1)
    sizes = {
        "prefetch": "stage3_prefetch_bucket_size",
        "live": "stage3_max_live_parameters",
        "reuse": "stage3_max_reuse_distance",
        "bucket": "reduce_bucket_size",
    }
    return {
        "stage": int(zero["stage"]),
        "hpz": size != 1,
        "hpz_ranks": size if isinstance(size, int) and size > 1 else 0,
        "offload": (zero.get("offload_param") or {}).get("device", "none") != "none",
        **{field: int(zero[key]) for field, key in sizes.items() if key in zero},
    }
