"""Memory of one rank, part by part; tests/plan compares it with what autograd keeps and with measured runs.

Dimensions: L encoder layers, D encoder width, H LLM width, F its feed-forward width, V vocabulary.
"""

from __future__ import annotations

import math
import shutil
import subprocess

from bridge_ds.fusion import FUSIONS
from bridge_ds.mapping import MAPPINGS
from bridge_ds.plan.job import Job, bridge_parameters, trained_parameters
from bridge_ds.plan.lora import lora_layers

__all__ = ["device_gib", "host_gib", "memory"]

GIB = 2**30
PART = 2**28
"""Bytes of a model's files that rank 0 reads at once (:data:`bridge_ds.compat.streamed.PART_BYTES`)."""


def device_gib() -> float:
    """Memory of this machine's first GPU in GiB, asked without torch; 0 without one."""
    if not shutil.which("nvidia-smi"):
        return 0.0
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    found = subprocess.run(query, capture_output=True, text=True, encoding="utf-8").stdout.split()
    return float(found[0]) / 1024 if found and found[0].isdigit() else 0.0


def memory(job: Job) -> dict[str, float]:
    """GiB on one rank's device by part; `total` is their sum, or more where loading takes more (CPU ranks only)."""
    parts = {
        "process": job.process * GIB,
        "frozen weights": _frozen(job),
        "gathered layers": _gathered(job),
        "encoder states": _states(job),
        "LLM activations": _activations(job),
        "fusion and mapping": _bridge_activations(job),
        "logits": _logits(job),
        "bridge and optimizer": _trained(job),
    }
    if job.encoder_trained:
        parts["encoder and optimizer"] = _model_trained(job, job.models_trained[0])
        parts["encoder activations"] = _encoder_activations(job)
    if job.llm_trained:
        parts["LLM and optimizer"] = _model_trained(job, job.models_trained[1])
    found = {name: size / GIB for name, size in parts.items()}
    total = sum(found.values())
    if not job.copies:
        return found | {"total": total}
    loading = job.process + _loading(job) / GIB
    return found | {"loading, before all this": loading, "total": max(total, loading)}


def host_gib(job: Job) -> dict[str, float]:
    """GiB of host memory a node: under stage 3 rank 0 reads the files a part at a time and broadcasts it; under stage
    2 each rank loads both models there before they go to its device. Rank 0 holds a checkpoint until it is written."""
    if job.stage == 2:
        loading = job.weights * job.gpus
    else:
        loading = max(PART, job.encoder.embedding * job.encoder_bytes, job.llm.embedding * job.llm_bytes)
    found = {"while loading": loading / GIB}
    if job.encoder_trained or job.llm_trained:
        found["while saving, rank 0"] = 12 * trained_parameters(job) / GIB
    if job.offload:
        found["offloaded weights"] = job.weights / job.ranks * job.gpus / GIB
    return found


def _frozen(job: Job) -> float:
    whole = job.frozen_bytes
    if job.stage == 2:
        return whole
    if job.offload:
        return 0.0
    return whole / job.ranks + (whole / job.second if job.second else 0)


def _model_trained(job: Job, parameters: int) -> float:
    # Parameter, gradient and two moments, float32. Stage 2 holds the parameters whole beside its share's master; hpZ a
    # second copy of the shards in each node. With offload_param the device still has its share's master.
    whole = 4 * parameters
    if job.stage == 2:
        return whole + 4 * whole / job.ranks
    return 4 * whole / job.ranks + (whole / job.second if job.second else 0)


def _encoder_activations(job: Job) -> float:
    # What a layer keeps for backward, in the states' bytes but the float32 residual and norms: inputs of the norms, of
    # q, k, v, o and of the MLP's matrices, the attention's bias. The gradients of the L states beside them.
    encoder, tokens = job.encoder, job.micro_batch * job.source
    mlp = (4 if encoder.gated else 3) * encoder.ffn
    layer = tokens * (4 * 4 * encoder.width + (2 * encoder.width + 4 * encoder.q + mlp) * job.bytes) + _scores(job)
    states = (encoder.layers + 1) * tokens * encoder.width * job.bytes
    if job.encoder_checkpointing:
        return states + encoder.layers * tokens * encoder.width * 4 + layer
    # Under stage 2 autocast's copies of the matrices live as long (DeepSpeed's own linear layers keep none).
    copies = encoder.layers * encoder.layer * job.bytes if job.stage == 2 and job.bytes < 4 else 0
    return states + encoder.layers * layer + copies


def _loading(job: Job) -> float:
    # While the largest tensor is loaded, each rank holds it twice (whole, and as the collective's buffer), beside the
    # shares of what is loaded and one share more of each embedding. Measured part by part on 1 and 4 CPU ranks, within
    # 2 %; the process is counted as in training, 0.1 GiB more than it has by then.
    encoder, llm, shards = job.encoder, job.llm, job.ranks if job.stage == 3 else 1
    of_encoder, of_llm = encoder.embedding * job.encoder_bytes, llm.embedding * job.llm_bytes
    return max(
        (encoder.parameters * job.encoder_bytes + of_encoder) / shards + 2 * of_encoder,
        (job.weights + of_encoder + of_llm) / shards + 2 * of_llm,
    )


def _gathered(job: Job) -> float:
    if job.stage == 2 or (job.ranks == 1 and not job.offload):
        return 0.0  # one rank's share is the tensor itself
    encoder, llm, sizes = job.encoder, job.llm, job.sizes
    layer = max(encoder.layer * job.encoder_bytes, llm.layer * job.llm_bytes)
    # What is fetched ahead has its flat buffer only.
    room = max(0, sizes["stage3_max_live_parameters"] - max(encoder.layer, llm.layer))
    ahead = min(sizes["stage3_prefetch_bucket_size"], room) * max(job.encoder_bytes, job.llm_bytes)
    # Before a layer is released the largest thing may come: a table as one tensor, with the backend's copy of it, or a
    # layer, whose tensors are cut out of one flat buffer as new ones (DeepSpeed's AllGatherCoalescedHandle.wait).
    table = (1 + job.copies) * max(encoder.embedding * job.encoder_bytes, llm.embedding * job.llm_bytes)
    entering = max(table, 2 * layer) + layer + ahead
    # At the turn from forward to backward: the projection, and the layers whose next use lies within the reuse
    # distance, which passes the projection twice.
    reuse = max(0, sizes["stage3_max_reuse_distance"] - 2 * llm.embedding)
    again = min(llm.layers, math.ceil(reuse / (2 * llm.layer))) * llm.layer * job.llm_bytes
    turning = (1 + job.copies) * llm.embedding * job.llm_bytes + again + ahead
    return min((1 + max(job.copies, 1)) * job.weights, max(entering, turning))


def _states(job: Job) -> float:
    # All L states live until the fusion's backward has read them again, those of several micro-batches where they are
    # made together, and with them the bias that all layers share; the encoder's own work is one layer's of one of them.
    tokens = job.micro_batch * job.source
    work = tokens * (2 * job.encoder.ffn + 3 * job.encoder.q) * job.bytes
    states = (job.encoder.layers + 1) * tokens * job.encoder.width * job.bytes
    shared = _scores(job) / job.micro_batch
    return (states + shared) * job.together + max(work, _scores(job))


def _scores(job: Job) -> float:
    # A bias of each head is joined with the mask to one tensor (create_position_bias_mask in transformers), which sdpa
    # takes as it is; its kernels never hold the scores themselves.
    return job.micro_batch * job.encoder.heads * job.source**2 * job.bytes * job.encoder.bias


def _activations(job: Job) -> float:
    # Frozen linear layers keep no input (only a weight's gradient would need it). Kept: float32 inputs of both norms,
    # q, k, v and the output of attention, gate, its activation and up.
    llm, tokens = job.llm, job.micro_batch * job.spliced
    attention = 2 * (llm.q + llm.kv) * job.bytes
    mlp = (3 if llm.gated else 2) * llm.ffn * job.bytes
    # Each updated matrix casts its input to float32, for itself.
    updated = lora_layers(llm, job.lora_targets) if job.lora else []
    updates = 4 * sum(inputs + job.lora for inputs, _ in updated)
    # A trained matrix keeps its input, cast to the model's dtype by autocast, for itself.
    updates += job.bytes * sum(inputs for inputs, _ in llm.linear.values()) if job.llm_trained else 0
    each = 8 * llm.width + attention + mlp + updates
    layer = tokens * each
    # Backward of one layer holds the gradients of its widest tensors beside what it has kept.
    work = tokens * (2 * llm.ffn + 2 * llm.width) * job.bytes
    # A soft prompt that the LLM reads by itself is never computed again (gated_prompt).
    apart = llm.layers * job.micro_batch * job.apart * each
    if job.checkpointing:
        return llm.layers * tokens * llm.width * job.bytes + layer + work + apart
    # Under stage 2 autocast's copies of trained matrices live as long.
    copies = llm.layers * llm.layer * job.bytes if job.llm_trained and job.stage == 2 and job.bytes < 4 else 0
    return llm.layers * layer + work + copies + apart


def _bridge_activations(job: Job) -> float:
    injected, spec = 0, job.injection.spec
    if spec:
        tokens = job.micro_batch * job.source
        injected = spec.activations(tokens, job.encoder.width, job.llm.width, job.attending, job.bytes, job.injection)
    if not (job.encoder.layers and job.injection.makes_prompt):
        return float(injected)
    # What the fusion and the mapping say of themselves. Every mapping keeps its float32 input and output, and the soft
    # prompt in the model's dtype.
    width, tokens = job.encoder.width, job.micro_batch * job.source
    soft = job.micro_batch * (job.mapping.fixed_length or job.source)
    fusion = FUSIONS[job.fusion.name].activations(tokens, job.states, width, job.bytes, job.fusion)
    mapping = MAPPINGS[job.mapping.kind].activations(tokens, job.source, width, job.mapping)
    return injected + fusion + mapping + tokens * 4 * width + soft * (2 * 4 + job.bytes) * job.llm.width


def _logits(job: Job) -> float:
    # At target positions only: in the model's dtype, float32, log-softmax, and the gradient of both. In self-teaching
    # those that teach, and the gradient of the divergence; with replay a copy of some, and their gradient among all.
    taught = 2 * job.bytes if job.lesson else 0
    return job.micro_batch * job.target * job.llm.vocab * (2 * job.bytes + 3 * 4 + taught)


def _trained(job: Job) -> float:
    # Parameter, gradient and AdamW's two moments, float32: stage 2 shards gradients and moments, stage 3 all of it; the
    # whole bridge is gathered while at work. One reduce bucket, never fuller than the gradients.
    count = bridge_parameters(job)
    sharded = count * (16 if job.stage == 3 else 12) / job.ranks
    return sharded + 2 * count * 4 + min(job.bucket, 2 * count) * 4
