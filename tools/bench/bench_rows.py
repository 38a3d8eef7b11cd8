"""What the benchmarks share: where a row was measured, and how it joins the CSV."""

from __future__ import annotations

import csv
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import torch

__all__ = ["append", "provenance"]


def provenance(device: torch.device, threads: int) -> dict[str, Any]:
    """Date, machine, threads, load (of the last minute), torch and commit."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "rev-parse", "--short", "HEAD"] if shutil.which("git") else ["true"]
    commit = subprocess.run(command, cwd=root, capture_output=True, text=True, encoding="utf-8")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()}, {os.cpu_count()} cores"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "machine": name,
        "threads": threads,
        "load": round(os.getloadavg()[0], 1),
        "torch": torch.__version__,
        "commit": commit.stdout.strip(),
    }


def append(path: Path, rows: list[dict[str, Any]]) -> None:
    """Append to the CSV. If its columns differ, it is rewritten with all of them, empty where a row has none."""
    columns, known = list(rows[0]), []
    if path.is_file():
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            known, found = list(reader), list(reader.fieldnames or [])
        columns = found + [name for name in columns if name not in found]
        known = known if columns != found else []
    if known or not path.is_file():
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(known)
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, columns).writerows(rows)
