"""Pack text or a benchmark into webdataset shards with an index, index tars of others, or verify a folder of them."""

from __future__ import annotations

import argparse
import os
import random
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from bridge_ds.cli import Parser, positive
from bridge_ds.errors import DataError

if TYPE_CHECKING:
    from bridge_ds.data.shards.index import ShardIndex

_USAGE = """bridge-ds pack (--input FILE ... | --dataset ID | --triples FILE | task:NAME) --output DIR [OPTIONS]
       bridge-ds pack index DIR [OPTIONS]
       bridge-ds pack verify DIR"""
_DESCRIPTION = """\
Pack text or a benchmark into webdataset shards with an index:

  bridge-ds pack --input train.jsonl --output shards/

`bridge-ds pack index` writes the index of tars that others made, and `bridge-ds pack verify` reads a folder of shards
again; each has a --help of its own."""
_EXAMPLES = """\
examples:
  # JSON lines that already have "source" and "target" (and perhaps "prompt"):
  bridge-ds pack --input train.jsonl --output shards/

  # other field names, two files, shuffled, on eight processes:
  bridge-ds pack --input a.jsonl b.jsonl.zst --output shards/ \\
      --map source=question --map target=answer --shuffle 0 --processes 8

  # plain text for objective prefix_lm: paragraphs separated by blank lines become {"text": ...}
  bridge-ds pack --input book.txt --output shards/ --language en

  # the English train split of a benchmark, with the prompt and the target that scoring uses (from the hub, or from
  # a folder with train/en.jsonl):
  bridge-ds pack task:xnli --output shards/ --limit 100000 --shuffle 0
  bridge-ds pack task:xnli --output shards/ --dataset FOLDER --map premise=sentence1

  # a task of your own, declared under `tasks:` in a recipe or in a file of its own (docs/evaluation.md):
  bridge-ds pack task:my_news --tasks my_tasks.yaml --output shards/ --shuffle 0

  # a data set of the Hugging Face hub, or a local folder that `datasets` reads:
  bridge-ds pack --dataset facebook/xnli --config en --split train --output shards/ \\
      --map source=premise --map target=hypothesis

  # webdataset tars that others made (KEY.json, KEY.txt, KEY.source.txt + KEY.target.txt, ...):
  bridge-ds pack index shards/ --map source=question --map target=answer

  # read every byte again after a copy:
  bridge-ds pack verify shards/

Train on them with --set data.shards=shards/. Bad input ends with one sentence and exit code 2; the output folder
appears only when it is complete, and the same command continues a packing of --input or --dataset that was
interrupted (of --triples and task:NAME it begins again).
"""


def main(arguments: list[str] | None = None) -> int:
    """Pack, index or verify; returns the exit status."""
    words = sys.argv[1:] if arguments is None else arguments
    name = words[0] if words and words[0] in _COMMANDS else "pack"
    add_options, run = _COMMANDS[name]
    options = add_options().parse_args(words[1:] if words[:1] == [name] else words)
    run(options)
    return 0


def _pack(options: argparse.Namespace) -> None:
    from bridge_ds.data.packing import job, sources, write

    if options.task:
        _pack_task(options)
        return
    if options.triples or options.templates:
        _pack_triples(options)
        return
    if options.tasks:
        raise DataError("--tasks has tasks, of which none is named; expected task:NAME with it.")
    if bool(options.input) == bool(options.dataset):
        raise DataError("pack needs one kind of input; expected either --input FILE... or --dataset ID.")
    if options.format == "dataset" and not options.dataset:
        raise DataError("--format dataset has no data set; expected --dataset ID (a hub id or a folder).")
    if options.dataset:
        if options.format != "dataset":
            _refuse(options, "--dataset", "has a format of its own", "format")
        stream = options.limit is not None
        parts = sources.dataset_parts(options.dataset, options.config, options.split, options.revision, stream)
    else:
        _refuse(options, "--input", "is a file, and these choose from a --dataset", "config", "split", "revision")
        parts = sources.file_parts(options.input, options.format)
    index = job.pack_parts(
        parts,
        job.PackOptions(
            mapping=tuple(sources.parse_map(options.map).items()),
            samples_per_shard=options.samples_per_shard,
            shard_bytes=int(options.shard_size * write.MIB),
            limit=options.limit,
            shuffle=options.shuffle,
            key=options.key,
            language=options.language,
            source=options.source,
        ),
        options.output,
        processes=options.processes,
        overwrite=options.overwrite,
        progress=True,
    )
    _print_packed(index, options.output)


def _pack_task(options: argparse.Namespace) -> None:
    from bridge_ds.config.load import load_config
    from bridge_ds.config.names import TASK_SHARDS, task_of_shards
    from bridge_ds.config.schema import Config, TaskDataConfig
    from bridge_ds.data.packing.sources import parse_map
    from bridge_ds.tasks import TableTask, find_tasks
    from bridge_ds.tasks.shards import train_rows

    name = task_of_shards(options.task)
    if options.input or not options.task.startswith(TASK_SHARDS):
        raise DataError(f"pack has {options.task!r}; expected task:NAME without --input, such as task:xnli.")
    its = "has keys, a split, columns and a language of its own"
    _refuse(options, options.task, its, "key", "config", "format", "split", "language", "triples", "templates")
    config = load_config(options.tasks) if options.tasks else Config()
    plain = TaskDataConfig()
    given = config.evaluation.data.get(name, plain)
    if options.dataset:
        given = replace(given, source=options.dataset, revision=None)
    given = replace(given, revision=options.revision or given.revision)
    (task,) = find_tasks([name], {name: given} if given != plain else None, config.tasks)
    if isinstance(task, TableTask) and options.map:
        given = replace(given, fields=given.fields | parse_map(options.map, task.columns))
        (task,) = find_tasks([name], {name: given}, config.tasks)
    rows, source = train_rows(task)
    _pack_rows(options, rows, "en", source)


def _pack_triples(options: argparse.Namespace) -> None:
    from bridge_ds.data.packing.triples import read_templates, triple_rows

    if not options.triples:
        raise DataError("--templates puts triples into words; expected --triples FILE with it.")
    others = ("input", "dataset", "map", "key", "format", "config", "split", "revision", "tasks")
    _refuse(options, "--triples", "is the input, put into words by --templates", *others)
    rows = triple_rows(options.triples, read_templates(options.templates))
    _pack_rows(options, rows, options.language, options.triples.name)


def _refuse(options: argparse.Namespace, what: str, why: str, *names: str) -> None:
    """Raises DataError where one of these options is given, which `what` would not read."""
    default = _pack_parser().get_default
    given = [f"--{name}" for name in names if getattr(options, name) != default(name)]
    if given:
        raise DataError(f"{what} {why}; expected it without {' and '.join(given)}; leave {given[0]} out.")


def _pack_rows(options: argparse.Namespace, rows: Iterable[dict[str, str]], language: str, source: str) -> None:
    """The first rows; with a seed, shuffled first (benchmarks fit in memory)."""
    from bridge_ds.data.packing import write

    write.check_output(options.output, options.overwrite)
    if options.shuffle is not None:
        rows = list(rows)
        random.Random(options.shuffle).shuffle(rows)
    index = write.pack_rows(
        islice(rows, options.limit),
        options.output,
        samples_per_shard=options.samples_per_shard,
        shard_bytes=int(options.shard_size * write.MIB),
        overwrite=options.overwrite,
        language=language,
        source=options.source or source,
    )
    _print_packed(index, options.output)


def _print_packed(index: ShardIndex, output: Path) -> None:
    size = sum(shard.bytes for shard in index.shards) / (1 << 20)
    print(f"packed {index.samples} samples into {len(index.shards)} shards ({size:.1f} MiB) in {output}")


def _index(options: argparse.Namespace) -> None:
    from bridge_ds.data.packing.index_folder import index_folder
    from bridge_ds.data.packing.sources import parse_map

    index, remarks = index_folder(
        options.folder,
        fields=parse_map(options.map),
        skip=options.skip,
        language=options.language,
        source=options.source,
        processes=options.processes,
        progress=True,
    )
    print(f"indexed {index.samples} samples in {len(index.shards)} shards of {options.folder}")
    for remark in remarks:
        print(remark)


def _verify(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from bridge_ds.data.shards.index import load_index
    from bridge_ds.data.shards.verify import verify

    index = load_index(options.folder)
    for _ in tqdm(verify(index), total=len(index.shards), desc="verifying", unit=" shards", disable=None):
        pass
    print(f"{options.folder}: {index.samples} samples in {len(index.shards)} shards are as they were indexed")


def _pack_parser() -> Parser:
    pack = Parser(
        prog="bridge-ds pack",
        usage=_USAGE,
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pack.add_argument("task", nargs="?", default="", metavar="task:NAME", help="a benchmark's English train split")
    pack.add_argument(
        "--tasks",
        metavar="FILE",
        help="a recipe, or a YAML file, whose `tasks:` declares the task NAME (docs/evaluation.md)",
    )
    pack.add_argument(
        "--input", action="extend", nargs="+", type=Path, metavar="FILE",
        help="jsonl, text, csv, tsv (also .gz, .zst) or parquet",
    )  # fmt: skip
    pack.add_argument("--triples", type=Path, metavar="FILE", help="jsonl with head, relation, tail, as sentences")
    pack.add_argument("--templates", type=Path, metavar="FILE", help="YAML: RELATION: sentence with {head} and {tail}")
    pack.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    pack.add_argument(
        "--map", action="extend", nargs="+", default=[], metavar="NAME=FIELD",
        help="fill source, target, prompt, text or language (of a task: its fields) from an input field; no other "
        "field is packed",
    )  # fmt: skip
    pack.add_argument(
        "--format",
        choices=("auto", "jsonl", "text", "csv", "tsv", "parquet", "dataset"),
        default="auto",
        help="default: by the file's ending",
    )
    pack.add_argument("--dataset", metavar="ID", help="hub id or local folder, instead of --input")
    pack.add_argument("--config", metavar="NAME", help="configuration of the data set, such as a language")
    pack.add_argument("--split", default="train", metavar="S", help="split of the data set (default: train)")
    pack.add_argument("--revision", metavar="R", help="hub revision of the data set")
    # A smaller shard holds not even one line of text; a shuffle makes a file for each.
    size = positive(float, least=0.001, most=1 << 20)
    pack.add_argument("--shard-size", type=size, default=256.0, metavar="MiB", help="default: 256")
    pack.add_argument(
        "--samples-per-shard", type=positive(int, most=10**9), default=100_000, metavar="N", help="default: 100000"
    )
    pack.add_argument(
        "--limit", type=positive(int, most=10**12), metavar="N",
        help="pack the first N samples only (one process), and --shuffle these; of task:NAME and --triples N at random "
        "with --shuffle",
    )  # fmt: skip
    pack.add_argument(
        "--shuffle", type=positive(int, zero=True, most=2**63 - 1), metavar="SEED", help="shuffle all samples"
    )
    pack.add_argument("--key", default="", metavar="FIELD", help="field that holds each sample's key; default: numbers")
    pack.add_argument("--overwrite", action="store_true", help="replace a folder of shards, or unfinished work")
    _add_common(pack)
    return pack


def _index_parser() -> Parser:
    index = Parser(
        prog="bridge-ds pack index",
        description="Write index.json and a table for each *.tar of a folder; the tars stay as they are.",
    )
    index.add_argument("folder", type=Path, metavar="DIR")
    index.add_argument(
        "--map", action="extend", nargs="+", default=[], metavar="NAME=FIELD",
        help="read source, target, prompt, text or language from another field of the samples",
    )  # fmt: skip
    index.add_argument(
        "--skip", action="extend", nargs="+", default=[], metavar="SUFFIX",
        help="leave out members of this suffix, such as jpg; members that are neither .json nor .txt are an error else",
    )  # fmt: skip
    _add_common(index)
    return index


def _verify_parser() -> Parser:
    check = Parser(
        prog="bridge-ds pack verify", description="Read all shards again and name the first bad range of bytes."
    )
    check.add_argument("folder", metavar="DIR", help="folder or URL")
    return check


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--language", default="", metavar="CODE", help="language of the texts, for the index")
    parser.add_argument("--source", default="", metavar="TEXT", help="what the texts come from, for the index")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "--processes",
        type=positive(int, most=1024),
        default=cores,
        metavar="N",
        help=f"at work at a time (default: {cores})",
    )


_COMMANDS = {"pack": (_pack_parser, _pack), "index": (_index_parser, _index), "verify": (_verify_parser, _verify)}
"""Name -> its parser, and what it does; without a name it is `pack`."""
