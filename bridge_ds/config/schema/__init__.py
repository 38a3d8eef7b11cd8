"""Every setting of a run, typed, with its unit. Recipes are YAML of this shape; unknown keys are refused."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge_ds.config.schema.data import DataConfig
from bridge_ds.config.schema.models import (
    EncoderConfig,
    FusionConfig,
    LlmConfig,
    LoraConfig,
    MappingConfig,
    ModelConfig,
)
from bridge_ds.config.schema.runs import RunConfig, TrackConfig
from bridge_ds.config.schema.scoring import EvaluationConfig, TaskDataConfig
from bridge_ds.config.schema.training import CheckpointConfig, TrainConfig

__all__ = [
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FusionConfig",
    "LlmConfig",
    "LoraConfig",
    "MappingConfig",
    "ModelConfig",
    "RunConfig",
    "TaskDataConfig",
    "TrackConfig",
    "TrainConfig",
]


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `bridge_ds/config/recipes/*.yaml` are named instances."""

    run: RunConfig = field(default_factory=RunConfig)
    """Folder, seed, resume."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Encoder and LLM."""
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    """Training of the encoder."""
    llm: LlmConfig = field(default_factory=LlmConfig)
    """Training of the LLM."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    """Updates of the LLM."""
    fusion: FusionConfig = field(default_factory=FusionConfig)
    """Layers -> one."""
    mapping: MappingConfig = field(default_factory=MappingConfig)
    """D -> H."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards and batches."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimisation."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Recording."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scoring."""
