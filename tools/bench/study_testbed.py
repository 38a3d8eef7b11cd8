#!/usr/bin/env python3
"""The testbed study: train every fusion with several seeds, score, compare sample by sample, write the report.

examples:
  python tools/bench/study_testbed.py                            (runs/study, 5 seeds, 25 runs: 40 minutes on two cores)
  python tools/bench/study_testbed.py --seeds 3 --jobs 1 --ds_config zero3.json
  python tools/bench/study_testbed.py --quick --output runs/quick    (a few steps: whether it works, not what it finds)
  python tools/bench/study_testbed.py --report-only              (train nothing; report the runs that are there)

Every fusion is trained as it is and, where it mixes layers, with fusion.state_norm=rms. A run is the main job with ZeRO
stage 2 instead of 3: one process has nothing to shard, and a step takes a quarter less; losses agree to rounding. The
LLM alone answers once, since it is the same in all runs. What a run says is in OUTPUT/RUN.log. Runs that are finished
and scored are not repeated, so the same command continues after an interruption. The report is in OUTPUT/report, a row
a run in OUTPUT/results.csv. What the testbed can and cannot show is in docs/testbed.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from bridge_ds.cli import Parser  # noqa: E402
from bridge_ds.data.packing.write import pack_rows  # noqa: E402
from bridge_ds.entry import run_command  # noqa: E402
from bridge_ds.testbed import ENGLISH_ROWS, english_rows  # noqa: E402
from tools.bench import testbed_rows  # noqa: E402

QUICK = ("train.steps=4", "train.global_batch=8", "checkpoint.every=4", "evaluation.limit=8")


@dataclass(frozen=True)
class Arm:
    """One way to train, with all seeds."""

    name: str
    """Of the system in the report."""
    folder: str
    """Of its runs, before the seed."""
    fusion: str
    settings: tuple[str, ...] = ()
    """Further ones."""


# The last layer comes after the encoder's final norm and has nothing to be mixed with: no arm of its own with rms.
ARMS = (
    Arm("last_layer", "last_layer", "last_layer"),
    Arm("global_softmax", "global_softmax", "global_softmax"),
    Arm("global_softmax, rms", "global_softmax-rms", "global_softmax", ("fusion.state_norm=rms",)),
    Arm("transformer_softmax", "transformer_softmax", "transformer_softmax"),
    Arm("transformer_softmax, rms", "transformer_softmax-rms", "transformer_softmax", ("fusion.state_norm=rms",)),
)


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report everything."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/study"), help="folder of all runs (default: runs/study)"
    )
    parser.add_argument("--seeds", type=int, help="number of seeds, from 0 (default: 5; with --quick 2)")
    parser.add_argument(
        "--jobs", type=int, default=0, help="runs at the same time (default: one a CPU core, at most 5)"
    )
    parser.add_argument("--ds_config", default="zero2.json", help="of the runs (default: zero2.json)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="to train.py")
    parser.add_argument("--quick", action="store_true", help="four steps a run, to see whether everything works")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    options = parser.parse_args(argv)
    seeds = range(options.seeds or (2 if options.quick else 5))
    overrides = [*(QUICK if options.quick else ()), *options.overrides]
    # Seed by seed: whatever there is when it is interrupted has every arm.
    runs = [(arm, seed) for seed in seeds for arm in ARMS]
    if not options.report_only:
        shards = options.output.resolve() / "shards"  # of all runs
        if not (shards / "index.json").is_file():
            pack_rows(english_rows(ENGLISH_ROWS), shards)
        overrides.insert(0, f"data.shards={shards}")
        cores = len(os.sched_getaffinity(0))
        jobs = options.jobs or min(cores, len(ARMS))
        threads = max(1, cores // jobs)
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(runs), unit="run", dynamic_ncols=True) as bar:

            def one(run: tuple[Arm, int]) -> None:
                prepare(options.output, run[0], run[1], options.ds_config, overrides, threads)

            for _ in pool.map(one, runs):
                bar.update()
    return report(options.output, runs)


def prepare(output: Path, arm: Arm, seed: int, ds_config: str, overrides: list[str], threads: int) -> None:
    """Train and score one run, unless that is done.

    Args:
        threads: of the run.

    Raises:
        SystemExit: training or scoring failed; it has said why.
    """
    folder = output.resolve() / f"{arm.folder}-{seed}"
    # The runs that are scored already, this one aside: any one's answers of the LLM alone will do.
    others = (output.resolve() / f"{other.folder}-{n}" for n in range(seed + 1) for other in ARMS)
    scored = next((str(other) for other in others if other != folder and is_scored(other)), None)
    settings = [*arm.settings, *overrides, *([f"evaluation.llm_from={scored}"] if scored else [])]
    if not (folder / "evaluation.json").is_file():
        train(folder, arm.fusion, str(seed), settings, ds_config, threads, folder.with_suffix(".log"))
    if not is_scored(folder):
        run_logged(["-m", "bridge_ds.evaluation", "--run", str(folder)], threads, folder.with_suffix(".log"))


def train(
    folder: Path,
    fusion: str,
    seed: str,
    overrides: list[str],
    ds_config: str,
    threads: int,
    log: Path,
) -> None:
    """One run of the main job, in a process of its own; arguments of the run, then those of :func:`run_logged`."""
    settings = [f"run.output={folder}", f"fusion.name={fusion}", f"run.seed={seed}", "track.uri=none", *overrides]
    arguments = [part for text in settings for part in ("--set", text)]
    began = time.perf_counter()
    run_logged(["bridge_ds/train.py", "--ds_config", ds_config, *arguments], threads, log)
    (folder / "seconds.json").write_text(json.dumps(time.perf_counter() - began), encoding="utf-8")


def run_logged(command: list[str], threads: int, log: Path) -> None:
    """Run Python with these arguments to its end.

    Args:
        threads: of the process.
        log: where its output is added.

    Raises:
        SystemExit: it failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(
            [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    if status:
        said = log.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise SystemExit(
            f"error: {command[0]} ended with status {status} ({''.join(said)}; all it said is in {log}); expected 0; "
            "start again, it goes on."
        )


def is_scored(folder: Path) -> bool:
    """Whether the predictions of a run are all there."""
    return all((folder / "evaluation" / system / "index.json").is_file() for system in ("bridge", "llm"))


def report(output: Path, runs: list[tuple[Arm, int]]) -> int:
    """Compare the runs of all seeds that every arm has; exit status of the report command."""
    whole = [seed for _, seed in runs if all(is_scored(output / f"{arm.folder}-{seed}") for arm in ARMS)]
    arguments = [f"{arm.name}={output.resolve() / f'{arm.folder}-{seed}'}" for arm, seed in runs if seed in whole]
    if not arguments:
        print(
            f"error: {output} holds no seed that all of {len(ARMS)} arms were scored with; train some.", file=sys.stderr
        )
        return 2
    rows = [testbed_rows.row(output / f"{arm.folder}-{seed}", arm.name, seed) for arm, seed in runs if seed in whole]
    rows.sort(key=lambda row: [arm.name for arm in ARMS].index(row["system"]))
    testbed_rows.write(output / "results.csv", rows)
    print(testbed_rows.table(rows))
    command = [sys.executable, "-m", "bridge_ds.evaluation", "report", *arguments]
    return subprocess.run([*command, "--output", str(output.resolve() / "report")], cwd=ROOT).returncode


if __name__ == "__main__":
    run_command(main)
