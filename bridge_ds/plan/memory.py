"""Memory of one rank, part by part. What is not obvious is said beside its line; checked by tests/plan.

Letters: L encoder layers, D encoder width, H LLM width, F its feed-forward width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bridge_ds.plan.shapes import Shape, fusion_parameters, mapping_parameters

__all__ = ["Job", "bridge_parameters", "host_gib", "largest_module", "memory"]

GIB = 2**30
PART = 2**28
"""Bytes of a model's files that rank 0 reads at once (:data:`bridge_ds.frozen.streamed.PART_BYTES`)."""


@dataclass(frozen=True)
class Job:
    """What is planned."""

    encoder: Shape
    llm: Shape
    nodes: int = 1
    gpus: int = 1
    """GPUs (ranks) a node."""
    fusion: str = "transformer_softmax"
    feedforward: int = 2048
    """Hidden width of the fusion's MLP."""
    mapping: str = "linear"
    source: int = 512
    """Encoder tokens a sample, padding included."""
    prompt: int = 0
    """LLM prompt tokens a sample."""
    target: int = 128
    """Target tokens a sample."""
    micro_batch: int = 8
    """Samples a rank in one forward pass."""
    global_batch: int = 128
    """Samples an optimizer step."""
    bytes: int = 2
    """Bytes of a frozen weight or activation (bfloat16: 2)."""
    stage: int = 3
    """ZeRO stage."""
    hpz: bool = False
    """A second copy of the shards in each node (zero_hpz_partition_size = GPUs a node)."""
    offload: bool = False
    """Frozen shards live in host memory (offload_param)."""
    checkpointing: bool = False
    """The LLM's layers are computed again in backward (model.activation_checkpointing)."""
    prefetch: int = 50_000_000
    """stage3_prefetch_bucket_size (elements)."""
    reuse: int = 500_000_000
    """stage3_max_reuse_distance (elements)."""
    bucket: int = 50_000_000
    """reduce_bucket_size (elements, float32)."""
    copies: int = 0
    """Copies that the backend makes of what it gathers: gloo goes through a flat one (1), NCCL does not (0)."""
    process: float = 0.0
    """Memory of the process before any model (GiB): CUDA's context, or the interpreter and its libraries on a CPU."""

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return self.nodes * self.gpus

    @property
    def frozen(self) -> int:
        """Parameters of both models."""
        return self.encoder.parameters + self.llm.parameters

    @property
    def spliced(self) -> int:
        """LLM tokens a sample: BOS, soft prompt and its end vector, prompt, target."""
        return 2 + self.source + self.prompt + self.target

    @property
    def accumulation(self) -> int:
        """Micro-batches a rank and step."""
        return max(1, self.global_batch // (self.micro_batch * self.ranks))

    def having(self, **changes: object) -> Job:
        """A copy with some values changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def bridge_parameters(job: Job) -> int:
    """Trained parameters."""
    fusion = fusion_parameters(job.fusion, job.encoder.layers, job.encoder.width, job.feedforward)
    return fusion + mapping_parameters(job.mapping, job.encoder.width, job.llm.width)


def largest_module(job: Job) -> int:
    """Parameters of the largest thing gathered at once: a whole layer of a frozen model, or an embedding table."""
    return max(job.encoder.embedding, job.llm.embedding, job.encoder.layer, job.llm.layer)


def memory(job: Job) -> dict[str, float]:
    """GiB on one rank's device by part; `total` is their sum, or more where loading takes more (CPU ranks only)."""
    parts = {
        "process": job.process * GIB,
        "frozen weights": _weights(job),
        "gathered layers": _gathered(job),
        "encoder states": _states(job),
        "LLM activations": _activations(job),
        "fusion and mapping": _bridge_activations(job),
        "logits": _logits(job),
        "bridge and optimizer": _trained(job),
    }
    found = {name: size / GIB for name, size in parts.items()}
    total = sum(found.values())
    if not job.copies:
        return found | {"total": total}
    loading = job.process + _dealing(job) / GIB
    return found | {"loading, before all this": loading, "total": max(total, loading)}


def host_gib(job: Job) -> dict[str, float]:
    """GiB of host memory a node: under stage 3 rank 0 reads the files a part at a time and deals it out; under stage 2
    each rank loads both models there before they go to its device."""
    if job.stage == 2:
        loading = job.frozen * job.bytes * job.gpus
    else:
        loading = max(PART, max(job.encoder.embedding, job.llm.embedding) * job.bytes)
    return {"while loading": loading / GIB} | (
        {"offloaded weights": job.frozen * job.bytes / job.ranks * job.gpus / GIB} if job.offload else {}
    )


def _weights(job: Job) -> float:
    whole = job.frozen * job.bytes
    if job.stage == 2:
        return whole
    if job.offload:
        return 0.0
    return whole / job.ranks + (whole / job.gpus if job.hpz and job.nodes > 1 else 0)


def _dealing(job: Job) -> float:
    # On rank 0 the largest tensor is there three times while it is dealt out: of the file, whole, and in pieces; beside
    # the shares of what is loaded.
    share = job.bytes / (job.ranks if job.stage == 3 else 1)
    encoder, llm = job.encoder, job.llm
    return max(
        encoder.parameters * share + 3 * encoder.embedding * job.bytes,
        job.frozen * share + 3 * llm.embedding * job.bytes,
    )


def _gathered(job: Job) -> float:
    if job.stage == 2 or (job.ranks == 1 and not job.offload):
        return 0.0  # one rank's share is the tensor itself
    layer, ahead = max(job.encoder.layer, job.llm.layer), job.prefetch
    # Before a layer is released the largest thing may come, with the backend's copy of it.
    entering = (1 + job.copies) * largest_module(job) + layer + ahead
    # At the turn from forward to backward: the projection, and the layers that come again within the reuse distance.
    turning = (1 + job.copies) * job.llm.embedding + min(job.llm.layers * job.llm.layer, job.reuse // 2) + ahead
    return min((1 + job.copies) * job.frozen, max(entering, turning)) * job.bytes


def _states(job: Job) -> float:
    # All L states live until the fusion's backward has read them again; the encoder's own work is one layer's.
    tokens = job.micro_batch * job.source
    scores = job.micro_batch * job.encoder.heads * job.source**2 * (4 + job.bytes)  # T5's bias rules out flash kernels
    work = tokens * (2 * job.encoder.ffn + 3 * job.encoder.q) * job.bytes
    return (job.encoder.layers + 1) * tokens * job.encoder.width * job.bytes + max(work, scores)


def _activations(job: Job) -> float:
    # Frozen linear layers keep no input (only a weight's gradient would need it). Kept: float32 inputs of both norms,
    # q, k, v and the output of attention, gate, its activation and up.
    llm, tokens = job.llm, job.micro_batch * job.spliced
    attention = 2 * (llm.q + llm.kv) * job.bytes
    mlp = (3 if llm.gated else 2) * llm.ffn * job.bytes
    layer = tokens * (8 * llm.width + attention + mlp)
    # Backward of one layer holds the gradients of its widest tensors beside what it has kept.
    work = tokens * (2 * llm.ffn + 2 * llm.width) * job.bytes
    if job.checkpointing:
        return llm.layers * tokens * llm.width * job.bytes + layer + work
    return llm.layers * layer + work


def _bridge_activations(job: Job) -> float:
    # The collapse keeps 3 D float32 numbers a token; the mapping its float32 input and output, and the soft prompt.
    tokens = job.micro_batch * job.source
    return tokens * (4 * 4 * job.encoder.width + (2 * 4 + job.bytes) * job.llm.width)


def _logits(job: Job) -> float:
    # At target places only: in the model's dtype, float32, log-softmax, and the gradient of both.
    return job.micro_batch * job.target * job.llm.vocab * (2 * job.bytes + 3 * 4)


def _trained(job: Job) -> float:
    # Parameter, gradient and AdamW's two moments, float32: stage 2 shards gradients and moments, stage 3 all of it; the
    # whole bridge is gathered while at work. One reduce bucket, never fuller than the gradients.
    count = bridge_parameters(job)
    sharded = count * (16 if job.stage == 3 else 12) / job.ranks
    return sharded + 2 * count * 4 + min(job.bucket, 2 * count) * 4
