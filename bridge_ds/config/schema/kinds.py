"""What a change of each setting means for a run that goes on, and which settings are paths: a line for every field."""

from __future__ import annotations

__all__ = ["FUNCTION", "KINDS", "NEITHER", "PATHS", "TRAINING", "kind_of"]

FUNCTION = "function"
"""Decides what the bridge computes or what the models read: weights trained under another value mean something else.
A run goes on with another value only where run.allow_changes names the key, and it is used with the value of its
checkpoint."""
TRAINING = "training"
"""Decides how the weights come about: a run goes on with another value, says so in a line and keeps it in the
manifest of its checkpoints. (Some of these also decide the order of samples: state.json refuses to change those.)"""
NEITHER = "neither"
"""Places, recording, speed and scoring. What is at a place (base models, shards) is proven by hash instead."""

KINDS = {
    "run.output": NEITHER,
    "run.seed": TRAINING,
    "run.resume": NEITHER,
    "run.allow_changes": NEITHER,
    "run.start_from": NEITHER,
    "run.ds_config": TRAINING,
    "run.stop_signals": NEITHER,
    "run.deterministic": TRAINING,
    "run.hang_seconds": NEITHER,
    "model.encoder": NEITHER,
    "model.llm": NEITHER,
    "model.encoder_revision": NEITHER,
    "model.llm_revision": NEITHER,
    "model.dtype": FUNCTION,
    "model.activation_checkpointing": NEITHER,
    "model.trust_remote_code": NEITHER,
    "encoder.trainable": FUNCTION,
    "encoder.train_embeddings": FUNCTION,
    "encoder.lr_scale": TRAINING,
    "encoder.weight_decay": TRAINING,
    "encoder.dropout": TRAINING,
    "encoder.activation_checkpointing": NEITHER,
    "llm.trainable": FUNCTION,
    "llm.train_embeddings": FUNCTION,
    "llm.lr_scale": TRAINING,
    "llm.weight_decay": TRAINING,
    "llm.dropout": TRAINING,
    "lora.rank": FUNCTION,
    "lora.alpha": FUNCTION,
    "lora.dropout": TRAINING,
    "lora.bias": FUNCTION,
    "lora.targets": FUNCTION,
    "lora.lr_scale": TRAINING,
    "fusion.name": FUNCTION,
    "fusion.backend": NEITHER,
    "fusion.dropout": TRAINING,
    "fusion.heads": FUNCTION,
    "fusion.state_norm": FUNCTION,
    "fusion.include_embeddings": FUNCTION,
    "fusion.feedforward": FUNCTION,
    "fusion.lr_scale": TRAINING,
    "mapping.kind": FUNCTION,
    "mapping.match_embedding_rms": TRAINING,
    "mapping.end_init": NEITHER,
    "mapping.latents": FUNCTION,
    "mapping.depth": FUNCTION,
    "mapping.heads": FUNCTION,
    "mapping.head_width": FUNCTION,
    "mapping.feedforward": FUNCTION,
    "mapping.dropout": TRAINING,
    "data.shards": NEITHER,
    "data.mixture": NEITHER,
    "data.shuffle_shards": TRAINING,
    "data.validation_percent": TRAINING,
    "data.stage_dir": NEITHER,
    "data.cache_dir": NEITHER,
    "data.cache_gib": NEITHER,
    "data.objective": FUNCTION,
    "data.augment_prompt": FUNCTION,
    "data.bos": FUNCTION,
    "data.separator": FUNCTION,
    "data.target_space": FUNCTION,
    "data.target_end": FUNCTION,
    "data.chat_template": FUNCTION,
    "data.system_prompt": FUNCTION,
    "data.truncation_side": FUNCTION,
    "data.source_language": FUNCTION,
    "data.max_source_tokens": FUNCTION,
    "data.max_prompt_tokens": FUNCTION,
    "data.max_target_tokens": FUNCTION,
    "data.max_characters": TRAINING,
    "data.max_bad_samples": NEITHER,
    "data.tokens_per_micro_batch": NEITHER,
    "data.length_window": TRAINING,
    "data.length_chunk": TRAINING,
    "data.workers": NEITHER,
    "data.prefetch": NEITHER,
    "train.steps": TRAINING,
    "train.global_batch": TRAINING,
    "train.micro_batch": NEITHER,
    "train.encode_once": NEITHER,
    "train.encode_once_gib": NEITHER,
    "train.validate_every": NEITHER,
    "train.validation_samples": NEITHER,
    "train.lr": TRAINING,
    "train.betas": TRAINING,
    "train.eps": TRAINING,
    "train.weight_decay": TRAINING,
    "train.warmup_ratio": TRAINING,
    "train.schedule": TRAINING,
    "train.tf32": TRAINING,
    "train.max_grad_norm": TRAINING,
    "train.max_bad_steps": NEITHER,
    "checkpoint.every": NEITHER,
    "checkpoint.keep_last": NEITHER,
    "checkpoint.keep_best": NEITHER,
    "checkpoint.max_failed_saves": NEITHER,
    "track.to": NEITHER,
    "track.uri": NEITHER,
    "track.experiment": NEITHER,
    "track.name": NEITHER,
    "track.every": NEITHER,
    "evaluation.tasks": NEITHER,
    "evaluation.languages": NEITHER,
    "evaluation.limit": NEITHER,
    "evaluation.batch": NEITHER,
    "evaluation.null_scores": NEITHER,
    "evaluation.max_new_tokens": NEITHER,
    "evaluation.llm_from": NEITHER,
    "evaluation.data": NEITHER,
}
"""In the schema's order; tests/config/test_changes.py fails where a field is missing here."""

PATHS = frozenset({
    "run.output", "run.resume", "run.start_from", "run.ds_config", "model.encoder", "model.llm", "data.shards",
    "data.mixture", "data.stage_dir", "data.cache_dir", "track.uri", "evaluation.llm_from", "evaluation.data.*.source",
})  # fmt: skip
"""Texts that are, or may be, a place on disk: `~` and `$VARIABLE` in them are expanded (:mod:`bridge_ds.config.text`).
`*` stands for any name."""


def kind_of(key: str) -> str:
    """The kind of `part.key`. What has none yet is told and not refused, which loses nobody's run."""
    return KINDS.get(key, TRAINING)
