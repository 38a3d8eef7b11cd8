"""What an encoder with added pieces was made of: a file in its folder (`bridge-ds adapt --extend-vocabulary`)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bridge_ds.typed import typed

__all__ = ["Extension", "read_extension"]

_NAME = "extension.json"


@dataclass(frozen=True)
class Extension:
    """Where an extended encoder comes from."""

    encoder: str
    """Hub id, or full path."""
    encoder_revision: str | None
    pieces: int
    """As it was asked for; fewer may have been found."""
    first: int = field(default=0, compare=False)
    """Id of the first added piece; 0 = written by a version that did not say."""
    deviation: float = field(default=0.0, compare=False)
    """Standard deviation of the old token embeddings' numbers; 0 = written by a version that did not say."""
    learned_from: str = field(default="", compare=False)
    """Names and sha256 of the files that the pieces were learned from; empty = written by a version that did not
    say."""

    @property
    def lr(self) -> float:
        """Learning rate of the new rows, a tenth of the old ones' deviation: Adam moves a number by about that in a
        step. It was the best on encoders whose embeddings are 0.28 and 0.08 wide (docs/adapt.md)."""
        return float(f"{self.deviation / 10:.1e}") or 1e-3

    def is_of(self, other: Extension) -> bool:
        """Whether both were made of the same, as far as the older one says."""
        files = {self.learned_from, other.learned_from} - {""}
        return self == other and len(files) < 2

    def write(self, folder: Path) -> None:
        """Write the file."""
        (folder / _NAME).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        revision = f" (revision {self.encoder_revision})" if self.encoder_revision else ""
        files = f", learned from {self.learned_from}" if self.learned_from else ""
        return f"{self.encoder}{revision} with up to {self.pieces} more pieces{files}"


def read_extension(folder: Path) -> Extension | None:
    """Of a folder that has the file; None where there is none, or it holds something else."""
    try:
        return typed((folder / _NAME).read_text(encoding="utf-8"), Extension)
    except (OSError, ValueError):
        return None
