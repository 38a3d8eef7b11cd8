"""What the command lines share: options and argument types. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from bridge_ds.config.text import Unusable, printable, short, shown
from bridge_ds.world import World

__all__ = [
    "Parser",
    "add_adapt_files",
    "add_config_options",
    "add_placing",
    "parse_train",
    "positive",
    "say_repeated",
    "show_plan",
    "train_parser",
]

_TRAIN_HELP = """\
Train the bridge between a frozen multilingual encoder and a frozen English LLM, on English data only.

examples:
  bridge-ds train --ds_config zero3.json
      the embedded default: two small models, constructed languages, no download, a few minutes on a laptop
  bridge-ds train --num_gpus 2 --ds_config zero3.json --set fusion.name=global_softmax
      two processes (default: one for each GPU), and one learned weight for each encoder layer
  bridge-ds train --recipe xnli_mt5xl_llama1b --ds_config zero2.json --set run.output=runs/xnli
      the paper's XNLI run (downloads mT5-XL and the LLM; pack the shards first, see the recipe's first lines)
  bridge-ds train --recipe my.yaml -- --hostfile hosts
      what follows -- are options of DeepSpeed's launcher
  bridge-ds train --dry-run --set train.lr=1e-3
      resolve and check the config, print it, train nothing

From a checkout, and with another launcher:
  deepspeed bridge_ds/train.py --ds_config zero3.json
  torchrun --nproc_per_node 8 bridge_ds/train.py --recipe my.yaml
  bridge-ds slurm copy .       (launchers for Slurm)

The same command again continues a run that was stopped (run.resume, default auto).
Every key that --set takes is described in docs/configuration.md."""

_FINETUNE_HELP = """\
Teach the LLM the task in English first, before a bridge is trained to it: train it alone on a run's English samples. It
reads prompt and source as text, as "the LLM alone" does in an evaluation; the loss is that of the targets. RUN/llm is
then a folder of transformers (LoRA's updates merged into the weights), which the bridge's run names.

examples:
  bridge-ds finetune --recipe my.yaml
      LoRA of rank 16 with train.lr 2e-4, in the run folder of my.yaml with _llm at its end
  bridge-ds train --recipe my.yaml --set model.llm=runs/my_llm/llm
      the bridge, to that LLM
  bridge-ds finetune --recipe my.yaml --set llm.trainable=true
      all of its weights, with train.lr 2e-5
  bridge-ds finetune --recipe xnli_llama1b_english
      a recipe of its own (model.encoder: none), whose settings are taken as they are
  bridge-ds train --recipe my.yaml --set llm.finetune=true
      both in one command: the LLM in RUN/finetune first, then the bridge to it
  bridge-ds finetune --num_gpus 2 --recipe my.yaml --ds_config zero3.json --set train.steps=500

With another launcher:
  deepspeed bridge_ds/train.py --finetune --recipe my.yaml

The data, lengths, batches and steps are the recipe's; --set wins over all. The same command again continues."""

_ADAPT_HELP = """\
Train the encoder alone, for a language that it does not know, before a bridge is trained from it: on unlabeled text
(masked tokens; spans for encoders of the T5 kind), on sentences with their English translations (its states are pulled
to those that the original encoder gives the English ones), or on both. RUN/encoder is then a folder of transformers,
which the bridge's run names.

examples:
  bridge-ds adapt --text quechua.txt --set model.encoder=intfloat/multilingual-e5-small --set run.output=runs/quy
      a sentence or paragraph on each line; LoRA, learning rate 1e-4, batch 16, 100,000 steps (arXiv 2502.10140)
  bridge-ds adapt --parallel quechua.txt english.txt --set model.encoder=... --set run.output=runs/quy
      line N of both is the same sentence; or one file (tsv, csv, jsonl, parquet) with the fields source and target
  bridge-ds adapt --text quechua.txt --parallel pairs.tsv --set model.encoder=... --set train.steps=5000
      both: half of the samples are texts, drawn in one shuffled order
  bridge-ds adapt --triples conceptnet_bo.jsonl --set model.encoder=... --set run.output=runs/bo
      triples of a knowledge graph, put into words; 25,000 steps
  bridge-ds adapt --text nko.txt --parallel nko_english.tsv --extend-vocabulary 2000 --set model.encoder=...
      a script that the tokenizer does not have (probe: unread)
  bridge-ds adapt --text quechua.txt --set lora.rank=0 --set encoder.trainable=true
      all weights of the encoder
  bridge-ds train --recipe my.yaml --set model.encoder=runs/quy/encoder
      the bridge, from that encoder

With another launcher, name shards that bridge-ds pack has written:
  deepspeed bridge_ds/train.py --recipe adapt --set data.shards=shards/quechua --set model.encoder=...

The same command again continues. docs/adapt.md says which remedy helps which language."""

_MESSAGE = 500
"""Most characters of a message about an option."""


class _NotedStore(argparse._StoreAction):
    """An option whose last value counts; a note is printed where an earlier one was different."""

    _before: argparse.Namespace | None = None

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if option and self._before is namespace and getattr(namespace, self.dest) != values and _is_first():
            print(f"note: {option} is given more than once; the last one holds: {short(str(values))}", file=sys.stderr)
        self._before = namespace
        super().__call__(parser, namespace, values, option)


class Parser(argparse.ArgumentParser):
    """argparse's parser, with a note where an option is given more than once; it names a mistyped option first.

    It refuses what neither a file nor a request can hold (NUL; bytes that are not UTF-8, which Python keeps as halves
    of surrogate pairs), and cuts long values in its messages.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _NotedStore)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's."""
        self._words = list(sys.argv[1:] if args is None else args)
        for text in self._words:
            try:
                printable(text)
            except Unusable as error:
                self.error(f"an argument is {shown(text)}{error}")
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """As argparse's. It would ask for a required option, and not tell of the mistyped one."""
        if message.startswith(("the following arguments are required", "unrecognized arguments")):
            words = self._words[: self._words.index("--")] if "--" in self._words else self._words
            names = [word.partition("=")[0] for word in words if word.startswith("--") and " " not in word]
            known = self._option_string_actions
            unknown = [name for name in names if not any(option.startswith(name) for option in known)]
            if unknown:
                near = difflib.get_close_matches(unknown[0], known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                message = f"unrecognized arguments: {' '.join(unknown)}{hint}"
            elif message.startswith("unrecognized") and "--set" in known:
                message += "; a setting is written as --set KEY=VALUE"
        super().error(short(" ".join(message.split()), _MESSAGE))


def parse_train(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the trainer: `recipe`, `overrides` (a list of key=value), `dry_run`."""
    options = train_parser().parse_args(argv)
    if options.ds_config:
        options.overrides.append(f"run.ds_config={options.ds_config}")
    say_repeated(options.overrides)
    return options


def train_parser(prog: str = "train.py") -> Parser:
    """The parser of the trainer's options."""
    texts = {"finetune": _FINETUNE_HELP, "adapt": _ADAPT_HELP}
    text = texts.get(prog.rpartition(" ")[2], _TRAIN_HELP)
    parser = Parser(prog=prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if text is _ADAPT_HELP:
        add_adapt_files(parser)
    add_config_options(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="resolve and check the config, print it, and stop (seconds: DeepSpeed reads its file)",
    )
    alone = "train the LLM alone on the same samples, as bridge-ds finetune does"
    if prog.endswith("finetune"):
        alone = argparse.SUPPRESS
    parser.add_argument("--finetune", action="store_true", help=alone)
    # The deepspeed launcher adds it; the rank comes from the environment.
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    return parser


def add_adapt_files(parser: argparse.ArgumentParser) -> None:
    """Options of `bridge-ds adapt`: what it reads, `--extend-vocabulary` and `--new-rows-only`."""
    parser.add_argument("--text", metavar="FILE", help="unlabeled text: a .txt, or a table with the field text")
    parser.add_argument("--triples", metavar="FILE", help="a knowledge graph's: jsonl with head, relation and tail")
    parser.add_argument("--templates", metavar="FILE", help="YAML: RELATION: sentence with {head} and {tail}")
    parser.add_argument(
        "--parallel",
        metavar="FILE",
        nargs="+",
        help="translations: a file and its English, or a table (source, target)",
    )
    parser.add_argument(
        "--extend-vocabulary", metavar="N", type=positive(int, most=100_000),
        help="add up to N pieces with letters that the tokenizer lacks, learned from --text, else --parallel, else "
        "--triples; all weights are trained",
    )  # fmt: skip
    parser.add_argument(
        "--new-rows-only",
        action="store_true",
        help="train nothing but the pieces that are added, on --parallel: all other languages stay as they are",
    )


def add_config_options(parser: argparse.ArgumentParser) -> None:
    """Options that name a run: `--recipe`, `--ds_config`, `--set`."""
    parser.add_argument(
        "--recipe", default="testbed", help="name in bridge_ds/config/recipes/, or a YAML file (default: testbed)"
    )
    parser.add_argument(
        "--ds_config", default="", help="DeepSpeed JSON: a path, or a name in ds_configs/ (sets run.ds_config)"
    )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable"
    )


def say_repeated(overrides: Sequence[str], stream: TextIO | None = None) -> None:
    """On the first rank, print which keys --set gives more than once with different values; the last value counts.

    Args:
        overrides: the `key=value` texts of --set.
        stream: where to print; default: stderr.
    """
    values: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if values.setdefault(key.strip(), value) != value:
            repeated[key.strip()] = value
        values[key.strip()] = value
    for key, value in repeated.items() if _is_first() else ():
        print(
            f"note: {short(key)} is given more than once; the last one holds: {short(value)}", file=stream or sys.stderr
        )


def _is_first() -> bool:
    """Whether this is rank 0. Called before World.detect, which may raise."""
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def add_placing(parser: argparse._ActionsContainer, default: str) -> None:
    """Add `--device-map` and `--max-memory`, which :mod:`bridge_ds.frozen.device_map` reads.

    Args:
        parser: takes the options.
        default: device named in the help where --device-map is not given.
    """
    parser.add_argument(
        "--device-map", metavar="MAP",
        help="split models that are too large for one device: auto, balanced, balanced_low_0, sequential; or a device "
        "(cpu, cuda:1); or a JSON object (or a file of one) of the LLM's module names and devices, 'encoder' being the "
        f"encoder (default: {default})",
    )  # fmt: skip
    sizes = "memory limit of each GPU and of the CPU, for auto and the like: 0=20GiB,cpu=60GiB"
    parser.add_argument("--max-memory", metavar="SIZES", help=sizes)


def positive(
    kind: type[int] | type[float], *, zero: bool = False, least: float = 0, most: float | None = None
) -> Callable[[str], Any]:
    """A `type` for argparse: a finite number above 0, of at most a thousand million unless said otherwise.

    Args:
        kind: int or float.
        zero: accept 0 too.
        least: smallest accepted value above 0.
        most: largest accepted value; default: 1e9.
    """
    most = 10**9 if most is None else most

    def convert(text: str) -> int | float:
        value = kind(text)
        if not (value > 0 or (zero and value == 0)):
            raise argparse.ArgumentTypeError(f"{short(text)} is not {'0 or more' if zero else 'above 0'}")
        if value < least and value:
            raise argparse.ArgumentTypeError(f"{short(text)} is not {least:g} or more")
        if value > most:
            what = "not finite" if value == float("inf") else f"more than {most:,}"
            raise argparse.ArgumentTypeError(f"{short(text)} is {what}")
        return value

    convert.__name__ = kind.__name__
    return convert


def show_plan(config: Any, ds_values: dict[str, Any], world: World) -> None:
    """Print the resolved config and what DeepSpeed will get."""
    from bridge_ds.config.ds_models import check_with_deepspeed
    from bridge_ds.config.load import config_text
    from bridge_ds.config.names import resolve
    from bridge_ds.config.zero import engine_config, fill_sizes
    from bridge_ds.errors import ConfigError
    from bridge_ds.plan.shapes import ENCODERS, LLMS, find_shape, largest_layer
    from bridge_ds.track.trackers import check_trackers

    if not world.is_main:
        return
    check_trackers(config)
    check_with_deepspeed(config, ds_values, world.size)
    print(config_text(config))
    left_open = fill_sizes(ds_values, 1) != ds_values
    try:
        encoder, llm = find_shape(resolve(config.model.encoder), ENCODERS), find_shape(resolve(config.model.llm), LLMS)
        ds_values = fill_sizes(ds_values, largest_layer(encoder, llm, config.encoder.trainable))
        remark = "computed from the known shapes; a run reads them from the models"
    except ConfigError as error:
        remark = f"read from the models when the run starts ({str(error).partition(';')[0]})"
    if left_open:
        print(f"# stage3_* sizes that the DeepSpeed file does not give: {remark}.")
    print(f"# DeepSpeed, on {world.size} ranks:")
    print(json.dumps(engine_config(config, ds_values, world.size), indent=2))
