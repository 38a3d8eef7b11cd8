"""From measurements to findings: what is wrong and what to try, worst first. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from bridge_ds.doctor.measurements import Measurements
from bridge_ds.fusion import FUSIONS

__all__ = ["LIMITS", "Finding", "Thresholds", "diagnose"]


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth a look."""

    code: str
    """Its name, for programs."""
    wrong: bool
    """True: a cause of bad answers. False: worth a look, may be meant."""
    what: str
    """What was found, with the numbers."""
    advice: str
    """What to try."""


@dataclass(frozen=True)
class Thresholds:
    """Where healthy ends. Each with its reason."""

    largest: float = 20.0
    """Soft vector / token embedding, in norm. Calibration starts at 1, and trained testbed bridges had 1.2 to
    1.7; an LLM with norms inside reads several times that, but far beyond it the layers' own output no longer counts in
    the residual sum."""
    smallest: float = 0.05
    """The same from below: the soft prompt is then lost beside attention noise and positions."""
    untrained: float = 0.01
    """Distance of the mapping from its initial value, relative: at this distance it is still a random projection. Adam
    moves each weight by about the learning rate a step, so even 100 steps at 3e-5 move a matrix of D = 2048 by 20 %."""
    gap: float = 0.02
    """Nats a target token by which a wrong source must be worse than the right one; less is no use of the source.
    Testbed bridges had 2.3 after 60 steps and 6 after 750; against the most similar source 0.15 and 4.4."""
    gap_errors: float = 2.0
    """The same in standard errors of the measured gap: fewer may be luck of the samples."""
    above_recorded: float = 0.5
    """Nats a target token above the training loss that the run recorded, and
    `times_recorded` times it: samples differ, but what was trained cannot be that much worse on its own data."""
    times_recorded: float = 2.0
    """See above."""
    targets_lost: float = 0.1
    """Share of target tokens truncated: the end of an answer is then never learnt. Truncation is meant for outliers."""
    targets_cut: float = 0.02
    """Share of targets truncated that is worth a look."""
    sources_cut: float = 0.1
    """Share of sources truncated that is worth a look: the question is at the end, which is what a task loses."""
    unknown: float = 0.05
    """Share of unknown tokens: a multilingual encoder has next to none in languages it knows."""
    variation: float = 0.01
    """Share of the soft vectors that is no constant: below it all inputs look the same to the LLM. Trained testbed
    bridges had 0.6."""
    dead: float = 1e-5
    """The same between samples at one position: no more than rounding in bfloat16, so it carries nothing."""
    one_layer: float = 0.99
    """Weight of a single layer, from which on a softmax fusion is that layer alone."""


LIMITS = Thresholds()
"""In use."""


def diagnose(m: Measurements, limits: Thresholds = LIMITS) -> list[Finding]:
    """All findings, worst first: causes before the symptoms that they have, wrong before worth a look."""
    found = [finding for check in _CHECKS for finding in check(m, limits)]
    return sorted(found, key=lambda finding: not finding.wrong)


def _not_finite(m: Measurements, _: Thresholds) -> Iterator[Finding]:
    if m.not_finite:
        yield Finding(
            "not_finite", True,
            f"NaN or infinite values in {', '.join(m.not_finite)}.",
            "Go back to a checkpoint before it (run.resume=RUN/checkpoints/step-...), with a lower train.lr or "
            "train.max_grad_norm; use bfloat16 or float32, never float16, which overflows in T5-like encoders.",
        )  # fmt: skip


_NAMES = {
    "llm": "LLM",
    "encoder": "encoder",
    "llm_tokenizer": "LLM's tokenizer",
    "llm_end_ids": "LLM's set of end ids (eos_token_id in its generation_config.json)",
    "encoder_tokenizer": "encoder's tokenizer",
}


def _belonging(m: Measurements, _: Thresholds) -> Iterator[Finding]:
    for part in m.changed:
        yield Finding(
            f"{part}_changed", True,
            f"The {_NAMES[part]} is not the one that this bridge was trained with (its identity in the checkpoint's "
            "manifest is another).",
            "Put the one back that its manifest.json names (config: model, name and revision), or train again with "
            "this one: a bridge fits one encoder, one LLM and their own tokenizers only.",
        )  # fmt: skip
    for part in m.outside_vocabulary:
        yield Finding(
            f"{part}_vocabulary", True,
            f"The tokenizer of the {_NAMES[part]} gives ids for which the model has no embedding; nothing was run.",
            "Use the tokenizer of the same model.",
        )  # fmt: skip
    for part in m.differing_weights:
        yield Finding(
            f"{part}_weights", True,
            f"The {_NAMES[part]}'s weights in memory are not those of its file: it was not loaded rightly, or the file "
            "is of another model.",
            "Download the model again; if that changes nothing, try another version of transformers.",
        )  # fmt: skip


def _targets(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    if m.targets_cut > limits.targets_cut:
        wrong = m.targets_lost > limits.targets_lost
        yield Finding(
            "targets_cut", wrong,
            f"{m.targets_cut:.0%} of the targets are longer than data.max_target_tokens; {m.targets_lost:.0%} of the "
            "tokens to be learnt were cut off.",
            "Raise data.max_target_tokens above the longest usual target and train again.",
        )  # fmt: skip


def _untrained(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    if m.mapping_moved is not None and m.mapping_moved < limits.untrained:
        yield Finding(
            "mapping_untrained", True,
            f"The mapping is as the seed made it (moved by {m.mapping_moved:.2%} in {m.steps} steps): the soft prompt "
            "is a random projection of the encoder's states.",
            "Look at train.lr, train.steps and grad_norm in metrics.jsonl, and whether the right checkpoint is loaded.",
        )  # fmt: skip


def _size(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    if m.size is not None and math.isfinite(m.size) and not limits.smallest <= m.size <= limits.largest:
        large = m.size > limits.largest
        yield Finding(
            "soft_too_large" if large else "soft_too_small", True,
            f"A soft vector is {m.size:.3g} times as long as a token embedding of the LLM; healthy is "
            f"{limits.smallest:g} to {limits.largest:g}.",
            "Train with mapping.match_embedding_rms=true"
            + (", a lower train.lr or more train.weight_decay" if large else " and less train.weight_decay")
            + "; if the LLM multiplies its embeddings itself (Gemma), check that its version is that of the training.",
        )  # fmt: skip


def _dead(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    if m.variation is not None and m.variation < limits.variation:
        yield Finding(
            "soft_constant", True,
            f"The soft vectors are nearly all the same ({m.variation:.2%} of them varies): the LLM cannot see the "
            "input.",
            "Look at the encoder's states (layer RMS below); try fusion.state_norm=rms, a lower train.lr, less "
            "train.weight_decay.",
        )  # fmt: skip
    dead = [at + 1 for at, value in enumerate(m.variation_by_position) if value < limits.dead]
    if dead:
        yield Finding(
            "dead_tokens", len(dead) == len(m.variation_by_position) > 1,
            f"{len(dead)} of the first {len(m.variation_by_position)} soft vectors are the same for every sample "
            f"(positions {', '.join(map(str, dead[:8]))}).",
            "If all samples begin with the same words in front of a causal encoder this is as it should be; else the "
            "encoder's input is not what you think: see the decoded example.",
        )  # fmt: skip


def _use(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    if m.gap is None or m.one_target or m.loss_right is None or m.loss_shuffled is None or not math.isfinite(m.gap):
        return
    if m.gap < max(limits.gap, limits.gap_errors * (m.gap_error or 0.0)):
        advice = (
            "The LLM reads the text itself (data.augment_prompt) and may need nothing else; compare with a run without."
            if m.augmented
            else "Train longer or with a higher train.lr; check that sources and targets belong together in the shards."
        )
        yield Finding(
            "source_unused", not m.augmented,
            f"The LLM does not use the source: its loss is {m.loss_right:.3f} with the right one and "
            f"{m.loss_shuffled:.3f} with another sample's.",
            advice,
        )  # fmt: skip
    elif m.loss_none is not None and m.loss_none < m.loss_right:
        yield Finding(
            "worse_than_none", True,
            f"The soft prompt harms: the loss is {m.loss_right:.3f} with it and {m.loss_none:.3f} without any.",
            "Train longer; see whether the soft vectors' norm is near that of the embeddings.",
        )  # fmt: skip


def _details(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    """The source is used, but only for what it has in common with others like it."""
    if m.near_gap is None or m.loss_near is None or m.loss_right is None or not math.isfinite(m.near_gap):
        return
    if m.one_target or m.augmented or any(_use(m, limits)):
        return
    if m.near_gap < max(limits.gap, limits.gap_errors * (m.near_error or 0.0)):
        yield Finding(
            "details_unused", False,
            f"The LLM tells kinds of input apart, but not a sample from the most similar one with another target: the "
            f"loss is {m.loss_right:.3f} with the right source and {m.loss_near:.3f} with that one.",
            "Train longer: a bridge learns the kind of task first and the content later.",
        )  # fmt: skip


def _recorded(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    if m.loss_recorded is None or m.loss_right is None:
        return
    if m.loss_right > max(m.loss_recorded + limits.above_recorded, m.loss_recorded * limits.times_recorded):
        yield Finding(
            "above_recorded", True,
            f"The loss is {m.loss_right:.3f}; the run recorded {m.loss_recorded:.3f} at this checkpoint: what is "
            "loaded now is not what was trained then.",
            "See the findings above; without any, look for another checkpoint or other shards.",
        )  # fmt: skip


def _inputs(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    for what, share in (("source", m.sources_cut), ("prompt", m.prompts_cut)):
        if share > limits.sources_cut:
            yield Finding(
                f"{what}s_cut", False,
                f"{share:.0%} of the {what}s are longer than data.max_{what}_tokens and lose a part.",
                f"Raise data.max_{what}_tokens if both models can read more.",
            )  # fmt: skip
    if m.unknown > limits.unknown:
        yield Finding(
            "unknown_tokens", False,
            f"{m.unknown:.0%} of the encoder's tokens are unknown to it.",
            "Check that the encoder knows this script, and that its tokenizer has byte fallback (spiece.model beside "
            "it).",
        )  # fmt: skip


def _fusion(m: Measurements, limits: Thresholds) -> Iterator[Finding]:
    mixes = m.fusion not in FUSIONS or FUSIONS[m.fusion].mixes_layers
    if mixes and len(m.layer_weights) > 1 and max(m.layer_weights) > limits.one_layer:
        layer = m.layer_weights.index(max(m.layer_weights))
        yield Finding(
            "one_layer", False,
            f"The fusion has settled on layer {layer + 1} of {len(m.layer_weights)} (weight "
            f"{max(m.layer_weights):.3f}).",
            "A lower fusion.lr_scale, or fusion.state_norm=rms where layers differ in size, keeps more of them.",
        )  # fmt: skip


def _notes(m: Measurements, _: Thresholds) -> Iterator[Finding]:
    for note in m.notes:
        yield Finding("note", False, note, "Nothing, if you know of it.")
    if m.one_target:
        yield Finding(
            "one_target", False,
            "All samples have the same target, or none, so the use of the source cannot be measured.",
            "Look at more samples (--samples), or at the data.",
        )  # fmt: skip


# Worst first: what cannot work at all, what is not the trained system, what was not learnt, and symptoms of these last.
_CHECKS: tuple[Callable[[Measurements, Thresholds], Iterator[Finding]], ...] = (
    _not_finite, _belonging, _targets, _untrained, _size, _dead, _use, _recorded, _details, _inputs, _fusion, _notes,
)  # fmt: skip
