"""Options and help of `train`, `finetune` and `adapt`, and what `--dry-run` prints. Imports no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from bridge_ds.cli import Parser, add_config_options, positive, say, say_repeated
from bridge_ds.world import World

__all__ = ["add_adapt_files", "parse_train", "show_plan", "train_parser"]

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

With another launcher, --prepare packs the files (and extends the vocabulary) and writes RUN/prepared.yaml, a recipe:
  bridge-ds adapt --parallel pairs.tsv --set model.encoder=... --set run.output=runs/quy --prepare
  RECIPE=runs/quy/prepared.yaml OUTPUT=runs/quy sbatch --gpus-per-node=1 slurm/train_1b.sh

The same command again continues. docs/adapt.md says which remedy helps which language."""


def parse_train(argv: list[str] | None = None) -> argparse.Namespace:
    """Options of the trainer: `recipe`, `overrides` (a list of key=value), `dry_run`."""
    parser = train_parser()
    default = parser.get_default("recipe")
    parser.set_defaults(recipe=None)
    options = parser.parse_args(argv)
    if options.recipe is None:
        options.recipe = default
        _say_default(default, options.overrides)
    if options.ds_config:
        options.overrides.append(f"run.ds_config={options.ds_config}")
    say_repeated(options.overrides)
    return options


def _say_default(recipe: str, overrides: Sequence[str]) -> None:
    """On the first rank, say so where other models would be trained with the settings of the testbed's small ones."""
    given = [text.partition("=")[0].strip() for text in overrides]
    if models := [key for key in ("model.encoder", "model.llm") if key in given]:
        say(
            f"{' and '.join(models)} and no --recipe: what --set does not give has the value of the recipe {recipe}, "
            "for small models and short texts; for others name a recipe, such as mt5xl_1b"
        )


def train_parser(prog: str = "train.py") -> Parser:
    """The parser of the trainer's options."""
    texts = {"finetune": _FINETUNE_HELP, "adapt": _ADAPT_HELP}
    text = texts.get(prog.rpartition(" ")[2], _TRAIN_HELP)
    parser = Parser(prog=prog, description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if text is _ADAPT_HELP:
        add_adapt_files(parser)
    if prog.startswith("bridge-ds"):  # commands/train.py takes it out
        shown = "processes on this machine (default: one a GPU; those of CUDA_VISIBLE_DEVICES where it is set)"
        parser.add_argument("--num_gpus", metavar="N", help=shown)
    add_config_options(parser, "adapt" if text is _ADAPT_HELP else "testbed")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="resolve and check the config, print it, and stop (seconds: DeepSpeed reads its file)",
    )
    alone = "train the LLM alone on the same samples, as bridge-ds finetune does"
    shown = alone if text is _TRAIN_HELP else argparse.SUPPRESS
    parser.add_argument("--finetune", action="store_true", help=shown)
    # The deepspeed launcher adds it; the rank comes from the environment.
    parser.add_argument("--local_rank", type=int, default=-1, help=argparse.SUPPRESS)
    return parser


def add_adapt_files(parser: argparse.ArgumentParser) -> None:
    """Options of `bridge-ds adapt`: what it reads, and what it does with it before it trains."""
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
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="train nothing: pack the files, extend the vocabulary, and write RUN/prepared.yaml, the recipe of the run",
    )


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
