#!/usr/bin/env python3
"""Pack text into webdataset shards with an index, or verify a folder of shards."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bridge_ds.errors import EXIT_USER_ERROR, BridgeError, DataError

_EXAMPLES = """\
examples:
  # JSON lines that already have "source" and "target" (and perhaps "prompt"):
  tools/pack_shards.py pack --input train.jsonl --output shards/

  # other field names, two files, the first 100,000 samples:
  tools/pack_shards.py pack --input a.jsonl b.jsonl.gz --output shards/ \\
      --map source=question --map target=answer --limit 100000

  # plain text for objective prefix_lm: paragraphs separated by blank lines become {"text": ...}
  tools/pack_shards.py pack --input book.txt --output shards/

  # a data set of the Hugging Face hub, or a local folder that `datasets` reads:
  tools/pack_shards.py pack --dataset facebook/xnli --config en --split train --output shards/ \\
      --map source=premise --map target=hypothesis

  # read every byte again after a copy:
  tools/pack_shards.py verify shards/

Train on them with --set data.shards=shards/. Bad input ends with one sentence and exit code 2, and writes nothing.
"""


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code (0, or 2 for a fault of the input)."""
    options = _parser().parse_args(arguments)
    try:
        (_pack if options.command == "pack" else _verify)(options)
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0


def _pack(options: argparse.Namespace) -> None:
    import itertools

    from bridge_ds.data import pack, sources

    if bool(options.input) == bool(options.dataset):
        raise DataError("pack needs one kind of input; expected either --input FILE... or --dataset ID.")
    if options.format == "dataset" and not options.dataset:
        raise DataError("--format dataset has no data set; expected --dataset ID (a hub id or a folder).")
    mapping = sources.parse_map(options.map)
    if options.dataset:
        stream = options.limit is not None
        rows = sources.dataset_rows(options.dataset, options.config, options.split, options.revision, stream)
    else:
        rows = sources.file_rows(options.input, options.format)
    index = pack.pack_located(
        sources.map_fields(itertools.islice(rows, options.limit), mapping),
        options.output,
        samples_per_shard=options.samples_per_shard,
        shard_bytes=int(options.shard_size * pack.MIB),
        overwrite=options.overwrite,
        progress=True,
    )
    size = sum(shard.bytes for shard in index.shards) / pack.MIB
    print(f"packed {index.samples} samples into {len(index.shards)} shards ({size:.1f} MiB) in {options.output}")


def _verify(options: argparse.Namespace) -> None:
    from bridge_ds.data.index import load_index, verify

    index = load_index(options.folder)
    verify(index)
    print(f"{options.folder}: {index.samples} samples in {len(index.shards)} shards are as they were packed")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pack = commands.add_parser(
        "pack",
        help="write shards",
        description="Write samples as webdataset shards with an index.json.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pack.add_argument("--input", nargs="+", type=Path, metavar="FILE", help="jsonl or plain text, also .gz")
    pack.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to make")
    pack.add_argument(
        "--map", action="extend", nargs="+", default=[], metavar="NAME=FIELD",
        help="fill source, target, prompt or text from an input field; then only mapped fields are packed",
    )  # fmt: skip
    pack.add_argument(
        "--format",
        choices=("auto", "jsonl", "text", "dataset"),
        default="auto",
        help="default: by the file's ending",
    )
    pack.add_argument("--dataset", metavar="ID", help="hub id or local folder, instead of --input")
    pack.add_argument("--config", metavar="NAME", help="configuration of the data set, such as a language")
    pack.add_argument("--split", default="train", metavar="S", help="split of the data set (default: train)")
    pack.add_argument("--revision", metavar="R", help="hub revision of the data set")
    pack.add_argument("--shard-size", type=_positive(float), default=256.0, metavar="MiB", help="default: 256")
    pack.add_argument("--samples-per-shard", type=_positive(int), default=100_000, metavar="N", help="default: 100000")
    pack.add_argument("--limit", type=_positive(int), metavar="N", help="pack the first N samples only")
    pack.add_argument("--overwrite", action="store_true", help="replace a folder of shards")
    check = commands.add_parser("verify", help="compare every shard with its sha256 in index.json")
    check.add_argument("folder", type=Path, metavar="DIR")
    return parser


def _positive(kind: type[int] | type[float]) -> Callable[[str], int | float]:
    def convert(text: str) -> int | float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    convert.__name__ = kind.__name__
    return convert


if __name__ == "__main__":
    sys.exit(main())
