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
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bridge_ds.cli import Parser, positive
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError
from bridge_ds.testbed import ENGLISH_ROWS, english_rows
from tools.bench import testbed_rows
from tools.bench.study import Arm, Processes, Runs, run_jobs

QUICK = ("train.steps=4", "train.global_batch=8", "checkpoint.every=4", "evaluation.limit=8")
RMS = "fusion.state_norm=rms"
# The last layer comes after the encoder's final norm and has nothing to be mixed with: no arm of its own with rms.
ARMS = (
    Arm("last_layer", "last_layer", ("fusion.name=last_layer",)),
    Arm("global_softmax", "global_softmax", ("fusion.name=global_softmax",)),
    Arm("global_softmax, rms", "global_softmax-rms", ("fusion.name=global_softmax", RMS)),
    Arm("transformer_softmax", "transformer_softmax", ("fusion.name=transformer_softmax",)),
    Arm("transformer_softmax, rms", "transformer_softmax-rms", ("fusion.name=transformer_softmax", RMS)),
)


def main(argv: list[str] | None = None) -> int:
    """Train and score what is missing, then report everything."""
    options = study_parser(__doc__ or "", "runs/study").parse_args(argv)
    return study(options, ARMS, make_shards)


def study_parser(doc: str, output: str) -> Parser:
    """The options of a study of testbed runs.

    Args:
        doc: its help.
        output: folder of its runs.
    """
    parser = Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(output), help=f"folder of all runs (default: {output})")
    parser.add_argument("--seeds", type=positive(int), help="number of seeds, from 0 (default: 5; with --quick 2)")
    jobs = "runs at the same time (default: one a CPU core, at most 5)"
    parser.add_argument("--jobs", type=positive(int, zero=True, most=256), default=0, help=jobs)
    parser.add_argument("--ds_config", default="zero2.json", help="of the runs (default: zero2.json)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="to train.py")
    parser.add_argument("--quick", action="store_true", help="four steps a run, to see whether everything works")
    parser.add_argument("--report-only", action="store_true", help="train nothing")
    return parser


def seeds_of(options: argparse.Namespace) -> int:
    """Number of seeds."""
    return int(options.seeds or (2 if options.quick else 5))


def add_arms(parser: Parser, baseline: str) -> None:
    """The option of a study that need not train all of its arms."""
    parser.add_argument("--arms", nargs="+", help=f"some of the arms; {baseline} always is one (default: all)")


def chosen_arms(options: argparse.Namespace, every: Sequence[Arm], baseline: str) -> list[Arm]:
    """Those that :func:`add_arms`'s option names. Raises ConfigError for a name that is not an arm's."""
    known = [arm.folder for arm in every]
    for name in options.arms or ():
        if name not in known:
            raise ConfigError(f"--arms has {name!r}; expected some of {', '.join(known)}.")
    return [arm for arm in every if arm.folder in (baseline, *(options.arms or known))]


def make_shards(output: Path, rows: int = ENGLISH_ROWS) -> None:
    """OUTPUT/shards, unless they are there."""
    if not (output / "shards" / "index.json").is_file():
        pack_rows(english_rows(rows), output / "shards")


def study(options: argparse.Namespace, arms: Sequence[Arm], make_data: Callable[[Path], None], *reporting: str) -> int:
    """Train and score what is missing, then report everything; the exit status.

    Args:
        options: of :func:`study_parser`; perhaps `recipe`, where the runs are not the testbed's.
        arms: all of them.
        make_data: makes OUTPUT/shards and what else the arms read.
        reporting: more arguments of the report command.
    """
    output = options.output.resolve()
    cores = len(os.sched_getaffinity(0))
    jobs = options.jobs or min(cores, 5)
    runs = Runs(
        output,
        arms,
        range(seeds_of(options)),
        Processes(max(1, cores // jobs)),
        ("--ds_config", options.ds_config, *(("--recipe", options.recipe) if "recipe" in options else ())),
        (f"data.shards={output / 'shards'}", *(QUICK if options.quick else ()), *options.overrides),
    )
    failed = []
    if not options.report_only:
        make_data(output)
        failed = run_jobs([runs.job(arm, seed) for arm, seed in runs], jobs).failed
    for sentence in failed:
        print(f"error: {sentence}", file=sys.stderr)
    return report(runs, *reporting) or bool(failed)


def report(runs: Runs, *arguments: str) -> int:
    """Compare the runs of all seeds that every arm has; exit status of the report command, which takes `arguments`."""
    whole = runs.whole_seeds()
    if not whole:
        print(
            f"error: {runs.output} holds no seed that all of {len(runs.arms)} arms were scored with; train some.",
            file=sys.stderr,
        )
        return 2
    rows = [testbed_rows.row(runs.folder(arm, seed), arm.name, seed) for arm in runs.arms for seed in whole]
    testbed_rows.write(runs.output / "results.csv", rows)
    print(testbed_rows.table(rows))
    return runs.report("report", *arguments)


if __name__ == "__main__":
    run_command(main)
