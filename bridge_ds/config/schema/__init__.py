"""Every setting of a run: type, bounds, kind and a sentence. Recipes are YAML of this shape; unknown keys are refused.

Sections are plain frozen dataclasses, whose annotations pydantic reads (:mod:`bridge_ds.config.build`) when a config
comes from a file, a command line or a record. `docs/configuration.md` is made from here.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import ConfigDict

from bridge_ds.config.schema.adapt import AdaptConfig
from bridge_ds.config.schema.fields import NEITHER, Kind, Section, Table, Text
from bridge_ds.config.schema.injection import InjectionConfig, reads_all_layers
from bridge_ds.config.schema.models import (
    EncoderConfig,
    FusionConfig,
    LlmConfig,
    LoraConfig,
    MappingConfig,
    ModelConfig,
)
from bridge_ds.config.schema.runs import EvaluationConfig, RunConfig, TaskDataConfig, TrackConfig
from bridge_ds.config.schema.tasks import TaskConfig
from bridge_ds.config.schema.training import CheckpointConfig, DataConfig, TrainConfig
from bridge_ds.injection import NO_FORM
from bridge_ds.objectives import OBJECTIVES

__all__ = [
    "KINDS",
    "SECTIONS",
    "AdaptConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "EncoderConfig",
    "EvaluationConfig",
    "FusionConfig",
    "InjectionConfig",
    "LlmConfig",
    "LoraConfig",
    "MappingConfig",
    "ModelConfig",
    "RunConfig",
    "TaskConfig",
    "TaskDataConfig",
    "TrackConfig",
    "TrainConfig",
    "metadata",
    "reads_all_layers",
]


_WINDOW = 100_000_000
"""Most samples that are bucketed by length together."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """One run. `bridge_ds/config/recipes/*.yaml` are named instances."""

    __pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=True)

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
    injection: InjectionConfig = field(default_factory=InjectionConfig)
    """States to the LLM's layers."""
    adapt: AdaptConfig = field(default_factory=AdaptConfig)
    """Training of the encoder alone."""
    data: DataConfig = field(default_factory=DataConfig)
    """Shards and batches."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Optimization."""
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    """Saving."""
    track: TrackConfig = field(default_factory=TrackConfig)
    """Recording."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    """Scoring."""
    tasks: Annotated[dict[Text, Annotated[TaskConfig, Section]], Table, NEITHER] = field(default_factory=dict)
    """Tasks of the user's own, by name."""

    @property
    def has_soft_prompt(self) -> bool:
        """Whether fusion and mapping make a soft prompt."""
        return self.model.has_bridge and self.injection.makes_prompt

    def conflicts(self) -> Iterator[str]:
        """A sentence for each two settings that contradict each other."""
        yield from self.data.conflicts()
        yield from self.lora.conflicts()
        yield from self.mapping.conflicts()
        yield from self._conflicts_of_parts()
        for name, task in self.tasks.items():
            yield from task.conflicts(name)
        data, train = self.data, self.train
        if data.length_window > 1 and train.global_batch % data.length_chunk:
            yield (
                f"data.length_chunk {data.length_chunk} does not divide train.global_batch {train.global_batch}; "
                "expected a divisor; set it to train.micro_batch."
            )
        if data.length_window * train.global_batch > _WINDOW:
            yield (
                f"data.length_window {data.length_window} x train.global_batch {train.global_batch} is more than "
                f"{_WINDOW:,} samples, whose lengths are all in memory; expected fewer; lower data.length_window."
            )
        if train.validate_every and not data.validation_percent:
            yield (
                f"train.validate_every is {train.validate_every}, but data.validation_percent is 0 and holds nothing "
                "out; expected 1 or more of it; a run that has begun without cannot change it."
            )
        if self.evaluation.choose and self.llm.trainable:
            yield (
                "evaluation.choose is true and llm.trainable is true; expected a frozen LLM, because a trained one can "
                "no longer answer as it was; set evaluation.choose to false."
            )

    def _conflicts_of_parts(self) -> Iterator[str]:
        """Of what is there and what is trained."""
        objective = OBJECTIVES[self.data.objective]
        if not (self.model.has_encoder or self.lora.rank or self.llm.trainable):
            yield (
                "model.encoder is none, and nothing of the LLM is trained; expected lora.rank above 0 or "
                "llm.trainable=true; set one, or name an encoder."
            )
        if self.llm.finetune and not self.model.has_encoder:
            yield (
                "llm.finetune is true and model.encoder is none, so there is no bridge to train after it; expected an "
                "encoder; set llm.finetune to false, as this run is that of the LLM."
            )
        if self.llm.finetune and self.run.start_from:
            yield (
                f"llm.finetune is true and run.start_from is {self.run.start_from!r}, whose bridge belongs to the LLM "
                "that it was trained with, not to one that this run teaches; expected one of them; set llm.finetune to "
                "false and model.llm to that run's."
            )
        if objective.teaches and (self.lora.rank or self.llm.trainable or not self.model.has_encoder):
            yield (
                f"data.objective is {self.data.objective}, in which the LLM as it is teaches a bridge; expected an "
                "encoder and a frozen LLM; set lora.rank=0 and llm.trainable=false (llm.finetune may train the LLM "
                "before)."
            )
        if self.data.replay and self.model.has_bridge and self.data.objective != "task":
            yield (
                f"data.replay is {self.data.replay:g} and data.objective is {self.data.objective}; expected the "
                "objective task, of whose samples some are replayed; set data.replay=0."
            )
        if self.data.replay and self.model.has_bridge and (self.lora.rank or self.llm.trainable):
            yield (
                f"data.replay is {self.data.replay:g}, in which the LLM as it is teaches, and the LLM is trained; "
                "expected a frozen LLM; set data.replay=0, or lora.rank=0 and llm.trainable=false."
            )
        if self.lora.rank and self.llm.trainable:
            yield (
                f"lora.rank is {self.lora.rank} and llm.trainable is true; expected updates of a frozen LLM, or all of "
                "it trained; set one of them to 0 or false."
            )
        if self.injection.form != NO_FORM and not self.model.has_bridge:
            yield (
                f"injection.form is {self.injection.form}, and there is no bridge (model.encoder "
                f"{self.model.encoder!r}, model.llm {self.model.llm!r}); expected both models; set "
                f"injection.form={NO_FORM}."
            )
        if not self.model.has_llm:
            yield from self._conflicts_of_adapting()
        elif objective.adapts:
            yield (
                f"data.objective is {self.data.objective} and model.llm is {self.model.llm}; expected no LLM, for the "
                "encoder is trained alone then; set model.llm=none, or use bridge-ds adapt."
            )

    def _conflicts_of_adapting(self) -> Iterator[str]:
        objective = OBJECTIVES[self.data.objective]
        if not self.model.has_encoder:
            yield "model.encoder and model.llm are both none; expected one of them to train; name it."
        if self.llm.finetune:
            yield "llm.finetune is true and model.llm is none; expected an LLM to teach; set llm.finetune to false."
        if not objective.adapts:
            those = ", ".join(name for name, of in OBJECTIVES.items() if of.adapts)
            yield (
                f"model.llm is none and data.objective is {self.data.objective}; expected one of {those}, which train "
                "the encoder alone; set one."
            )
        if self.adapt.new_rows_only:
            if self.lora.rank or self.encoder.trainable or objective.denoises:
                yield (
                    f"adapt.new_rows_only is true, lora.rank is {self.lora.rank}, encoder.trainable is "
                    f"{str(self.encoder.trainable).lower()} and data.objective is {self.data.objective}; expected "
                    "nothing else to be trained, on pairs; set lora.rank=0, encoder.trainable=false and "
                    "data.objective=align."
                )
        elif bool(self.lora.rank) == self.encoder.trainable:
            yield (
                f"model.llm is none, lora.rank is {self.lora.rank} and encoder.trainable is "
                f"{str(self.encoder.trainable).lower()}; expected updates of the encoder, or all of it trained; set "
                "one of them."
            )
        if objective.aligns and self.train.micro_batch == 1:
            yield (
                f"data.objective is {self.data.objective} and train.micro_batch is 1; expected 2 or more, for the "
                "other English sentences of a micro-batch are the negatives; set train.micro_batch=16."
            )
        if objective.aligns and (most := self.data.tokens_per_micro_batch):
            yield (
                f"data.objective is {self.data.objective} and data.tokens_per_micro_batch is {most}, with which a long "
                "pair is alone; expected 0, for the other English sentences of a micro-batch are the negatives; set it "
                "to 0, and train.micro_batch=16."
            )
        if self.evaluation.tasks:
            yield (
                f"model.llm is none and evaluation.tasks is {', '.join(self.evaluation.tasks)}; expected no tasks, as "
                "there is nothing that answers; set evaluation.tasks=[]."
            )


@functools.cache
def _hints(section: type) -> dict[str, Any]:
    return typing.get_type_hints(section, include_extras=True)


def metadata(loc: Sequence[int | str]) -> tuple[Any, ...]:
    """The type at a position in the config, such as ("train", "lr"), and the annotations beside it."""
    of: tuple[Any, ...] = (Config,)
    for part in loc:
        if isinstance(of[0], type) and dataclasses.is_dataclass(of[0]):
            of = _unwrapped(_hints(typing.cast(type, of[0]))[str(part)])
        else:  # a value of a dict, or an element of a tuple
            of = _unwrapped(typing.get_args(of[0])[1 if isinstance(part, str) else 0])
    return of


def _unwrapped(hint: Any) -> tuple[Any, ...]:
    if hasattr(hint, "__metadata__"):
        return (*_unwrapped(hint.__origin__), *hint.__metadata__)
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return _unwrapped(typing.get_args(hint)[0])
    return (hint,)


SECTIONS: dict[str, type] = {name: hint for name, hint in _hints(Config).items() if name != "tasks"}
"""Name -> class of each section; the keys of `tasks` are names."""
KINDS: dict[str, Kind] = {
    f"{section}.{key}": kind
    for section, of in SECTIONS.items()
    for key in _hints(of)
    for kind in metadata((section, key))
    if isinstance(kind, Kind)
}
"""`section.key` -> what its change means, in the schema's order."""
