"""Folders that a wheel carries inside the package and a checkout has beside it: `ds_configs` and `slurm`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped"]

_PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """The folder `ds_configs` or `slurm`, of this installation; setup.py puts both into the wheel."""
    inside = _PACKAGE / name
    return inside if inside.is_dir() else _PACKAGE.parent / name
