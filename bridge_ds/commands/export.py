"""Write a trained bridge for another machine, or serve it.

examples:
  bridge-ds export --run runs/mine --to safetensors --output exported/mine
      one folder: the bridge, both base models, both tokenizers. BridgeForCausalLM.from_pretrained("exported/mine") and
      every command that takes --run load it on a machine without a hub
  bridge-ds export --run runs/mine --to prompt-embeds --vllm http://127.0.0.1:8001
      a service that answers over HTTP; the same as bridge-ds serve, whose options it takes

The licenses of the base models hold for their copies; their files (LICENSE, README.md) are copied with them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bridge_ds.cli import Parser
from bridge_ds.errors import ConfigError


def main(argv: list[str] | None = None) -> int:
    """Export, or serve."""
    options, rest = _parser().parse_known_args(argv)
    if options.to == "prompt-embeds":
        for name, given in (("--output", options.output is not None), ("--merge-lora", options.merge_lora)):
            if given:
                raise ConfigError(
                    f"{name} is given with --to prompt-embeds, which serves and writes nothing; expected it with --to "
                    "safetensors; leave it out."
                )
        from bridge_ds.serve.__main__ import main as serve

        places = [("--encoder", options.encoder), ("--llm", options.llm)]
        return serve(["--run", options.run, *(word for pair in places if pair[1] for word in pair), *rest])
    if rest:
        known = "--output, --encoder, --llm, --merge-lora"
        raise ConfigError(f"{rest[0]!r} is no option of --to safetensors; expected {known}.")
    if options.output is None:
        raise ConfigError("--output is missing; expected a folder to make.")
    if not sys.stderr.isatty():
        from transformers.utils import logging

        logging.disable_progress_bar()
    from bridge_ds.hub.export import export

    named = {"encoder": options.encoder, "llm": options.llm}
    print("\n".join(export(options.run, options.output, merge=options.merge_lora, **named)))
    print(f"written: {options.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="bridge-ds export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="run folder, checkpoint, exported folder, or hub id of a bridge")
    parser.add_argument("--to", choices=("safetensors", "prompt-embeds"), default="safetensors", help="which (above)")
    parser.add_argument("--output", type=Path, help="folder to make, for --to safetensors")
    parser.add_argument("--encoder", help="where the encoder is now, if not at the recorded path")
    parser.add_argument("--llm", help="where the LLM is now, if not at the recorded path")
    parser.add_argument(
        "--merge-lora", action="store_true", help="write the LLM with LoRA's updates and trained biases merged into it"
    )
    return parser
