"""Score a finished run again, or compare scored runs: `python -m bridge_ds.evaluation [report] ...`."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from bridge_ds.cli import user_errors

_HELP = """\
Score the newest checkpoint of a run, and the LLM alone, in every language of its tasks; print one table and write
evaluation.json and plots/accuracy.png into the run folder. One process, whole models in memory.

examples:
  python -m bridge_ds.evaluation --run runs/testbed
  python -m bridge_ds.evaluation --run runs/testbed --tasks testbed_news --languages qaa,qab --limit 100
  python -m bridge_ds.evaluation --run runs/xnli --tasks xnli --batch 16
  python -m bridge_ds.evaluation report runs/one runs/two     (compares scored runs; report --help says more)"""
_REPORT_HELP = """\
Compare scored runs sample by sample: several fusions, each with the same seeds, on the same tasks and languages.
Writes report.html (one page, nothing to load), report.md, report.json and plots.

examples:
  python -m bridge_ds.evaluation report runs/last_layer-* runs/transformer_softmax-* --output runs/report
  python -m bridge_ds.evaluation report runs/plain "transformer_softmax, rms=runs/rms" --baseline transformer_softmax"""


def main(argv: list[str] | None = None) -> int:
    """Score (load the newest valid checkpoint, score, write, print), or hand on to `report`."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments[:1] == ["report"]:
        return report(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bridge_ds.evaluation", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, help="run folder (run.output of the training run)")
    parser.add_argument("--tasks", help="comma-separated task names (default: those of the run's config)")
    parser.add_argument("--languages", help="comma-separated language codes (default: all of each task)")
    parser.add_argument("--limit", type=int, help="samples per task and language, 0 = all (default: the run's)")
    parser.add_argument("--batch", type=int, help="samples per forward pass (default: the run's)")
    parser.add_argument("--output", type=Path, help="where to write the scores (default: RUN/evaluation.json)")
    options = parser.parse_args(arguments)
    with user_errors():
        _score(options)
    return 0


def _score(options: argparse.Namespace) -> None:
    from bridge_ds.config.check import check
    from bridge_ds.config.load import load_run_config
    from bridge_ds.errors import ConfigError

    config = load_run_config(options.run)
    changed: dict[str, Any] = {
        key: tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        for key in ("tasks", "languages", "limit", "batch")
        if (value := getattr(options, key)) is not None
    }
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changed))
    check(config)
    if not config.evaluation.tasks:
        raise ConfigError("the run's config names no evaluation.tasks; give some with --tasks.")

    from bridge_ds.checkpoint.trained import load_trained
    from bridge_ds.engine.distributed import device_of
    from bridge_ds.evaluation.score import write_evaluation
    from bridge_ds.evaluation.scorer import score_run
    from bridge_ds.evaluation.table import table
    from bridge_ds.track.plots import plot_accuracy
    from bridge_ds.world import World

    world = World()
    device = device_of(world)
    model, tokenizers, checkpoint = load_trained(options.run, config, device, print)
    print(f"scoring {checkpoint.folder}")
    results = score_run(model, tokenizers, config, world, device)
    write_evaluation(options.output or options.run / "evaluation.json", results)
    plot_accuracy(results, options.run / "plots" / "accuracy.png")
    print(table(results))


def report(argv: list[str]) -> int:
    """Read the runs' predictions, compare them, write the report and its plots."""
    parser = argparse.ArgumentParser(
        prog="python -m bridge_ds.evaluation report",
        description=_REPORT_HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder, or NAME=FOLDER for a name of your own")
    parser.add_argument("--output", type=Path, default=Path("runs/report"), help="folder (default: runs/report)")
    parser.add_argument(
        "--baseline", default="last_layer", help="name of the system to compare with (default: last_layer)"
    )
    parser.add_argument(
        "--scores",
        default="sum",
        choices=("sum", "mean", "calibrated"),
        help="how a choice's scores count (default: sum)",
    )
    options = parser.parse_args(argv)
    with user_errors():
        from bridge_ds.evaluation.collect import read_study
        from bridge_ds.evaluation.report import study_results, write_report
        from bridge_ds.track.study_plots import draw_study

        results = study_results(read_study(options.runs, options.baseline), options.scores)
        write_report(options.output, results)
        draw_study(results, options.output)
        print(f"{options.output / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
