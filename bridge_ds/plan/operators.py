"""Operators that a rank's host launches in one step: what bounds small models and small micro-batches."""

from __future__ import annotations

from bridge_ds.plan.job import Job

__all__ = ["FORWARD", "LLM_BACKWARD", "RECOMPUTED", "TRAINED_BACKWARD", "operators"]

# Of one layer in transformers 5.24 with sdpa, views left out; tests/plan counts them again. Llama's and T5's forward
# have as many; Gemma 2's (two norms more, no sdpa) twice that.
FORWARD = 38
"""Forward of a layer of the LLM or the encoder."""
LLM_BACKWARD = 60
"""Backward of a frozen layer of the LLM."""
RECOMPUTED = 36
"""What computing it again in backward adds: the layer's last operators are not needed."""
TRAINED_BACKWARD = 86
"""Backward of a trained layer of the encoder, and as good as that of the LLM."""
_REST = 400
"""Of a micro-batch: embeddings, masks, rotations, fusion (at most 120 with Triton's kernels), mapping, splice, head,
loss, and the backward of these (counted roughly)."""


def operators(job: Job) -> float:
    """Operators of one step on one rank, those of ZeRO-3's gathers among them."""
    encoder, llm = job.encoder.layers, job.llm.layers
    reading = FORWARD
    if job.encoder_trained:
        reading += TRAINED_BACKWARD + (RECOMPUTED if job.encoder_checkpointing else 0)
    writing = (
        FORWARD + (TRAINED_BACKWARD if job.llm_trained else LLM_BACKWARD) + (RECOMPUTED if job.checkpointing else 0)
    )
    found = job.accumulation * (encoder * reading + llm * writing + _REST)
    if job.stage == 2 or job.ranks == 1:
        return float(found)
    reads = encoder * (2 if job.encoder_trained else 1) * job.readings
    return (
        found
        + reads * _gather(job.encoder.matrices, job.shards)
        + 2 * llm * job.accumulation * _gather(job.llm.matrices, job.shards)
    )


def _gather(tensors: int, shards: int) -> float:
    # Of one layer (AllGatherCoalescedHandle in DeepSpeed 0.19): for each tensor and rank two views and the mark that
    # its stream uses them, about half the time of a launch; for each tensor a copy out of the shard, one out of the
    # buffer, and its release.
    return tensors * (shards / 2 + 4) + shards / 2 + 3
