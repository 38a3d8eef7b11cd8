"""The model card of a trained bridge, made from its run: what is in it was read or measured there."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge_ds.checkpoint import layout
from bridge_ds.checkpoint.load import Checkpoint
from bridge_ds.config.names import resolve
from bridge_ds.config.schema import Config
from bridge_ds.data.text.truncate import LOST, side_of
from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import read_index
from bridge_ds.frozen.verify import model_file
from bridge_ds.hub.config import BridgeConfig
from bridge_ds.metrics import METRICS, current_names

__all__ = ["ELSEWHERE", "HERE", "MERGED", "UPDATES", "card_of_run", "licence"]

HERE = "HERE"
"""Stands in the card for the place where it will be."""
ELSEWHERE = "The base models are not in this repository: they are loaded by name and proven by hash."
"""Stands in a card, unless they were exported along with it."""
UPDATES = f"`{layout.LORA}` holds low-rank updates of the LLM"
"""Stands in the card of a bridge that has some."""
MERGED = "low-rank updates of the LLM are merged into `llm/`"
"""Stands there in its place where they were exported so."""
_UNKNOWN = "not stated with the files; see the model's own page"


def card_of_run(run: Path, config: Config, checkpoint: Checkpoint, shared: BridgeConfig) -> str:
    """README.md of a bridge: Markdown under a YAML head, as the hub reads it.

    Args:
        run: run folder; evaluation.json and metrics.jsonl are read where they are.
        config: the run's.
        checkpoint: the one that is shared.
        shared: names the base models as others will find them.
    """
    results = current_names(_json(run / "evaluation.json"))
    bases = [
        (what, name, licence(name, revision))
        for what, name, revision in (
            ("encoder", shared.encoder, shared.encoder_revision),
            ("LLM", shared.llm, shared.llm_revision),
        )
    ]
    parts = [
        _head(shared, results),
        f"# {run.resolve().name}: a bridge from {_shown(shared.encoder)} to {_shown(shared.llm)}",
        "A multilingual encoder reads the text, an English-centric LLM answers; this small module between them was "
        f"trained on English alone, by [bridge_ds](https://arxiv.org/abs/2508.09091). {_also_trained(shared)} "
        f"{ELSEWHERE}",
        _usage(),
        "## Base models\n\n" + _table(("part", "model", "licence"), [(w, _shown(n), text) for w, n, text in bases])
        + "\n\nUse of the bridge is use of both base models; their licences hold.",
        "## Training\n\n" + _table(("", ""), _training(config, checkpoint)),
        _weights(run, config, checkpoint.step),
        _accuracy(run, results, checkpoint),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def licence(name: str, revision: str | None = None) -> str:
    """The licence of a base model as its own README.md states it, or that it is not known here."""
    import yaml

    if resolve(name) != name:
        return "apache-2.0 (comes with bridge_ds)"
    try:
        path = model_file(name, "README.md", revision)
        text = path.read_text(encoding="utf-8") if path else ""
        head = yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}
    except (OSError, ValueError, IndexError, yaml.YAMLError):
        head = {}
    values = head if isinstance(head, dict) else {}
    stated = values.get("license_name") or values.get("license")
    link = values.get("license_link")
    return f"{stated} ({link})" if stated and link else str(stated or _UNKNOWN)


def _head(shared: BridgeConfig, results: Mapping[str, Any]) -> str:
    import yaml

    languages = sorted({code for task in results.get("bridge", {}).values() for code in task})
    values: dict[str, Any] = {
        "library_name": "bridge_ds",
        "pipeline_tag": "text-generation",
        "tags": ["bridge_ds", "multilingual", str(shared.fusion.get("name", ""))],
        # Neither a folder nor what comes with bridge_ds is a model of the hub.
        "base_model": [
            name for name in (shared.encoder, shared.llm) if not Path(name).is_dir() and resolve(name) == name
        ],
        "language": languages,
    }
    text = yaml.safe_dump({key: value for key, value in values.items() if value}, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---"


def _usage() -> str:
    return (
        "```python\n"
        "from bridge_ds import BridgeForCausalLM, BridgeProcessor\n\n"
        f'name = "{HERE}"  # this repository or folder\n'
        'model = BridgeForCausalLM.from_pretrained(name, device_map="auto")\n'
        "processor = BridgeProcessor.from_pretrained(name)\n"
        'print(processor.batch_decode(model.generate(**processor(["a text in any language"]))))\n'
        "```"
    )


def _also_trained(shared: BridgeConfig) -> str:
    parts = [f"`{layout.ENCODER}` holds the encoder's weights"] if shared.encoder_training else []
    parts += [f"`{layout.LLM}` holds the LLM's weights"] if shared.llm_training else []
    parts += [UPDATES] if shared.lora else []
    return f"Trained along with it: {' and '.join(parts)}." if parts else "Both are frozen."


def _training(config: Config, checkpoint: Checkpoint) -> list[tuple[str, str]]:
    data, train, state = config.data, config.train, checkpoint.state
    shards = ", ".join(_shown(part) for part in data.mixture) if data.mixture else _shown(data.shards)
    rows = [
        ("data", f"{shards}, English; objective `{data.objective}`"),
        ("samples", f"{state.get('consumed', 0):,} in {checkpoint.step:,} steps of {train.global_batch}"),
        ("fusion", f"`{config.fusion.name}`"),
        ("mapping", f"`{config.mapping.kind}`"),
        ("the LLM reads the text too", "yes" if data.augment_prompt else "no"),
        ("the LLM's chat template", "yes" if data.chat_template else "no"),
        ("longest source, target", f"{data.max_source_tokens}, {data.max_target_tokens} tokens"),
        ("a longer source loses", f"its {LOST[side_of(data)]}"),
        ("base models in", config.model.dtype),
        ("learning rate, weight decay", f"{train.lr:g} ({train.schedule}), {train.weight_decay:g}"),
        ("seed", str(config.run.seed)),
    ]
    if isinstance(state.get("loss"), float):
        rows.append(("training loss", f"{state['loss']:.4f} nats a target token (mean since the save before)"))
    if isinstance(state.get("validation_loss"), float):
        rows.append(("loss on held-out samples", f"{state['validation_loss']:.4f} nats a target token"))
    versions = checkpoint.manifest.get("versions") or {}
    if versions:
        rows.append(("made with", ", ".join(f"{name} {number}" for name, number in versions.items())))
    return rows


def _weights(run: Path, config: Config, step: int) -> str:
    """Mean layer weights in training, from metrics.jsonl."""
    found: list[float] = []
    path = run / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            values = json.loads(line)
            if values["step"] <= step and values.get("layer_weights"):
                found = values["layer_weights"]
        except (ValueError, KeyError, TypeError):
            continue  # a line torn by a kill
    if not found:
        return ""
    first = 0 if config.fusion.include_embeddings else 1
    head = ["layer", *(str(number) for number in range(first, first + len(found)))]
    return (
        "## Layer weights\n\nShare of each encoder layer in what the LLM reads, mean over the tokens of the last "
        f"training step.\n\n{_table(head, [('weight', *(f'{value:.3f}' for value in found))])}"
    )


def _accuracy(run: Path, results: Mapping[str, Any], checkpoint: Checkpoint) -> str:
    """Every task and language that evaluation.json has, in percent."""
    if not results.get("bridge"):
        return "## Accuracy\n\nThe run was not scored."
    try:
        scored = read_index(run / "evaluation" / "bridge").checkpoint
    except DataError:
        scored = ""
    lines = [
        "## Accuracy",
        f"In %. `acc`: {METRICS['acc']}; `exact_match`: {METRICS['exact_match']}. The LLM alone reads the same text "
        "itself.",
    ]
    if scored != checkpoint.folder.name:
        of = f"of {scored}" if scored else "of a checkpoint that is not recorded"
        lines.append(f"These are scores {of}; the weights here are of {checkpoint.folder.name}.")
    for task, languages in results["bridge"].items():
        alone = results.get("llm", {}).get(task, {})
        chance = results.get("chance", {}).get(task)
        columns = ("language", "bridge, acc", "bridge, exact_match", "LLM alone, acc", "LLM alone, exact_match",
                   "samples")  # fmt: skip
        rows = [
            (code, *_shares(score), *_shares(alone.get(code, {})), str(score.get("n", "")))
            for code, score in languages.items()
        ]
        by_chance = f" (chance {100 * chance:.1f})" if chance else ""
        lines.append(f"### {task}{by_chance}\n\n{_table(columns, rows)}")
    return "\n\n".join(lines)


def _shares(score: Mapping[str, float]) -> tuple[str, str]:
    first, second = (score.get(measure) for measure in ("acc", "exact_match"))
    return tuple("-" if share is None else f"{100 * share:.1f}" for share in (first, second))  # type: ignore[return-value]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _shown(name: str) -> str:
    """A name without the path that leads to it on this machine."""
    return f"`{Path(name).name if Path(name).is_absolute() or Path(name).is_dir() else name}`"


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
