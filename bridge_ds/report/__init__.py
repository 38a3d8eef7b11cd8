"""Several scored runs compared in one report: numbers, tests, an HTML page, Markdown and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge_ds.disk import real, write_text
from bridge_ds.report.render import render
from bridge_ds.report.results import study_results

__all__ = ["study_results", "write_report"]


def write_report(folder: Path, results: Mapping[str, Any]) -> None:
    """Write report.json, report.md and report.html into a folder, each by temp + rename.

    Args:
        results: from :func:`study_results`.
    """
    real(folder).mkdir(parents=True, exist_ok=True)
    texts = {
        "report.json": json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n",
        "report.md": render(results, "markdown"),
        "report.html": render(results, "html"),
    }
    for name, text in texts.items():
        # A source may hold an unpaired surrogate, which UTF-8 cannot encode.
        write_text(folder / name, text.encode("utf-8", "replace").decode("utf-8"))
