"""Names that stand for something embedded in the package, so that everything runs with no download."""

from __future__ import annotations

from pathlib import Path

__all__ = ["EMBEDDED_SHARDS", "is_embedded", "resolve"]

EMBEDDED_SHARDS = "testbed/english"
"""The value of `data.shards` that stands for the testbed's English shards (written at first use)."""

_EMBEDDED_MODELS = {"testbed/encoder": "encoder", "testbed/llm": "llm"}


def is_embedded(shards: str) -> bool:
    """Whether `data.shards` means the embedded data set (a local folder of that name wins)."""
    return shards == EMBEDDED_SHARDS and not Path(shards).is_dir()


def resolve(name: str) -> str:
    """The folder of an embedded model, or `name` itself (a hub id or a local folder).

    A local folder that is really called `testbed/encoder` wins over the embedded one.
    """
    if name in _EMBEDDED_MODELS and not Path(name).is_dir():
        return str(Path(__file__).parents[1] / "testbed" / "weights" / _EMBEDDED_MODELS[name])
    return name
