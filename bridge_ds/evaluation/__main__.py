"""Score a finished run again, or compare scored runs: `bridge-ds evaluate [report] ...`."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ds.cli import Parser, add_placing, positive, say_repeated
from bridge_ds.entry import run_command
from bridge_ds.world import World

if TYPE_CHECKING:
    from bridge_ds.config.schema import Config, TaskConfig

_log = logging.getLogger(__name__)
_HELP = """\
Score the newest checkpoint of a run, and the LLM alone, in every language of its tasks; print one table and write
evaluation.json, evaluation/ (one line per sample) and plots/accuracy.png into the run folder. Say in which languages
the bridge is better than the LLM alone, and in which worse; --choose writes that to choice.json. One process, or more
under a launcher, each with whole models in memory and its share of the samples. One process splits models that are too
large for one GPU over several with --device-map auto. After an interruption, the same command resumes.

examples:
  bridge-ds evaluate --run runs/testbed
  bridge-ds evaluate --run runs/testbed --tasks testbed_news --languages qaa,qab --limit 100
  bridge-ds evaluate --run runs/xnli --tasks xnli,indicxnli --batch 16 --null-scores
  bridge-ds evaluate --run runs/mine --tasks my_tasks.yaml    (tasks of your own; docs/evaluation.md)
  bridge-ds evaluate --run runs/xnli --tasks xnli --choose
  bridge-ds evaluate --run runs/xnli --tasks xnli --languages sw --set evaluation.data.xnli.source=data/xnli
  torchrun --nproc_per_node 8 -m bridge_ds.evaluation --run runs/xnli --tasks belebele
  bridge-ds evaluate --run runs/70b --tasks xnli --device-map auto --max-memory 0=60GiB,1=75GiB,2=75GiB
  bridge-ds report runs/one runs/two     (compares scored runs; see report --help)"""


def main(argv: list[str] | None = None) -> int:
    """Load a checkpoint, score it, write and print the metrics; or run `report`."""
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["report"]:
        from bridge_ds.report.__main__ import main as report

        return report(argv[1:])
    parser = Parser(prog="bridge-ds evaluate", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, type=Path, help="run folder (run.output of the training run)")
    parser.add_argument(
        "--checkpoint", default="", metavar="NAME",
        help="`best` (lowest validation loss, or training loss), or a folder in RUN/checkpoints (default: the newest)",
    )  # fmt: skip
    parser.add_argument(
        "--tasks", "--task", metavar="NAMES",
        help="comma-separated task names, or YAML files whose `tasks:` are scored (default: those of the run's config)",
    )  # fmt: skip
    parser.add_argument("--languages", help="comma-separated language codes (default: all of each task)")
    parser.add_argument(
        "--limit", type=positive(int, zero=True), help="samples per task and language, 0 = all (default: the run's)"
    )
    parser.add_argument(
        "--batch", type=positive(int, most=1_000_000), help="samples per forward pass (default: the run's)"
    )
    parser.add_argument(
        "--null-scores",
        action="store_true",
        default=None,
        help="also score the choices after an empty prompt (acc_mutual_info)",
    )
    parser.add_argument("--calibrate", dest="null_scores", action="store_true", default=None, help=argparse.SUPPRESS)
    parser.add_argument(
        "--choose", action="store_true", default=None,
        help="write RUN/choice.json: where the LLM alone is better, for generate and serve with --choose",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="where to write the scores (default: RUN/evaluation.json)")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
        help="override one key of the run's config, such as evaluation.data.xnli.source=FOLDER; repeatable",
    )  # fmt: skip
    add_placing(parser, "this process's GPU, else the CPU")
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    options = parser.parse_args(argv)
    say_repeated(options.overrides)
    _score(options, World.detect())
    return 0


def _score(options: argparse.Namespace, world: World) -> None:
    from bridge_ds.config.load import load_run_config

    _asked(load_run_config(options.run, options.overrides), options)  # wrong names are reported before anything slow

    from bridge_ds.engine.distributed import device_of, init_distributed, shutdown
    from bridge_ds.evaluation.score import write_evaluation
    from bridge_ds.evaluation.scoring import score_run
    from bridge_ds.evaluation.table import table
    from bridge_ds.inference.bases import one_process
    from bridge_ds.inference.load import load_trained, open_run
    from bridge_ds.report.choose import after_scoring, measured_if_chosen
    from bridge_ds.track.plots import plot_accuracy

    one_process(options.device_map, world)
    if world.size > 1:
        init_distributed(world)
    device_map = device_of(world) if options.device_map is None else options.device_map
    config, checkpoint = open_run(options.run, options.overrides, options.checkpoint)
    config = _asked(config, options)
    model, tokenizers, _ = load_trained(options.run, config, device_map, options.max_memory, checkpoint)
    _log.info("scoring %s", checkpoint.folder)
    results = score_run(
        model, tokenizers, config, world, model.device, run=options.run, checkpoint=checkpoint.folder.name,
        base=checkpoint.manifest["base"],
    )  # fmt: skip
    if world.is_main:
        write_evaluation(options.output or options.run / "evaluation.json", results, checkpoint.folder.name)
        plot_accuracy(results, options.run / "plots" / "accuracy.png")
        print(table(results))
        measured = measured_if_chosen(config, checkpoint.folder, checkpoint.manifest["base"])
        after_scoring(options.run, results, measured)
    if world.size > 1:
        shutdown()


def _asked(config: Config, options: argparse.Namespace) -> Config:
    """The run's config with the scoring options of the command line; tasks and languages are checked."""
    from bridge_ds.config.build import check
    from bridge_ds.errors import ConfigError
    from bridge_ds.evaluation.jobs import wanted
    from bridge_ds.evaluation.store import llm_of
    from bridge_ds.tasks import tasks_of

    changed: dict[str, Any] = {
        key: tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value
        for key in ("tasks", "languages", "limit", "batch", "null_scores", "choose")
        if (value := getattr(options, key)) is not None
    }
    own = config.tasks
    if "tasks" in changed:
        changed["tasks"], own = _with_files(changed["tasks"], own)
    config = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, **changed), tasks=own)
    check(config)
    if not config.evaluation.tasks:
        raise ConfigError("the run's config names no evaluation.tasks; give some with --tasks.")
    wanted(tasks_of(config), config.evaluation.languages)
    llm_of(config.evaluation.llm_from)
    return config


def _with_files(names: tuple[str, ...], own: Mapping[str, TaskConfig]) -> tuple[tuple[str, ...], dict[str, TaskConfig]]:
    """The names, with those of a file's tasks in its place, and the tasks that are declared."""
    from bridge_ds.config.load import load_config
    from bridge_ds.errors import ConfigError

    found, declared = [], dict(own)
    for name in names:
        if not name.endswith((".yaml", ".yml")):
            found.append(name)
            continue
        tasks = load_config(name).tasks
        if not tasks:
            raise ConfigError(f"--tasks {name} declares no tasks; expected `tasks:` in it; give another file.")
        found += tasks
        declared |= tasks
    return tuple(found), declared


if __name__ == "__main__":
    run_command(main)
