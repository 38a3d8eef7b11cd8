"""The data, the optimizer, and what is kept on disk."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Le

from bridge_ds.config.schema.fields import (
    FUNCTION,
    NEITHER,
    ORDER,
    TRAINING,
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    OrNone,
    Pair,
    Path,
    Paths,
    PositiveFloat,
    PositiveInt,
    Probability,
    Real,
    Text,
    Texts,
    Whole,
)
from bridge_ds.objectives import OBJECTIVES

__all__ = ["CheckpointConfig", "DataConfig", "TrainConfig"]


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The English shards and how samples become batches."""

    shards: Annotated[Path, NEITHER] = "testbed/english"
    """Folder of webdataset tars with index.json (made by bridge-ds pack), the URL of one (https://, s3://, hf://), or
    what the first start writes to RUN/shards: `testbed/english`, or `task:NAME` for a task's English train split."""
    mixture: Annotated[Paths, NEITHER] = ()
    """Several data sets instead of `shards`: a list of FOLDER=WEIGHT, drawn from in the ratio of the weights (each at
    least 1/20,000 of their sum)."""
    shuffle_shards: Annotated[PositiveInt, Le(1_000_000), ORDER] = 16
    """Shards whose samples are shuffled together (the shards are shuffled too); reading stays among these."""
    validation_percent: Annotated[Whole, Ge(0), Le(99), ORDER] = 0
    """Percent of the samples, chosen by the hash of their keys, that are held out of training; train.validate_every
    says how often their loss is computed."""
    stage_dir: Annotated[Path, NEITHER] = ""
    """Folder on each node's own disk to which all shards are copied before training; empty = no copy."""
    cache_dir: Annotated[Path, NEITHER] = ""
    """Folder on each node for shards fetched from a URL; empty = ~/.cache/bridge_ds."""
    cache_gib: Annotated[PositiveFloat, NEITHER] = 50.0
    """Size limit of the fetched shards on each node, for each data set (GiB); the least recently used are removed
    first."""
    states_cache: Annotated[Path, NEITHER] = ""
    """Folder on each node's own disk where the states of a frozen encoder are kept: later epochs, and later runs with
    the same encoder, read them from there (bridge-ds encode writes them ahead). Empty = none are kept."""
    states_cache_gib: Annotated[PositiveFloat, NEITHER] = 100.0
    """Size limit of that folder (GiB); once it is reached, states that are not there are computed each time."""
    source_language: Annotated[Text, FUNCTION] = ""
    """Language of sources that have no field `language`, for an encoder that is told it by a tag (NLLB, M2M-100,
    mBART): its tag or an ISO 639 code, such as en; empty = the index's language of the shard, else the tokenizer's own,
    which is logged."""
    objective: Annotated[
        Literal[
            "task", "prefix_lm", "self_teaching", "task_and_self_teaching", "denoise", "align", "denoise_and_align"
        ],
        FUNCTION,
    ] = "task"
    """task: predict `target` from `source` | prefix_lm: split `text` in two and predict the rest (LangBridge) |
    self_teaching: let the LLM, which reads the English `text` (or `source`) itself, teach what it says at the tokens of
    `target`, or without targets at the first token of the answer | task_and_self_teaching: both losses. Of the encoder
    alone (bridge-ds adapt): denoise: predict masked tokens or spans of `text` (or `source`) | align: pull the states of
    `source` to those of `target`, its English translation | denoise_and_align: the one where a sample has no `target`,
    else the other."""
    mix_words: Annotated[Path, NEITHER] = ""
    """Dictionary (TSV of English, word, language) from which English words of the sources are replaced, for each epoch
    anew; empty = none. Validation reads the texts as they are."""
    mix_words_share: Annotated[Real, Ge(0), Le(1), TRAINING] = 0.5
    """Probability that a word that is in the dictionary is replaced."""
    mix_words_languages: Annotated[Texts, TRAINING] = ()
    """Languages of the dictionary that are used; empty = all."""
    augment_prompt: Annotated[Flag, FUNCTION] = False
    """Also show the LLM the source text with its own embeddings, after the soft prompt (MindMerger)."""
    augment_share: Annotated[Real, Ge(0), Le(1), TRAINING] = 1.0
    """Share of the training samples whose text the LLM is shown so. The others it answers from the encoder alone: an
    LLM that knows the task in English needs no bridge where it reads the English text, and trains none."""
    augment_cipher: Annotated[Real, Ge(0), Le(1), TRAINING] = 0.0
    """Share of the texts shown so that are in cipher: each letter is replaced by another one, Latin or of another
    script, for each sample and epoch anew. The LLM cannot read them, as it cannot read a language that it does not
    know, and answers from the encoder, which reads the English. Held-out samples are shown as they are, whatever
    augment_share too."""
    replay: Annotated[Probability, TRAINING] = 0.0
    """With augment_prompt, share of the training samples whose target is what the LLM alone says of the text, not the
    label (KL, as in self-teaching), so that what the LLM can do by itself stays. Their text is shown as it is, whatever
    augment_share and augment_cipher. No held-out sample is replayed."""
    bos: Annotated[Literal["auto", "always", "never", "unless_eos"], FUNCTION] = "auto"
    """Whether the LLM's BOS opens its input: auto (as its tokenizer opens a text by itself) | always | never |
    unless_eos (as in runs before this setting: also one that the tokenizer does not add, unless it is the EOS)."""
    separator: Annotated[Text, FUNCTION] = ""
    """Text between the LLM's prompt and the target, in place of the white space that the prompt ends with; `keep` =
    that white space as it is."""
    target_space: Annotated[Literal["auto", "space", "none"], FUNCTION] = "auto"
    """A space before each target: auto (where the LLM's tokenizer has it in the token of a word inside a text:
    byte-level BPE has, SentencePiece adds it by itself) | space | none."""
    target_end: Annotated[Flag, FUNCTION] = True
    """Close each target with the LLM's end token."""
    chat_template: Annotated[Flag, FUNCTION] = False
    """Put the LLM's own chat template around the soft prompt, as an instruction-tuned LLM expects it; an answer begins
    right after it, with no space of ours. Every use of the run does the same by default."""
    system_prompt: Annotated[Text, FUNCTION] = ""
    """System message for the LLM in front of the chat template, in the LLM's own language; empty = none."""
    truncation_side: Annotated[Literal["right", "left"], FUNCTION] = "right"
    """Side at which a source or prompt that is too long is truncated: right = its end is lost; left = its beginning (a
    question at the end is kept). prefix_lm always truncates the beginning. Targets lose their end."""
    max_source_tokens: Annotated[Whole, Ge(2), Le(10_000_000), FUNCTION] = 512
    """Encoder tokens per sample, end token included; longer sources are truncated and counted."""
    max_prompt_tokens: Annotated[PositiveInt, Le(10_000_000), FUNCTION] = 512
    """LLM prompt tokens per sample; longer prompts are truncated and counted."""
    max_target_tokens: Annotated[Whole, Ge(2), Le(10_000_000), FUNCTION] = 128
    """Target tokens per sample, end token included; longer targets are truncated and counted."""
    max_characters: Annotated[NonNegativeInt, TRAINING] = 10_000_000
    """Characters of a text; a sample with a longer one is bad (a tokenizer would take seconds). 0 = any length."""
    max_bad_samples: Annotated[NonNegativeInt, NEITHER] = 0
    """Bad samples that a run may skip (counted each time one comes up) before it stops: malformed, a field missing, a
    text empty or longer than max_characters. Damaged shards always stop it."""
    tokens_per_micro_batch: Annotated[NonNegativeInt, NEITHER] = 0
    """Tokens of a micro-batch, padding included, instead of train.micro_batch samples; estimated from characters, so
    leave some room. 0 = off."""
    length_window: Annotated[PositiveInt, Le(1_000_000), ORDER] = 1
    """Optimizer steps whose samples are bucketed by length (1 = off: a step has exactly its slice of the order). More
    means less padding; the samples of the window stay the same."""
    length_chunk: Annotated[PositiveInt, Le(10_000_000), ORDER] = 8
    """Samples of similar length that stay together where length_window is above 1; train.micro_batch is best."""
    workers: Annotated[NonNegativeInt, Le(128), NEITHER] = 2
    """DataLoader worker processes per rank (0 = in the main process)."""
    prefetch: Annotated[PositiveInt, Le(1000), NEITHER] = 4
    """Steps that each worker prepares ahead."""

    def taught_share(self, bridge: bool) -> float:
        """Share of the training samples in which the LLM alone teaches.

        Args:
            bridge: whether one is trained.
        """
        if OBJECTIVES[self.objective].teaches:
            return 1.0
        return self.replay if bridge and self.augment_prompt else 0.0

    def conflicts(self) -> Iterator[str]:
        """A sentence for each two settings that contradict each other."""
        longest = self.max_source_tokens + self.max_target_tokens + self.max_prompt_tokens * self.augment_prompt
        if 0 < self.tokens_per_micro_batch < longest:
            yield (
                f"data.tokens_per_micro_batch is {self.tokens_per_micro_batch}; one sample may have {longest} tokens; "
                "raise it, or lower the lengths in data.max_*_tokens."
            )
        if self.system_prompt and not self.chat_template:
            yield (
                "data.system_prompt is set and data.chat_template is false; a system message is part of a chat; "
                "set data.chat_template=true, or leave the message out."
            )
        if self.chat_template and self.objective == "prefix_lm":
            yield (
                f"data.chat_template is true and data.objective is {self.objective!r}; expected task, for the rest of "
                "a text is no answer in a chat; set data.chat_template=false."
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Optimization."""

    steps: Annotated[PositiveInt, TRAINING] = 1000
    """Optimizer steps in the whole run."""
    global_batch: Annotated[PositiveInt, Le(10_000_000), ORDER] = 128
    """Samples per optimizer step over all ranks; micro_batch x ranks must divide it."""
    micro_batch: Annotated[NonNegativeInt, Le(10_000_000), NEITHER] = 8
    """Samples per rank per forward pass; 0 = the rank's whole share of the global batch at once."""
    encode_once: Annotated[Flag, NEITHER] = True
    """Let a frozen encoder read the micro-batches of a step together, as many as encode_once_gib allows: under ZeRO-3
    its layers are then gathered once for all of these, with the same losses. Under ZeRO-2 it changes nothing."""
    encode_once_gib: Annotated[NonNegativeFloat, NEITHER] = 4.0
    """Memory for encoder states on a rank (GiB; 0 = those of one micro-batch). A micro-batch counts as (layers + 1) x
    rows x data.max_source_tokens x width x 2 bytes (4 in float32), however short its texts are."""
    packing: Annotated[Flag | None, OrNone, NEITHER] = None
    """Join the rows of a micro-batch end to end where the LLM's class computes them exactly so (seen on a tiny copy of
    it), each row attending to itself alone, with its last layer at the predicted positions only; and let a frozen
    encoder read rows of similar length together. Next to nothing is then computed on padding. It changes
    rounding. null = on a CPU; on GPUs it has not been measured."""
    compile: Annotated[Literal["off", "frozen"], TRAINING] = "off"
    """frozen: in training, run the layers of a frozen encoder and LLM through torch.compile, each by itself. Steps are
    faster and keep less, the first takes half a minute longer or more, and results change by rounding. Needs a C
    compiler. A trained model, LoRA's LLM and an encoder with dropout run as they are."""
    lr: Annotated[Real, Ge(0), Le(1e38), TRAINING] = 3e-5
    """Peak learning rate of AdamW."""
    betas: Annotated[tuple[Probability, Probability], Pair, TRAINING] = (0.8, 0.999)
    """AdamW's beta1 and beta2."""
    eps: Annotated[PositiveFloat, Le(1), TRAINING] = 1e-8
    """AdamW's epsilon."""
    weight_decay: Annotated[NonNegativeFloat, TRAINING] = 3e-7
    """AdamW's decoupled weight decay (on matrices; vectors and scalars have none)."""
    warmup_ratio: Annotated[Real, Ge(0), Le(1), TRAINING] = 0.05
    """Share of `steps` with linear warm-up."""
    schedule: Annotated[Literal["cosine", "linear", "constant"], TRAINING] = "cosine"
    """Learning rate after warm-up; cosine and linear end at 0."""
    tf32: Annotated[Flag, TRAINING] = True
    """Multiply what is float32 beside bfloat16 models (mapping, fusion) in TF32 on GPUs that have it."""
    max_grad_norm: Annotated[Real, Ge(0), Le(1e30), TRAINING] = 1.0
    """Largest global gradient norm; larger gradients are scaled down to it. 0 = no clipping."""
    validate_every: Annotated[NonNegativeInt | None, OrNone, NEITHER] = None
    """Optimizer steps between two computations of the loss on what data.validation_percent holds out, on all ranks and
    without dropout (the last step has one too); null = as checkpoint.every; 0 = never. Training does not change."""
    validation_samples: Annotated[NonNegativeInt, NEITHER] = 1024
    """Most samples of a validation, the same ones each time and whatever run.seed is (kept as token ids in the ranks'
    memory); 0 = all that are held out."""
    teaching_weight: Annotated[NonNegativeFloat, TRAINING] = 1.0
    """Weight of self-teaching's loss beside the task's (data.objective task_and_self_teaching, data.replay)."""
    teaching_temperature: Annotated[PositiveFloat, TRAINING] = 1.0
    """Temperature of both distributions in self-teaching and data.replay; the loss is multiplied by the temperature's
    square, which keeps the gradients' size (arXiv 1503.02531)."""
    max_bad_steps: Annotated[NonNegativeInt, NEITHER] = 0
    """Steps in a row whose loss or gradient is not finite before the run stops; each one is skipped and shown."""


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """What is kept on disk."""

    every: Annotated[PositiveInt, NEITHER] = 500
    """Optimizer steps between checkpoints (one is always written at the end)."""
    keep_last: Annotated[NonNegativeInt, NEITHER] = 2
    """Newest checkpoints kept; older ones are removed after a new one is valid. 0 keeps all."""
    keep_best: Annotated[NonNegativeInt, NEITHER] = 1
    """Checkpoints kept besides these for the lowest loss: the validation loss at that step where the run has it, else
    the training loss, mean since the save before (0 = none). `RUN/checkpoints/best` names the best one to other
    commands and to run.start_from."""
    max_failed_saves: Annotated[NonNegativeInt, NEITHER] = 3
    """Saves in a row that may fail (full disk, lost folder) before the run ends; only the run's last one is retried."""
