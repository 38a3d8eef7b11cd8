"""The model card of a trained bridge: a Jinja2 template, filled with what is handed in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from bridge_ds.adapt.extension import read_extension
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config
from bridge_ds.data.text.truncate import LOST, side_of
from bridge_ds.hub.config import BridgeConfig
from bridge_ds.hub.licence import licence
from bridge_ds.metrics import METRICS
from bridge_ds.objectives import OBJECTIVES

__all__ = [
    "ELSEWHERE",
    "HERE",
    "INSIDE",
    "MERGED",
    "UPDATES",
    "CardFacts",
    "encoder_card",
    "exported",
    "llm_card",
    "model_card",
]

HERE = "HERE"
"""Placeholder in the card for the repository's name."""
ELSEWHERE = "The base models are not in this repository: they are loaded by name and verified by hash."
"""In a card unless the base models were exported too."""
INSIDE = "The base models are in `encoder/` and `llm/` of this folder, verified by hash when they are loaded."
"""In the card of a folder that holds the base models too, instead of ELSEWHERE."""
UPDATES = "`lora.safetensors` holds low-rank updates of the LLM"
"""In the card of a bridge with LoRA."""
MERGED = "low-rank updates of the LLM are merged into `llm/`"
"""In the card instead of UPDATES where they were merged."""
_METRICS = ("acc", "exact_match")
_HEAD = ["language", *(f"{system}, {metric}" for system in ("bridge", "LLM alone") for metric in _METRICS), "samples"]
_TEMPLATE = """\
---
{{ card_data }}
---

# {{ name }}: a bridge from {{ encoder }} to {{ llm }}

A multilingual encoder reads the text, an English-centric LLM answers; this small module between them was trained on \
English alone, by [bridge_ds](https://arxiv.org/abs/2508.09091). \
{% if also %}Trained along with it: {{ also | join(" and ") }}.{% else %}Both are frozen.{% endif %} {{ elsewhere }}

```python
from bridge_ds import BridgeForCausalLM, BridgeProcessor

name = "{{ here }}"  # this repository or folder
model = BridgeForCausalLM.from_pretrained(name, device_map="auto")
processor = BridgeProcessor.from_pretrained(name)
print(processor.batch_decode(model.generate(**processor(["a text in any language"]))))
```

## Base models

{{ table([("part", "model", "licence"), ("encoder", encoder, encoder_licence), ("LLM", llm, llm_licence)]) }}

Use of the bridge is use of both base models; their licences hold.

## Training

{{ table([("", "")] + training) }}
{% if layer_weights %}
## Layer weights

Share of each encoder layer in what the LLM reads, mean over the tokens of the last training step.

{{ table([["layer"] + layers, ["weight"] + layer_weights]) }}
{% endif %}
## Accuracy

{% if scores %}In %. `acc`: {{ metrics["acc"] }}; `exact_match`: {{ metrics["exact_match"] }}. The LLM alone reads the \
same text itself.
{% if scored != checkpoint %}
These are scores of {{ scored or "a checkpoint that is not recorded" }}; the weights here are of {{ checkpoint }}.
{% endif %}{% for task, rows in scores.items() %}
### {{ task }}{% if chance[task] %} (chance {{ "%.1f" | format(100 * chance[task]) }}){% endif %}

{{ table([head] + rows) }}
{% endfor %}{% else %}The run was not scored.
{% endif %}"""
_LLM_TEMPLATE = """\
---
{{ card_data }}
---

# {{ llm }}, finetuned

Trained on a task in English ({{ how }}) by [bridge_ds](https://arxiv.org/abs/2508.09091), before a bridge from a \
multilingual encoder is trained to it. The licence of {{ llm }} holds: {{ licence }}.

{{ table }}
"""
_ENCODER_TEMPLATE = """\
---
{{ card_data }}
---

# {{ encoder }}, adapted

Its training was continued ({{ how }}) by [bridge_ds](https://arxiv.org/abs/2508.09091), for a bridge to an LLM. The \
licence of {{ encoder }} holds: {{ licence }}.

{{ table }}
{% for line in english %}
{{ line }}
{% endfor %}"""


@dataclass(frozen=True)
class CardFacts:
    """What a card says of a run, beside its config."""

    name: str
    """Of the run."""
    config: Config
    """Of the training."""
    step: int
    """Optimizer steps of the checkpoint."""
    state: Mapping[str, Any]
    """state.json of the checkpoint."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Packages that the run was trained with."""
    checkpoint: str = ""
    """Name of the checkpoint's folder."""
    layer_weights: Sequence[float | None] = ()
    """Mean weight of each encoder layer at that step; None = it was not finite."""
    results: Mapping[str, Any] = field(default_factory=dict)
    """evaluation.json, metrics under their names of today."""
    scored: str = ""
    """Name of the checkpoint that evaluation.json is of; empty = unknown."""


def model_card(shared: BridgeConfig, facts: CardFacts) -> str:
    """README.md of a bridge: Markdown with the YAML header that the hub reads.

    Args:
        shared: names the base models as others will find them.
        facts: of the run.
    """
    tasks, alone = facts.results.get("bridge", {}), facts.results.get("llm", {})
    data = ModelCardData(
        library_name="bridge_ds",
        pipeline_tag="text-generation",
        tags=["bridge_ds", "multilingual", *filter(None, [str(shared.fusion.get("name", ""))])],
        # Neither a local folder nor a model that comes with bridge_ds is a model of the hub.
        base_model=[name for each in (shared.encoder, shared.llm) if (name := _hub_id(each))] or None,
        language=sorted({code for scores in tasks.values() for code in scores}) or None,
        model_name=facts.name if tasks else None,
        eval_results=_eval_results(tasks) if tasks else None,
    )
    also = {"`encoder.safetensors` holds the encoder's weights": shared.encoder_training,
            "`llm.safetensors` holds the LLM's weights": shared.llm_training, UPDATES: shared.lora}  # fmt: skip
    first = 0 if facts.config.fusion.include_embeddings else 1
    card = ModelCard.from_template(
        data,
        template_str=_TEMPLATE,
        name=facts.name,
        here=HERE,
        elsewhere=ELSEWHERE,
        also=[text for text, trained in also.items() if trained],
        encoder=_shown(shared.encoder),
        llm=_shown(shared.llm),
        encoder_licence=licence(shared.encoder, shared.encoder_revision),
        llm_licence=licence(shared.llm, shared.llm_revision),
        training=_training(facts),
        layers=[str(first + number) for number in range(len(facts.layer_weights))],
        layer_weights=["-" if weight is None else f"{weight:.3f}" for weight in facts.layer_weights],
        head=_HEAD,
        metrics=METRICS,
        scores={task: _rows(scores, alone.get(task, {})) for task, scores in tasks.items()},
        chance=facts.results.get("chance", {}),
        scored=facts.scored,
        checkpoint=facts.checkpoint,
        table=_table,
    )
    return str(card).rstrip("\n") + "\n"


def llm_card(config: Config, step: int, state: Mapping[str, Any]) -> str:
    """README.md of an LLM that was trained by itself; arguments as of :class:`CardFacts`."""
    name, licence_ = config.model.llm, licence(config.model.llm, config.model.llm_revision)
    how = f"LoRA of rank {config.lora.rank}, merged into the weights" if config.lora.rank else "all of its weights"
    rows = [(key, value) for key, value in _training(CardFacts(config.run.output, config, step, state))
            if not key.startswith(("fusion", "mapping", "the LLM reads"))]  # fmt: skip
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=["bridge_ds"],
        base_model=_hub_id(name),
    )
    card = ModelCard.from_template(
        data, template_str=_LLM_TEMPLATE, llm=_shown(name), licence=licence_, how=how, table=_table([("", ""), *rows])
    )
    return str(card).rstrip("\n") + "\n"


def encoder_card(config: Config, step: int, state: Mapping[str, Any], english: Sequence[str]) -> str:
    """README.md of an encoder that was trained by itself.

    Args:
        config: see :class:`CardFacts`; likewise `step` and `state`.
        step: see `config`.
        state: see `config`.
        english: what it lost of English, in lines.
    """
    extended, name = read_extension(Path(config.model.encoder)), config.model.encoder
    name = extended.encoder if extended else name
    what = f"LoRA of rank {config.lora.rank}, merged into the weights" if config.lora.rank else "all of its weights"
    what = "the embeddings of added pieces alone" if config.adapt.new_rows_only else what
    kept = ("data", "samples", "dtype", "learning rate", "seed", "training loss", "loss on held-out", "made with")
    rows = [(key, value.replace(", English;", ";")) for key, value in
            _training(CardFacts(config.run.output, config, step, state)) if key.startswith(kept)]  # fmt: skip
    if OBJECTIVES[config.data.objective].denoises:
        rows.append(("hidden share of a text", f"{config.adapt.mask_share:g}"))
    if extended:
        rows.append(("pieces added to the vocabulary", f"up to {extended.pieces}"))
    card = ModelCard.from_template(
        ModelCardData(library_name="transformers", tags=["bridge_ds"], base_model=_hub_id(name)),
        template_str=_ENCODER_TEMPLATE, encoder=_shown(name), how=what, table=_table([("", ""), *rows]),
        licence=licence(config.model.encoder, config.model.encoder_revision),
        english=[line.strip() for line in english],
    )  # fmt: skip
    return str(card).rstrip("\n") + "\n"


def exported(card: str, merged: bool) -> str:
    """A card of a folder that holds the base models too.

    Args:
        card: of the bridge alone.
        merged: LoRA's updates are merged into the LLM.
    """
    card = card.replace(ELSEWHERE, INSIDE)
    return card.replace(UPDATES, MERGED) if merged else card


def _eval_results(tasks: Mapping[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="text-generation", dataset_type=task, dataset_name=task, dataset_config=code,
            metric_type={"acc": "accuracy"}.get(metric, metric), metric_name=metric, metric_value=round(share, 4),
        )
        for task, languages in tasks.items()
        for code, score in languages.items()
        for metric in _METRICS
        if (share := score.get(metric)) is not None
    ]  # fmt: skip


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    data, train, state = facts.config.data, facts.config.train, facts.state
    shards = ", ".join(_shown(part) for part in data.mixture) if data.mixture else _shown(data.shards)
    rows = [
        ("data", f"{shards}, English; objective `{data.objective}`"),
        ("samples", f"{state.get('consumed', 0):,} in {facts.step:,} steps of {train.global_batch}"),
        *(
            [("fusion", f"`{facts.config.fusion.name}`"), ("mapping", f"`{facts.config.mapping.kind}`")]
            if facts.config.injection.makes_prompt
            else []
        ),
        *([("injection", f"`{facts.config.injection.form}`")] if facts.config.injection.spec else []),
        ("the LLM reads the text too", "yes" if data.augment_prompt else "no"),
        ("the LLM's chat template", "yes" if data.chat_template else "no"),
        ("longest source, target", f"{data.max_source_tokens}, {data.max_target_tokens} tokens"),
        ("a longer source loses", f"its {LOST[side_of(data)]}"),
        ("dtype of the base models", facts.config.model.dtype),
        ("learning rate, weight decay", f"{train.lr:g} ({train.schedule}), {train.weight_decay:g}"),
        ("seed", str(facts.config.run.seed)),
    ]
    if isinstance(state.get("loss"), float):
        rows.append(("training loss", f"{state['loss']:.4f} nats a target token (mean since the previous save)"))
    if isinstance(state.get("validation_loss"), float):
        rows.append(("loss on held-out samples", f"{state['validation_loss']:.4f} nats a target token"))
    if facts.versions:
        rows.append(("made with", ", ".join(f"{name} {number}" for name, number in facts.versions.items())))
    return rows


def _rows(scores: Mapping[str, Any], alone: Mapping[str, Any]) -> list[list[str]]:
    """A row of _HEAD for each language, in percent."""
    return [
        [code, *_percent(score), *_percent(alone.get(code, {})), str(score.get("n", ""))]
        for code, score in scores.items()
    ]


def _percent(score: Mapping[str, Any]) -> list[str]:
    return ["-" if share is None else f"{100 * share:.1f}" for share in map(score.get, _METRICS)]


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shown(name: str) -> str:
    """A name without the path that leads to it on this machine."""
    return f"`{Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name}`"


def _hub_id(name: str) -> str | None:
    return None if Path(name).is_dir() or resolve(name) != name else name
