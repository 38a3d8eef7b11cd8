"""Turn a LangBridge, MindMerger, LayAlign or paper checkpoint into a run folder, or XLM-SWCM's encoder into a folder
that a run can name, with nothing trained again.

examples:
  bridge-ds convert langbridge downloads/metamath-langbridge-9b --output runs/metamath
      encoder and LLM are those that the checkpoint's config.json names
  bridge-ds convert mindmerger outputs/math/augmentation/pytorch_model.bin \\
      --encoder google/mt5-xl --llm meta-math/MetaMath-7B-V1.0 --output runs/mindmerger
  bridge-ds convert paper outputs/epoch_2_aug --encoder google/mt5-xl --llm meta-llama/Llama-3.2-1B-Instruct \\
      --dry-run
      what would become of every key; nothing is written
  bridge-ds convert swcm downloads/xlm-swcm.bin models/swcm
      the encoder alone: then --set model.encoder=models/swcm

then, as with a run that was trained here:
  bridge-ds evaluate --run runs/metamath --tasks mgsm
  bridge-ds doctor runs/metamath

`bridge-ds convert SOURCE --help` lists what is read from each source. Both models are loaded completely. A key that
is missing, unexpected or of another shape is a user error that names it; exit status 2. Pickled objects are never
executed (torch.load(weights_only=True)).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge_ds.cli import Parser, say_repeated
from bridge_ds.convert import SOURCES
from bridge_ds.convert.swcm import SWCM_BASE, SWCM_HELP, SWCM_TITLE, convert_swcm


def main(argv: list[str] | None = None) -> int:
    """Convert, or list what would be done; returns the exit status."""
    options = _parser().parse_args(argv)
    if options.source == "swcm":
        _convert_encoder(options)
        return 0
    say_repeated(options.overrides)
    _convert(options)
    return 0


def _convert_encoder(options: argparse.Namespace) -> None:
    from bridge_ds.convert.job import refuse_used

    if not options.dry_run:
        refuse_used(options.output)
    for line in convert_swcm(options.checkpoint, options.output, encoder=options.encoder, write=not options.dry_run):
        print(line)
    if options.dry_run:
        print("dry run: nothing was written")
        return
    print(f"written: {options.output}; --set model.encoder={options.output} trains a bridge from it")


def _convert(options: argparse.Namespace) -> None:
    from bridge_ds.convert.job import prepare, refuse_used

    if not options.dry_run:
        refuse_used(options.output)
    found = prepare(
        SOURCES[options.source],
        options.checkpoint,
        encoder=options.encoder,
        llm=options.llm,
        overrides=options.overrides,
        add_tokens=not getattr(options, "no_added_tokens", False),
    )
    print("\n".join(found.lines() if options.dry_run else found.summary()))
    if options.dry_run:
        print("dry run: nothing was written")
        return
    found.write(options.output)
    print(f"written: {options.output}; bridge-ds evaluate --run {options.output} --tasks ... scores it")


def _parser() -> argparse.ArgumentParser:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bridge-ds convert", description=__doc__, formatter_class=form)
    kinds = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")
    for name, source in SOURCES.items():
        kind = kinds.add_parser(name, help=source.title, description=source.help, formatter_class=form)
        kind.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its file, or the folder that holds it")
        kind.add_argument("--encoder", default="", help="encoder it was trained with: hub id or folder")
        kind.add_argument("--llm", default="", help="LLM it was trained with: hub id or folder")
        kind.add_argument(
            "--output", type=Path, default=Path("runs/converted"), help="run folder to make (default: runs/converted)"
        )
        kind.add_argument(
            "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE",
            help="set one key of the run's config, such as model.dtype=float32 (default: bfloat16); repeatable",
        )  # fmt: skip
        kind.add_argument("--dry-run", action="store_true", help="check, list every key, write nothing")
        if source.added_tokens:
            kind.add_argument(
                "--no-added-tokens", action="store_true",
                help=f"leave out the {len(source.added_tokens)} tokens that it adds to the encoder's tokenizer",
            )  # fmt: skip
    alone = kinds.add_parser("swcm", help=SWCM_TITLE, description=SWCM_HELP, formatter_class=form)
    alone.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="its file, such as xlm-swcm.bin")
    alone.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make")
    alone.add_argument("--encoder", default=SWCM_BASE, help="XLM-R with config and tokenizer (default: %(default)s)")
    alone.add_argument("--dry-run", action="store_true", help="check, write nothing")
    return parser
