"""Conversion of other projects' checkpoints to run folders. A new layout is one file here and one line in SOURCES.

Light to import: the command shows its help from this table without torch.
"""

from __future__ import annotations

from bridge_ds.convert.langbridge import LANGBRIDGE
from bridge_ds.convert.layalign import LAYALIGN
from bridge_ds.convert.layout import ConvertSource, SourceLayout
from bridge_ds.convert.mindmerger import MINDMERGER
from bridge_ds.convert.paper import PAPER

__all__ = ["SOURCES", "ConvertSource", "SourceLayout"]

SOURCES: dict[str, ConvertSource] = {
    "langbridge": LANGBRIDGE,
    "layalign": LAYALIGN,
    "mindmerger": MINDMERGER,
    "paper": PAPER,
}
"""Name on the command line -> how checkpoints of that project are read."""
