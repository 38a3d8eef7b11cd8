"""Write what a run's LLM alone answers to English texts: `bridge-ds answers ...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge_ds.cli import Parser, add_config_options, positive
from bridge_ds.entry import run_command

__all__ = ["main"]

_HELP = """\
Let the LLM of a recipe, without a bridge, answer English texts greedily. Packed as targets, its answers are the tokens
at which it then teaches itself behind the soft prompt (data.objective=self_teaching): no labels are needed.

examples:
  bridge-ds answers --recipe mine.yaml --input english.jsonl --output answered.jsonl
  bridge-ds answers --set model.llm=meta-llama/Llama-3.2-1B --input pairs.jsonl --field text --output answered.jsonl
  bridge-ds pack --input answered.jsonl --output data/own --map source=source --map target=answer
  bridge-ds train --recipe mine.yaml --set data.objective=self_teaching --set data.shards=data/own

A line of --input is a JSON object; its English text is in the field `source` (--field names another). The output holds
the same objects in the same order, with the answer in `answer`. A killed command, started again, resumes."""


def main(argv: list[str] | None = None) -> int:
    """Parse, load, answer."""
    parser = Parser(prog="bridge-ds answers", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_options(parser, engine=False)
    parser.add_argument("--input", type=Path, required=True, help="a file of JSON lines")
    parser.add_argument("--output", type=Path, required=True, help="where the answers go (JSON lines)")
    parser.add_argument("--field", default="source", help="field of a line that holds its text (default: source)")
    parser.add_argument(
        "--batch", type=positive(int, most=1_000_000), default=16, help="texts answered at a time (default: 16)"
    )
    tokens = positive(int, most=1_000_000)
    parser.add_argument("--max-new-tokens", type=tokens, help="most tokens of an answer (default: as in training)")
    options = parser.parse_args(argv)
    from bridge_ds.config.load import load_config

    config = load_config(options.recipe, options.overrides)
    import torch

    from bridge_ds.generate.files import answer_file
    from bridge_ds.generate.own import OwnAnswers

    own = OwnAnswers(config, options.max_new_tokens, "cuda" if torch.cuda.is_available() else "cpu")
    answer_file(own, options.input, options.output, options.field, options.batch)
    own.print_truncated()
    return 0


if __name__ == "__main__":
    run_command(main)
