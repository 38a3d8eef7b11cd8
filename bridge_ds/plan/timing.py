"""Bytes that a step moves and the time it takes at least; all of it arithmetic on data sheets, none of it measured."""

from __future__ import annotations

from dataclasses import dataclass

from bridge_ds.plan.job import Job, bridge_parameters

__all__ = [
    "FORWARD", "GPUS", "LLM_BACKWARD", "RECOMPUTED", "TRAINED_BACKWARD", "Gpu", "Network", "gathers", "operators",
    "step_time",
]  # fmt: skip

# Of one layer in transformers 5.24 with sdpa, views left out; tests/plan counts them again. Llama's and T5's forward
# have as many; Gemma 2's (two norms more, no sdpa) twice that.
FORWARD = 38
"""Operators of the forward of a layer of the LLM or the encoder."""
LLM_BACKWARD = 60
"""Of the backward of a frozen layer of the LLM."""
RECOMPUTED = 36
"""What recomputing it in backward adds: the layer's last operators are not needed."""
TRAINED_BACKWARD = 86
"""Of the backward of a trained layer of the encoder, and about those of the LLM."""
_REST = 400
"""Of a micro-batch: embeddings, masks, rotations, fusion (at most 120 with Triton's kernels), mapping, splice, head,
loss, and the backward of these (counted roughly)."""


@dataclass(frozen=True)
class Gpu:
    """A device, from its maker's data sheet."""

    name: str
    gib: float
    """Memory."""
    tflops: float
    """Dense bfloat16."""
    tf32: float
    """Of float32 matrices in TF32; of AMD's, which PyTorch does not multiply so, as below."""
    float32: float
    """Of these without TF32: matrix cores where they take float32 (AMD's), else the others."""
    link: float
    """GB/s to the other GPUs of its node, one direction."""

    def rate(self, job: Job) -> float:
        """TFLOP/s in the dtype of a job's products."""
        in_float32 = self.tf32 if job.tf32 else self.float32
        return in_float32 if job.bytes == 4 else self.tflops


GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("a100-40", 40, 312, 156, 19.5, 300),
        Gpu("a100-80", 80, 312, 156, 19.5, 300),
        Gpu("h100", 80, 989, 494, 67, 450),
        Gpu("h200", 141, 989, 494, 67, 450),
        Gpu("b200", 180, 2250, 1125, 75, 900),
        Gpu("a40", 48, 150, 75, 37.4, 32),
        Gpu("l40s", 48, 362, 183, 91.6, 32),
        Gpu("a10", 24, 125, 62.5, 31.2, 32),
        Gpu("mi250x-gcd", 64, 191, 47.9, 47.9, 50),
        Gpu("mi300x", 192, 1307, 163.4, 163.4, 448),
    )
}
"""Name -> device."""


@dataclass(frozen=True)
class Network:
    """Between nodes, and what of all rates is reached."""

    gbit: float = 200.0
    """Gbit/s of a node, all its adapters together, one direction."""
    share: float = 0.7
    """Part of the links' rate that a gather reaches (assumed)."""
    compute_share: float = 0.4
    """Part of the GPU's rate that the matrix products reach (assumed)."""
    launch: float = 5.0
    """Microseconds of the host for one operator (assumed)."""


def gathers(job: Job) -> dict[str, float]:
    """Bytes that each rank receives in one step, by where they come from: `nodes` (another node) and `links` (its own).

    Under stage 3 each micro-batch (with `encode_once` those that are read together) gathers the encoder once (no
    backward passes through it, unless it is trained) and each micro-batch the LLM twice; the gradients of a trained
    model are reduced in each micro-batch.
    """
    reduced = 2 * 4 * bridge_parameters(job) * (job.ranks - 1) / job.ranks
    if models := sum(job.models_trained):
        # Stage 2 gathers the new parameters once a step; stage 3 with each use, below.
        times = job.accumulation + (job.stage == 2)
        reduced += 4 * models * times * (job.ranks - 1) / job.ranks
    inside, between = 0.0, reduced if job.nodes > 1 else 0.0
    if job.nodes == 1:
        inside += reduced
    if job.stage == 3:
        received = _gathered(job)
        if job.nodes == 1 or job.second:
            # The frozen second copy is never out of date, so forward reads it too.
            inside += received * (job.shards - 1) / job.shards
        else:
            between += received * (job.shards - 1) / job.shards
    return {"links": inside, "nodes": between}


def step_time(job: Job, gpu: Gpu, network: Network) -> dict[str, float]:
    """Seconds of one step at least: `compute`, `gather`, `launch`, `step` (the largest: they overlap), and tokens/s of
    the job."""
    moved = gathers(job)
    # A ring passes everything through each node once, over all its adapters.
    gather = moved["links"] / (gpu.link * 1e9 * network.share)
    gather += moved["nodes"] / (network.gbit / 8 * 1e9 * network.share)
    if job.offload and job.stage == 3:
        gather += _gathered(job) / job.ranks / 20e9
    samples = job.micro_batch * job.accumulation
    encoder = job.encoder.layers * job.encoder.layer
    llm = job.llm.layers * job.llm.layer
    # Forward, activation gradients, and forward again; of a trained model the gradients of its weights, too.
    passes = 2 + job.checkpointing + job.llm_trained
    reading = (4 if job.encoder_checkpointing else 3) if job.encoder_trained else 1
    flops = 2.0 * samples * (reading * job.source * encoder + passes * job.spliced * llm)
    flops += 2.0 * samples * (2 + job.llm_trained) * job.apart * llm  # never computed again
    flops += 4 * samples * job.target * job.llm.embedding
    if job.lesson:
        taught = samples * job.taught_share
        flops += 2 * taught * ((1 + job.lesson + job.target) * llm + job.target * job.llm.embedding)
    flops += 6 * samples * (job.source or job.spliced) * bridge_parameters(job)
    compute = flops / (gpu.rate(job) * 1e12 * network.compute_share)
    launch = operators(job) * network.launch * 1e-6
    step = max(compute, gather, launch)
    tokens = samples * job.ranks * (job.source + job.prompt + job.target)
    return {"compute": compute, "gather": gather, "launch": launch, "step": step, "tokens_per_s": tokens / step}


def _gathered(job: Job) -> float:
    """Bytes of weights that a step's micro-batches gather under stage 3."""
    encoder = (2 if job.encoder_trained else 1) * job.encoder.parameters
    if job.encoder_trained and not job.encoder_embeddings:
        encoder -= job.encoder.embedding
    llm = _llm_passes(job) * job.llm.parameters
    if not (job.llm.tied or job.llm_trained):
        # Backward does not come to a frozen input table, and finds the projection still there: each is gathered once
        # for the bridge, and once for what teaches it.
        llm -= 2 * job.llm.embedding
    elif not (job.llm.tied or job.llm_embeddings):
        llm -= job.llm.embedding
    return llm * job.llm_bytes * job.accumulation + encoder * job.encoder_bytes * job.readings


def _llm_passes(job: Job) -> int:
    """Passes of a micro-batch through the LLM that gather its layers: forward and backward, forward of what teaches,
    and both of a soft prompt that it reads by itself."""
    return 2 + bool(job.lesson) + 2 * bool(job.apart)


def operators(job: Job) -> float:
    """Operators of one step on one rank, those of ZeRO-3's gathers among them."""
    encoder, llm = job.encoder.layers, job.llm.layers
    reading = FORWARD
    if job.encoder_trained:
        reading += TRAINED_BACKWARD + (RECOMPUTED if job.encoder_checkpointing else 0)
    writing = (
        FORWARD + (TRAINED_BACKWARD if job.llm_trained else LLM_BACKWARD) + (RECOMPUTED if job.checkpointing else 0)
    )
    writing += FORWARD if job.lesson else 0
    writing += FORWARD + LLM_BACKWARD if job.apart else 0
    found = job.accumulation * (encoder * reading + llm * writing + _REST)
    if job.stage == 2 or job.ranks == 1:
        return float(found)
    reads = encoder * (2 if job.encoder_trained else 1) * job.readings
    return (
        found
        + reads * _gather(job.encoder.matrices, job.shards)
        + _llm_passes(job) * llm * job.accumulation * _gather(job.llm.matrices, job.shards)
    )


def _gather(tensors: int, shards: int) -> float:
    # Of one layer (AllGatherCoalescedHandle in DeepSpeed 0.19): for each tensor and rank two views and the mark that
    # its stream uses them, about half the time of a launch; for each tensor a copy out of the shard, one out of the
    # buffer, and its release.
    return tensors * (shards / 2 + 4) + shards / 2 + 3
