"""The testbed's English shards: written on first use, so that the default run needs no download and no file in git."""

from __future__ import annotations

from pathlib import Path

from bridge_ds.config.names import EMBEDDED_SHARDS

__all__ = ["SAMPLES", "is_embedded", "write_embedded"]

SAMPLES = 24_000
"""English samples in the embedded set."""


def is_embedded(shards: str) -> bool:
    """Whether `data.shards` stands for the embedded set (a local folder of that name wins)."""
    return shards == EMBEDDED_SHARDS and not Path(shards).is_dir()


def write_embedded(folder: Path) -> None:
    """Pack the testbed's English rows into `folder`, unless they are there already. One process calls this."""
    if (folder / "index.json").is_file():
        return
    from bridge_ds.data.packing.write import pack_rows
    from bridge_ds.testbed import english_rows

    pack_rows(english_rows(SAMPLES), folder)
