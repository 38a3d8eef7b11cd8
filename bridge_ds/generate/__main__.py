"""Answer texts with a trained bridge: `bridge-ds generate --run DIR ...`."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bridge_ds.cli import Parser, add_placing, positive
from bridge_ds.entry import run_command
from bridge_ds.errors import ConfigError

if TYPE_CHECKING:
    from bridge_ds.generate.pipeline import Pipeline

_HELP = """\
Answer texts in any language of the encoder with a trained bridge. With --prompt one answer is printed; with --input a
file is answered in batches; with neither, each line that is typed (or piped in) is answered. Greedy by default.

examples:
  bridge-ds generate --run runs/testbed --prompt "a text in any language"
  bridge-ds generate --run runs/testbed                      (a line, an answer; Ctrl-D ends it)
  bridge-ds generate --run runs/mine --input questions.jsonl --output answers.jsonl --batch 32
  bridge-ds generate --run runs/mine --input questions.jsonl --output answers.jsonl --choose --language bn
  bridge-ds generate --run runs/mine --prompt "..." --chat --system "Answer briefly." --max-new-tokens 256
  bridge-ds generate --run someone/bridge-sw --prompt "..." --device-map auto --load-in 4bit --temperature 0.7

A line of --input is a JSON object; its text is in the field `source` (--field names another), for --chat also a list of
messages. Where the LLM reads text too (data.augment_prompt), it reads the field `prompt` in place of that text, if
there is one, as in training. The output holds the same objects in the same order, with the answer in `answer`. A killed
command, started again, resumes after its last whole batch; the output is the same, byte for byte."""


def main(argv: list[str] | None = None) -> int:
    """Parse, load, answer."""
    options = _parse(argv)
    _check(options)
    from bridge_ds.generate.pipeline import GenerateOptions, Pipeline

    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(GenerateOptions)}
    how = GenerateOptions(**given | {"stop": tuple(options.stop)})
    pipeline = Pipeline.load(options.run, how, **loading(options))
    pipeline.check_language()
    _answer(pipeline, options)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="bridge-ds generate", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder, checkpoint, exported folder, or hub id of a bridge")
    what = parser.add_argument_group("what to answer")
    what.add_argument("--prompt", help="one text")
    what.add_argument("--input", type=Path, help="a file of JSON lines")
    what.add_argument("--output", type=Path, help="where its answers go (JSON lines)")
    what.add_argument("--field", default="source", help="field of a line that holds its text (default: source)")
    what.add_argument(
        "--batch",
        type=positive(int, most=1_000_000),
        default=16,
        help="texts of a file answered at a time (default: 16)",
    )
    what.add_argument("--chat", action="store_true", help="use the LLM's chat template")
    what.add_argument("--system", default="", help="system message for the LLM, in its own language (implies --chat)")
    what.add_argument(
        "--language", default="", metavar="CODE",
        help="language of the texts, for an encoder that is told it (NLLB, M2M-100, mBART) and for --choose; a line's "
        "own field `language` comes first",
    )  # fmt: skip
    what.add_argument(
        "--choose", action="store_true",
        help="let the LLM alone answer in the languages in which it was significantly better (choice.json, which "
        "bridge-ds evaluate --choose writes); lines of --output then say who answered, in `answered_by`",
    )  # fmt: skip
    how = parser.add_argument_group("how to write")
    tokens = positive(int, most=1_000_000)
    how.add_argument("--max-new-tokens", type=tokens, help="most tokens of an answer (default: as long as in training)")
    heat = positive(float, zero=True, least=1e-4, most=1e4)  # others take logits out of the range of float32
    how.add_argument("--temperature", type=heat, default=0.0, help="sample at this temperature; 0 = greedy (default)")
    share = positive(float, most=1)
    how.add_argument("--top-p", type=share, help="sample from the likeliest tokens that hold this share (0 to 1)")
    how.add_argument("--top-k", type=positive(int), help="sample from that many tokens")
    how.add_argument("--beams", type=positive(int, most=1000), default=1, help="beams of a beam search (default: 1)")
    seeds = positive(int, zero=True, most=2**63 - 1)
    how.add_argument("--seed", type=seeds, default=0, help="of sampling (default: 0)")
    how.add_argument("--stop", action="append", default=[], help="end an answer before this text; repeatable")
    add_loading(parser)
    options = parser.parse_args(argv)
    options.chat = options.chat or bool(options.system)
    return options


def _check(options: argparse.Namespace) -> None:
    """User errors that show before the models are loaded."""
    if options.prompt is not None and options.input:
        raise ConfigError("both --prompt and --input are given; expected one of them.")
    if bool(options.input) != bool(options.output):
        raise ConfigError("--input and --output belong together; give both.")
    if not options.temperature and (options.top_p is not None or options.top_k is not None):
        raise ConfigError("--top-p and --top-k are given without sampling; expected a --temperature above 0 with them.")
    if any(not stop for stop in options.stop):
        raise ConfigError("--stop is empty; expected a text.")


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Options that :func:`loading` reads."""
    models = parser.add_argument_group("how to load")
    models.add_argument("--encoder", help="where the encoder is now, if not where the bridge says")
    models.add_argument("--llm", help="where the LLM is now, if not where the bridge says")
    models.add_argument("--dtype", help="auto (as in training, the default), bfloat16, float32, float16")
    add_placing(models, "auto with a GPU, else cpu")
    models.add_argument("--load-in", choices=("4bit", "8bit"), help="the LLM in 4 or 8 bits (needs bitsandbytes)")
    models.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a base model")
    models.add_argument(
        "--allow-base-mismatch", action="store_true", help="load other base models than it was trained with"
    )


def loading(options: argparse.Namespace) -> dict[str, Any]:
    """Options of from_pretrained from those of the command line."""
    import torch

    device_map = options.device_map
    if device_map is None and torch.cuda.is_available():
        device_map = "auto"
    return {
        "encoder": options.encoder,
        "llm": options.llm,
        "dtype": options.dtype,
        "device_map": device_map,
        "max_memory": options.max_memory,
        "load_in_4bit": options.load_in == "4bit",
        "load_in_8bit": options.load_in == "8bit",
        "trust_remote_code": options.trust_remote_code,
        "allow_base_mismatch": options.allow_base_mismatch,
    }


def _answer(pipeline: Pipeline, options: argparse.Namespace) -> None:
    if options.input:
        from bridge_ds.generate.files import answer_file

        answer_file(pipeline, options.input, options.output, options.field, options.batch)
    elif options.prompt is not None:
        from bridge_ds.generate.talk import say

        say(pipeline, options.prompt)
    else:
        from bridge_ds.generate.talk import talk

        talk(pipeline)
    pipeline.print_truncated()


if __name__ == "__main__":
    run_command(main)
