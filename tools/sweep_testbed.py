#!/usr/bin/env python3
"""Train the testbed with every fusion and several seeds; write one row a run and print the table of means.

examples:
  python tools/sweep_testbed.py --output runs/sweep
  python tools/sweep_testbed.py --fusions last_layer,transformer_softmax --seeds 0,1 --output runs/sweep
  python tools/sweep_testbed.py --output runs/sweep --table-only

Runs that are finished in the output folder are not repeated. Rows go to tools/testbed_results.csv.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from tools.bench_rows import provenance  # noqa: E402

CSV = Path(__file__).with_name("testbed_results.csv")
FUSIONS = "last_layer,global_softmax,transformer_softmax"


def main(argv: list[str] | None = None) -> int:
    """Run what is missing, then the rows and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fusions", default=FUSIONS, help=f"comma-separated names (default: {FUSIONS})")
    parser.add_argument("--seeds", default="0,1,2", help="comma-separated seeds (default: 0,1,2)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="to train.py")
    parser.add_argument("--table-only", action="store_true", help="train nothing; read the runs that are there")
    options = parser.parse_args(argv)
    rows = []
    for fusion in options.fusions.split(","):
        for seed in options.seeds.split(","):
            folder = options.output / f"{fusion}-{seed}"
            if not options.table_only and not (folder / "evaluation.json").is_file():
                train(folder, fusion, seed, options.overrides)
            if (folder / "evaluation.json").is_file():
                rows.append(row(folder, fusion, seed))
    write(rows)
    print(table(rows))
    return 0


def train(
    folder: Path,
    fusion: str,
    seed: str,
    overrides: list[str],
    ds_config: str = "zero3.json",
    threads: int = 0,
    log: Path | None = None,
) -> None:
    """One run of the main job, in a process of its own; arguments of the run, then those of :func:`run_logged`."""
    settings = [f"run.output={folder}", f"fusion.name={fusion}", f"run.seed={seed}", "track.uri=none", *overrides]
    arguments = [part for text in settings for part in ("--set", text)]
    began = time.perf_counter()
    run_logged(["bridge_ds/train.py", "--ds_config", ds_config, *arguments], threads, log)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began))


def run_logged(command: list[str], threads: int = 0, log: Path | None = None) -> None:
    """Run Python with these arguments to its end.

    Args:
        threads: of the process; 0 = as many as it likes.
        log: where its output is added, for runs side by side; none = it is shown.

    Raises:
        SystemExit: it failed.
    """
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    if log is None:
        status = subprocess.run([sys.executable, *command], cwd=ROOT, env=environment).returncode
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            status = subprocess.run(
                [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
            ).returncode
    if status:
        said = log.read_text(encoding="utf-8").strip().splitlines()[-1] if log else "what it said stands above"
        raise SystemExit(
            f"error: {command[0]} ended with status {status} ({said}); expected 0; start again, it goes on."
        )


def row(folder: Path, fusion: str, seed: str) -> dict[str, Any]:
    """Accuracies in %: English by the LLM alone and by the bridge, and the bridge's mean over the other languages."""
    results = json.loads((folder / "evaluation.json").read_text())
    found: dict[str, Any] = {"fusion": fusion, "seed": seed}
    for task, chance in results["chance"].items():
        name = task.removeprefix("testbed_")
        llm, bridge = results["llm"][task], results["bridge"][task]
        others = [language for language in bridge if language != "en"]
        unseen = mean(bridge[language]["likelihood"] for language in others)
        english = bridge["en"]["likelihood"]
        found[f"{name} English, LLM"] = percent(llm["en"]["likelihood"])
        found[f"{name} English"] = percent(english)
        found[f"{name} unseen"] = percent(unseen)
        found[f"{name} carried over"] = percent((unseen - chance) / max(english - chance, 1e-9))
        found[f"{name} LLM alone off chance"] = percent(max(abs(llm[x]["likelihood"] - chance) for x in others))
        found[f"{name} n"] = bridge["en"]["n"]
    seconds = folder / "seconds.json"
    found["seconds"] = round(json.loads(seconds.read_text())) if seconds.is_file() else ""
    where = provenance(torch.device("cpu"), torch.get_num_threads())
    return found | {name: where[name] for name in ("date", "machine", "torch", "commit")}


def percent(share: float) -> float:
    """One decimal."""
    return round(100 * share, 1)


def write(rows: list[dict[str, Any]]) -> None:
    """Replace the CSV."""
    if rows:
        with CSV.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a fusion and task, the mean over seeds with the seeds' range."""
    lines = ["| fusion | task | English, LLM alone | English, bridge | five unseen languages, bridge | carried over |"]
    lines.append("|---|---|---|---|---|---|")
    tasks = [key.removesuffix(" unseen") for key in (rows[0] if rows else {}) if key.endswith(" unseen")]
    for fusion in dict.fromkeys(r["fusion"] for r in rows):
        own = [r for r in rows if r["fusion"] == fusion]
        for task in tasks:
            columns = ("English, LLM", "English", "unseen", "carried over")
            cells = [_spread([r[f"{task} {column}"] for r in own]) for column in columns]
            lines.append(f"| `{fusion}` | {task} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _spread(values: list[float]) -> str:
    low, high = min(values), max(values)
    return f"{mean(values):.1f}" + (f" ({low:.1f} to {high:.1f})" if high > low else "")


if __name__ == "__main__":
    sys.exit(main())
