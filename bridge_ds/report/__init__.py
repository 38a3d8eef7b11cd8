"""Several scored runs as one report: report.json, report.md, report.html; plots are drawn by `report/plots.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bridge_ds.disk import real, write_text
from bridge_ds.report.details import last_sections
from bridge_ds.report.markdown import markdown
from bridge_ds.report.page import page
from bridge_ds.report.results import study_results
from bridge_ds.report.sections import first_sections

__all__ = ["study_results", "write_report"]


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """Write report.json, report.md and report.html into a folder, each by temp + rename.

    Args:
        results: from :func:`study_results`.
    """
    trained = [
        name
        for name in results["systems"]
        if any(run["system"] == name and run["checkpoint"] for run in results["compared"])
    ]
    title = f"Bridges compared: {', '.join(trained)}" if len(trained) < 4 else f"{len(trained)} bridges compared"
    sections = [*first_sections(results), *last_sections(results)]
    real(folder).mkdir(parents=True, exist_ok=True)
    _write(folder / "report.json", json.dumps(results, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    _write(folder / "report.md", markdown(title, sections))
    _write(folder / "report.html", page(title, sections))


def _write(path: Path, text: str) -> None:
    # Half a surrogate pair may stand in a source; it must not cost the report.
    write_text(path, text.encode("utf-8", "replace").decode("utf-8"))
