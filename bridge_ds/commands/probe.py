"""Which languages does an encoder, or a trained run, read? Measured on parallel sentences, before any training.

For each language: the share of sentences that are nearer to their English translation than to any other sentence (as in
MEXA, arXiv 2410.05873), by encoder layer, and of a run after the fusion and after the mapping; tokens for a word; what
the tokenizer loses. Writes probe.json, probe.txt and probe.png.

examples:
  bridge-ds probe --encoder intfloat/multilingual-e5-small --data sib200 --languages si,ta,bo
  bridge-ds probe --encoder google/mt5-xl --data parallel/         (en.txt, si.txt, ...: line N is the same sentence)
  bridge-ds probe --encoder google/mt5-xl --data parallel.tsv      (a column for each language: en, si, ...)
  bridge-ds probe --run runs/mine --data sib200 --source data/sib200
  bridge-ds probe --probe runs/probe/probe.json --against runs/seed-0 runs/seed-1
      did it order the languages as the accuracies of trained bridges do? (rank correlation; also with --run, --encoder)

It was the command that prints versions and devices; that is bridge-ds env now.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ds.cli import Parser, positive
from bridge_ds.errors import ConfigError

if TYPE_CHECKING:
    from bridge_ds.probe.measure import LanguageProbe

_ASKED = "nothing to probe is named (--encoder, --run, or --probe)"
_MEASURED = ("source", "languages", "sentences", "output", "device")
"""Options that say what is measured, and how."""
_HINT = "versions and devices are printed by: bridge-ds env"


def main(argv: list[str] | None = None) -> int:
    """Probe, write, print; returns the exit status."""
    options = _parser().parse_args(argv)
    given = [name for name in ("encoder", "run", "probe") if getattr(options, name)]
    if len(given) != 1:
        found = f"both --{given[0]} and --{given[1]} are given" if given else _ASKED
        raise ConfigError(f"{found}; expected one of them; {_HINT}.")
    if options.probe:
        return _correlate(options)
    if not options.data:
        raise ConfigError(
            "--data is missing; expected sib200, belebele, a folder of LANGUAGE.txt or a table; name one."
        )
    _probe(options)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="bridge-ds probe", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", help="hub id or folder of an encoder")
    parser.add_argument("--run", type=Path, help="run folder: its encoder, fusion and mapping (its LLM is loaded too)")
    parser.add_argument("--probe", type=Path, metavar="FILE", help="probe.json of an earlier probe, for --against")
    parser.add_argument("--data", help="sib200, belebele, a folder of LANGUAGE.txt, or a tsv, csv, jsonl or parquet")
    parser.add_argument(
        "--source", default="", help="folder or hub id of sib200 or belebele (default: the run's, else the hub's)"
    )
    parser.add_argument("--languages", default="", help="comma-separated language codes (default: all of the data)")
    parser.add_argument(
        "--sentences", type=positive(int, least=20, most=1000), default=100,
        help="sentences of each language (default: 100, for which the verdicts are meant)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder (default: RUN/probe, or runs/probe)")
    parser.add_argument("--device", help="torch device (default: the GPU if there is one, else the CPU)")
    parser.add_argument(
        "--against", nargs="+", type=Path, default=[], metavar="RUN",
        help="scored runs: print the rank correlation of what is measured with their accuracy, over languages",
    )  # fmt: skip
    parser.add_argument("--task", default="", help="task of --against (default: that of --data, or the runs' only one)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the page")
    return parser


def _correlate(options: argparse.Namespace) -> int:
    from bridge_ds.probe.against import compared, lines
    from bridge_ds.probe.measure import read_probe

    if not options.against:
        raise ConfigError("--probe is given without --against; expected scored runs to compare it with; name them.")
    default = _parser().get_default
    idle = [f"--{name}" for name in _MEASURED if getattr(options, name) != default(name)]
    if idle:
        raise ConfigError(
            f"{' and '.join(idle)} have no effect on a probe that is there (--probe); expected --against, --task, "
            "--data or --json beside it; leave the rest out, or probe anew."
        )
    against = compared(read_probe(options.probe), options.against, options.task, options.data or "")
    print(json.dumps(against, indent=2, ensure_ascii=False) if options.json else "\n".join(lines(against)))
    return 0


def _probe(options: argparse.Namespace) -> None:
    from dataclasses import replace

    from bridge_ds.config.load import load_run_config
    from bridge_ds.config.schema import TaskDataConfig
    from bridge_ds.disk import real, write_text
    from bridge_ds.engine.distributed import device_of
    from bridge_ds.partial import writing
    from bridge_ds.probe.against import compared, lines, scored
    from bridge_ds.probe.measure import probe
    from bridge_ds.probe.parallel import PARALLEL_TASKS, read_parallel
    from bridge_ds.probe.plots import draw_probe
    from bridge_ds.probe.reader import encoder_reader, run_reader
    from bridge_ds.probe.text import page
    from bridge_ds.world import World

    given = dict(load_run_config(options.run).evaluation.data) if options.run else {}
    if options.source and options.data not in PARALLEL_TASKS:
        raise ConfigError(
            f"--source is given with --data {options.data!r}; expected {' or '.join(PARALLEL_TASKS)}; leave it out."
        )
    if options.source:
        given[options.data] = replace(given.get(options.data, TaskDataConfig()), source=options.source)
    languages = [part.strip() for part in options.languages.split(",") if part.strip()]
    parallel = read_parallel(options.data, options.sentences, languages, given)
    count = len(parallel.texts[parallel.english])
    # What can be wrong is said before anything slow.
    if options.against:
        scored(options.against, options.task, options.data, list(parallel.texts))
    output = options.output or (options.run / "probe" if options.run else Path("runs/probe"))
    with writing(output):
        real(output).mkdir(parents=True, exist_ok=True)
    device = _device(options.device) if options.device else device_of(World())
    reader = run_reader(options.run, device) if options.run else encoder_reader(options.encoder, device)
    found = probe(reader, parallel)
    what = f"{options.run} at {reader.checkpoint}" if options.run else reader.name
    text = page(f"{what} on {parallel.name}", found, count)
    content = _content(options, reader, parallel, found)
    if options.against:
        content["against"] = against = compared(found, options.against, options.task, options.data)
        text = "\n".join([text, "", *lines(against)])
    printed = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    with writing(output):
        write_text(output / "probe.json", f"{printed}\n")
        write_text(output / "probe.txt", f"{text}\n")
        if len(found) > 1:
            draw_probe(f"{what}: retrieval among {count} sentences", found, output / "probe.png")
    print(printed if options.json else f"{text}\n\nwritten: {output}")


def _device(name: str) -> Any:
    import torch

    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:120].rstrip(".")
        raise ConfigError(f"--device is {name!r} ({reason}); expected cpu, cuda or cuda:N; correct it.") from None


def _content(options: argparse.Namespace, reader: Any, parallel: Any, found: list[LanguageProbe]) -> dict[str, Any]:
    from bridge_ds.probe.measure import LOST, PARTLY, SENTENCES, WELL
    from bridge_ds.probe.text import sentence

    return {
        "encoder": reader.name,
        "run": str(options.run) if options.run else None,
        "checkpoint": reader.checkpoint or None,
        "data": parallel.name,
        "sentences": len(parallel.texts[parallel.english]),
        "english": parallel.english,
        "places": reader.places,
        "thresholds": {"well": WELL, "partly": PARTLY, "unread_lost_letters": LOST, "for_sentences": SENTENCES},
        "languages": {of.code: {**of.as_json(), "says": sentence(of)} for of in found},
    }
