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


def main(argv: list[str] | None = None) -> int:
    """Score (load the newest valid checkpoint, score, write, print), or hand on to `report`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["report"]:
        from bridge_ds.evaluation.report.__main__ import main as report

        return report(argv[1:])
    parser = argparse.ArgumentParser(
        prog="python -m bridge_ds.evaluation", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", required=True, type=Path, help="run folder (run.output of the training run)")
    parser.add_argument("--tasks", help="comma-separated task names (default: those of the run's config)")
    parser.add_argument("--languages", help="comma-separated language codes (default: all of each task)")
    parser.add_argument("--limit", type=int, help="samples per task and language, 0 = all (default: the run's)")
    parser.add_argument("--batch", type=int, help="samples per forward pass (default: the run's)")
    parser.add_argument("--output", type=Path, help="where to write the scores (default: RUN/evaluation.json)")
    options = parser.parse_args(argv)
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


if __name__ == "__main__":
    sys.exit(main())
