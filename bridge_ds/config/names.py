"""Names that stand for something embedded in the package, so that everything runs with no download."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bridge_ds.config.schema import DataConfig, ModelConfig

__all__ = [
    "EMBEDDED_SHARDS",
    "TASK_SHARDS",
    "found_beside",
    "made_at_start",
    "resolve",
    "task_of_shards",
    "with_full_paths",
]

EMBEDDED_SHARDS = "testbed/english"
"""The value of `data.shards` that stands for the testbed's English shards (written at first use)."""

TASK_SHARDS = "task:"
"""Begins what stands for a task's English train split, in `data.shards` and in `bridge-ds pack`."""

_EMBEDDED_MODELS = {"testbed/encoder": "encoder", "testbed/llm": "llm"}


def made_at_start(data: DataConfig) -> bool:
    """Whether a run trains on samples that its first start writes to RUN/shards: those of the embedded data set or of a
    task (a local folder of that name wins)."""
    shards = data.shards
    named = shards == EMBEDDED_SHARDS or bool(task_of_shards(shards))
    return named and not data.mixture and not Path(shards).is_dir()


def task_of_shards(shards: str) -> str:
    """NAME of `task:NAME`; else empty."""
    return shards.removeprefix(TASK_SHARDS) if shards.startswith(TASK_SHARDS) else ""


def resolve(name: str) -> str:
    """The folder of an embedded model, or `name` itself (a hub id or a local folder).

    A local folder that is really called `testbed/encoder` wins over the embedded one.
    """
    if name in _EMBEDDED_MODELS and not Path(name).is_dir():
        return str(Path(__file__).parents[1] / "testbed" / "weights" / _EMBEDDED_MODELS[name])
    return name


def with_full_paths(model: ModelConfig) -> ModelConfig:
    """Folders of base models by their full paths, so that a run can be used from another working directory."""
    return _named(model, lambda name: os.path.abspath(name) if Path(name).is_dir() else name)


def found_beside(model: ModelConfig, run: Path) -> ModelConfig:
    """Folders of base models that are not where a run recorded them, if they lie beside the run: a relative path as
    older runs recorded it, or a run that was moved together with its models.

    What is found is compared with the checkpoint's hash of the model, like any other.

    Args:
        model: as recorded.
        run: run folder.
    """
    above = (run.absolute(), *run.absolute().parents)

    def find(name: str) -> str:
        path = Path(name)
        if path.is_dir() or resolve(name) != name:
            return name
        parts = path.parts[1:] if path.is_absolute() else path.parts
        # Of a hub id too, the whole: `models/llm` is a path as well.
        tails = [parts[start:] for start in range(len(parts) if path.is_absolute() or len(parts) > 2 else 1)]
        places = (folder.joinpath(*tail) for folder in above for tail in tails if tail)
        return next((str(place) for place in places if (place / "config.json").is_file()), name)

    return _named(model, find)


def _named(model: ModelConfig, change: Callable[[str], str]) -> ModelConfig:
    return replace(model, encoder=change(model.encoder), llm=change(model.llm))
