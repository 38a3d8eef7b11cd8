"""Whether the loaded base models are those that a bridge was trained with: one comparison for every use."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from bridge_ds.checkpoint.load import Checkpoint, load_bridge
from bridge_ds.config.schema import ModelConfig
from bridge_ds.engine.setup import END_IDS
from bridge_ds.errors import CheckpointError

__all__ = ["other_bases", "refuse_other_bases", "restore"]

_WHAT = {"encoder": "encoder", "llm": "LLM"}


def other_bases(
    recorded: Mapping[str, str],
    found: Mapping[str, str],
    now: ModelConfig,
    where: object,
    trained: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    """Compare identities of base models and tokenizers (:func:`bridge_ds.engine.setup.base_identities`).

    Args:
        recorded: those of the training.
        found: those of what is loaded; what it lacks is not compared.
        now: names of what is loaded.
        where: the checkpoint or folder, for the message.
        trained: `encoder` and `llm` as the training named them.

    Returns:
        a clause that says which differ, by name; empty if none does.
    """
    other: list[str] = []
    notes: dict[str, str] = {}
    for key in (key for key, value in found.items() if recorded.get(key) != value):
        part = key.partition("_")[0]
        name, before = getattr(now, part), trained.get(part)
        model = f"the {_WHAT[part]} {name!r}"
        if before not in (None, name):
            notes[part] = f"that was {before!r}"
        if key == END_IDS:
            other.append(f"the set of end ids of {model} ({found[key]}, from its generation_config.json)")
            notes[key] = f"the end ids were {recorded.get(key)}"
        elif key == part:
            other.append(model)
            notes.setdefault(part, "its weights or its config.json differ")
        else:
            other.append(f"the tokenizer of {model}")
            notes.setdefault(part, "its vocabulary, normalizer, special tokens or chat template differ")
    if not other:
        return ""
    is_or_are = "is" if len(other) == 1 else "are"
    return f"{' and '.join(other)} {is_or_are} not what {where} was trained with ({'; '.join(notes.values())})"


def refuse_other_bases(
    checkpoint: Checkpoint, found: Mapping[str, str], now: ModelConfig, key: str = "run.output"
) -> None:
    """Refuse a checkpoint that was trained with other base models.

    Args:
        checkpoint: whose manifest records them.
        found: as of :func:`other_bases`.
        now: as of :func:`other_bases`.
        key: which other setting the user may change.

    Raises:
        CheckpointError: one of them differs.
    """
    manifest = checkpoint.manifest
    other = other_bases(manifest["base"], found, now, checkpoint.folder, manifest.get("config", {}).get("model", {}))
    if other:
        raise CheckpointError(
            f"{other}; expected the same; set model.encoder and model.llm (and their revisions) to those of the "
            f"training, restore their files, or choose another {key}."
        )


def restore(
    model: torch.nn.Module,
    checkpoint: Checkpoint | None,
    start: Checkpoint | None,
    found: Mapping[str, str],
    now: ModelConfig,
) -> None:
    """Load the weights of a checkpoint into a model that DeepSpeed has not taken yet.

    Args:
        model: receives the weights.
        checkpoint: the run's own.
        start: another run's to begin with, if there is no own one; only the base models must be the same.
        found: as of :func:`other_bases`.
        now: as of :func:`other_bases`.

    Raises:
        CheckpointError: it belongs to other base models, or does not fit.
    """
    source, key = (checkpoint, "run.output") if checkpoint else (start, "run.start_from")
    if source:
        refuse_other_bases(source, found, now, key)
        load_bridge(source, model, begin=not checkpoint)
