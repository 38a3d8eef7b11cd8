"""What the LLM's layers attend to beside their text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from bridge_ds.config.schema.fields import FUNCTION, TRAINING, Flag, NonNegativeFloat, NonNegativeInts, Rule
from bridge_ds.config.schema.models import FusionConfig
from bridge_ds.fusion import FUSIONS
from bridge_ds.injection import FORMS, NO_FORM, FormSpec

__all__ = ["InjectionConfig", "reads_all_layers"]

if TYPE_CHECKING:
    FormName: TypeAlias = str
else:  # a new form is one line in its table
    FormName = Literal[NO_FORM, *FORMS]


@dataclass(frozen=True, kw_only=True)
class InjectionConfig:
    """The encoder's states in the attention of the LLM's layers, times a gate of each layer that begins at 0: the LLM
    then computes what it computes alone, bit for bit."""

    form: Annotated[FormName, FUNCTION] = NO_FORM
    """none (the soft prompt in the LLM's input alone) | every_layer (LayAlign, arXiv 2502.11405: encoder states,
    weighed for each layer) | gated_prompt (the soft prompt beside the text and not before it; with data.augment_prompt
    the LLM reads the text as it does alone, and the gates say how much of the soft prompt is added)."""
    soft_prompt: Annotated[Flag, FUNCTION] = True
    """Put the soft prompt into the LLM's input beside every_layer, as LayAlign does. false = every_layer alone, without
    fusion and mapping."""
    llm_layers: Annotated[
        NonNegativeInts,
        Rule(lambda given: sorted({*given}) == [*given], "ascending numbers, each once"),
        FUNCTION,
    ] = ()
    """Numbers of the LLM's layers that attend beside their text, ascending from 0; empty = all that have attention."""
    mlp: Annotated[Flag, FUNCTION] = False
    """A second matrix H -> H after every_layer's first (LayAlign's structure `MLP`)."""
    lr_scale: Annotated[NonNegativeFloat, TRAINING] = 1.0
    """Learning rate of the injection's parameters, as a multiple of train.lr."""

    @property
    def spec(self) -> FormSpec | None:
        """Facts about the form; None = there is none."""
        return None if self.form == NO_FORM else FORMS[self.form]

    @property
    def makes_prompt(self) -> bool:
        """Whether fusion and mapping make a soft prompt."""
        return self.spec is None or self.spec.reads_prompt or self.soft_prompt

    @property
    def prompt_in_input(self) -> bool:
        """Whether it stands in the LLM's input."""
        return self.spec is None or (self.soft_prompt and not self.spec.reads_prompt)


def reads_all_layers(fusion: FusionConfig, injection: InjectionConfig) -> bool:
    """Whether a bridge reads more of the encoder than its last layer."""
    form = injection.spec
    return FUSIONS[fusion.name].mixes_layers or (form is not None and not form.reads_prompt)
