"""Compare scored runs: `bridge-ds report RUN...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge_ds.cli import Parser
from bridge_ds.entry import run_command
from bridge_ds.metrics import CHOICE_METRICS, metric_name

_HELP = """\
Compare scored runs sample by sample: several fusions, each with the same seeds, on the same tasks and languages.
Writes report.html (one page that loads nothing), report.md, report.json and plots.

examples:
  bridge-ds report runs/last_layer-* runs/transformer_softmax-* --output runs/report
  bridge-ds report runs/plain "transformer_softmax, rms=runs/rms" --baseline transformer_softmax"""


def main(argv: list[str] | None = None) -> int:
    """Read the runs' predictions, compare them, write the report and its plots."""
    parser = Parser(
        prog="bridge-ds report",
        description=_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or NAME=FOLDER to name its system")
    parser.add_argument("--output", type=Path, default=Path("runs/report"), help="folder (default: runs/report)")
    parser.add_argument(
        "--baseline", default="", metavar="NAME",
        help="name of the system to compare with (default: last_layer, or the first run's where none is of it)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", default="", metavar="NAMES", help="compare these alone, separated by commas (default: all)"
    )
    parser.add_argument(
        "--metric", "--scores", default="acc", type=metric_name, choices=CHOICE_METRICS,
        help="which choice counts as the answer (default: acc, the highest log-probability)",
    )  # fmt: skip
    options = parser.parse_args(argv)
    from bridge_ds.report.plots import draw_study
    from bridge_ds.report.render import write_report
    from bridge_ds.report.results import study_results
    from bridge_ds.report.study import read_study

    tasks = tuple(dict.fromkeys(part.strip() for part in options.tasks.split(",") if part.strip()))
    results = study_results(read_study(options.runs, options.baseline, tasks), options.metric)
    write_report(options.output, results)
    draw_study(results, options.output)
    print(f"{options.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    run_command(main)
