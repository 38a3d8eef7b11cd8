"""Train the encoder alone for a language that it does not know: on unlabeled text, on translations, or on both."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

from bridge_ds.adapt.extension import Extension, read_extension
from bridge_ds.cli import Parser
from bridge_ds.commands.train import launched, split
from bridge_ds.commands.train import main as train
from bridge_ds.config.load import load_config, save_config
from bridge_ds.config.names import with_full_paths
from bridge_ds.config.schema import Config
from bridge_ds.data.packing.lines import (
    named_files,
    pack_pairs,
    pack_text,
    pack_triples,
    sources,
    text_lines,
    triple_lines,
)
from bridge_ds.disk import atomic_folder
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.objectives import OBJECTIVES
from bridge_ds.training_options import add_adapt_files, parse_train, train_parser

__all__ = ["main"]

_PROG = "bridge-ds adapt"
_LEARNED_FROM = 200_000
"""Most lines from which pieces are learned."""
_OBJECTIVES = {
    (True, False): (),  # as the recipe says
    (False, True): ("data.objective=align", "train.steps=1000", "train.global_batch=32"),
    (True, True): ("data.objective=denoise_and_align", "train.steps=10000", "train.global_batch=32"),
}
"""Text is given, pairs are given -> settings, unless --set has others; of a recipe of the user's, the first alone."""
_ALL = ("lora.rank=0", "encoder.trainable=true")
_NEW_ROWS = (
    *("lora.rank=0", "encoder.trainable=false", "adapt.new_rows_only=true", "data.objective=align"),
    *("adapt.english_share=0", "adapt.token_weight=10", "train.steps=1000", "train.global_batch=32"),
)
"""Of a recipe of the user's the first four. English cannot change then, so no share of the pairs need hold it."""
_TRIPLES = ("train.steps=25000",)
"""Where triples are given alone, as in arXiv 2502.10140; a recipe of the user's has its own."""


def main(argv: list[str] | None = None) -> int:
    """As :mod:`bridge_ds.commands.train`, with the recipe `adapt`; packs the files that are given first. `--prepare`
    does only that, and writes a recipe that names the shards, for other launchers."""
    words = list(sys.argv[1:] if argv is None else argv)
    files = Parser(add_help=False, allow_abbrev=False, prog=_PROG)
    add_adapt_files(files)
    own, launcher = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, [])
    found, own = files.parse_known_args(own)
    if found.parallel and len(found.parallel) > 2:
        files.error(f"--parallel has {len(found.parallel)} files; expected one, or two whose lines are translations")
    if not any(word.partition("=")[0] == "--recipe" for word in own):
        own = ["--recipe", "adapt", *own]
    given = bool(found.text or found.parallel or found.triples)
    if found.extend_vocabulary and not given:
        files.error("--extend-vocabulary learns pieces from text; expected --text, --triples or --parallel too")
    if found.templates and not found.triples:
        files.error("--templates puts triples into words; expected --triples too")
    if found.new_rows_only and found.triples:
        files.error("--new-rows-only trains on pairs, and learns pieces from --text or the pairs; leave out --triples")
    if found.new_rows_only and not (found.extend_vocabulary and found.parallel):
        files.error("--new-rows-only trains the pieces that are added, on pairs; expected --extend-vocabulary and "
                    "--parallel too")  # fmt: skip
    if found.prepare and not given:
        files.error("--prepare packs files; expected --text, --triples or --parallel too")
    if given:
        own += _packed(own, found)
    elif not {"-h", "--help"} & set(own):
        _refuse_no_data(own, files)
    return _prepared(own) if found.prepare else train([*own, *launcher], _PROG)


def _refuse_no_data(words: list[str], files: Parser) -> None:
    """The recipe `adapt` names no text, for there is none to begin with."""
    options = train_parser(_PROG).parse_args(split(words, _PROG)[0])
    given = {setting.partition("=")[0].strip() for setting in options.overrides}
    if options.recipe == "adapt" and not given & {"data.shards", "data.mixture"}:
        files.error("no data is named; expected --text, --triples or --parallel, or --set data.shards=FOLDER")


def _prepared(words: list[str]) -> int:
    """Write the run's recipe and say how it is started; `words` name the shards and the encoder."""
    options = parse_train(split(words, _PROG)[0])
    config = load_config(options.recipe, options.overrides)
    folder = Path(config.run.output)
    recipe = folder / "prepared.yaml"
    if not options.dry_run:
        save_config(config, recipe)
    # The negatives of a pair are on its own GPU.
    gpus = "--gpus-per-node=1 " if OBJECTIVES[config.data.objective].aligns else ""
    at, output = shlex.quote(str(recipe)), shlex.quote(str(folder))
    print(f"{recipe} {'would be' if options.dry_run else 'is'} the recipe of this run; start it with one of these:\n"
          f"  bridge-ds train --recipe {at}{' --num_gpus 1' if gpus else ''}\n"
          f"  RECIPE={at} OUTPUT={output} sbatch {gpus}slurm/train_1b.sh")  # fmt: skip
    return 0


def _packed(words: list[str], files: argparse.Namespace) -> list[str]:
    """Pack the files into the run folder, and extend the encoder; returns options that name the shards and it."""
    if launched() and not files.prepare:
        raise LaunchError(
            "--text, --triples and --parallel are packed once, by the command that starts the processes, and this is "
            "one of them; expected shards; run the same with --prepare first, then start the recipe that it writes."
        )
    options = parse_train(split(words, _PROG)[0])
    shipped = options.recipe == "adapt"
    ours = _OBJECTIVES[bool(files.text or files.triples), bool(files.parallel)][: None if shipped else 1]
    ours += _TRIPLES if shipped and files.triples and not (files.text or files.parallel) else ()
    ours += _ALL if files.extend_vocabulary else ()
    if files.new_rows_only:
        ours = _NEW_ROWS[: None if shipped else 4]
    config = load_config(options.recipe, [*ours, *options.overrides])
    given = {setting.partition("=")[0].strip() for setting in options.overrides}
    if others := sorted(given & {"data.shards", "data.mixture"}):
        raise ConfigError(
            f"{others[0]} is given beside --text, --triples or --parallel; expected one of them to name the data; "
            "leave one out, or pack the files (bridge-ds pack) and name all shards in data.mixture."
        )
    names = _pack_files(files, Path(config.run.output).absolute() / "shards", options.dry_run)
    extended = []
    if files.extend_vocabulary:
        extended = _extended(config, files, options.dry_run)
        found = read_extension(Path(config.run.output).absolute() / "extended")
        if found and files.new_rows_only and shipped and "train.lr" not in given:
            extended.append(f"train.lr={found.lr}")
    mixture = f"data.mixture=[{', '.join(json.dumps(f'{name}=1', ensure_ascii=False) for name in names)}]"
    shards = [mixture] if len(names) > 1 else [f"data.shards={names[0]}", "data.mixture=[]"]
    wanted = [setting for setting in ours if setting.partition("=")[0] not in given]
    return [word for setting in (*wanted, *shards, *extended) for word in ("--set", setting)]


def _pack_files(files: argparse.Namespace, folder: Path, dry_run: bool) -> list[Path]:
    """Shards of each kind of file that is given; returns their folders."""
    templates = Path(files.templates) if files.templates else None
    kinds: dict[str, Callable[[Path], None]] = {}
    if files.text and not files.new_rows_only:
        kinds["text"] = partial(pack_text, Path(files.text))
    if files.triples:
        kinds["triples"] = partial(pack_triples, Path(files.triples), templates)
    if files.parallel:
        kinds["pairs"] = partial(pack_pairs, [Path(name) for name in files.parallel])
    for name, pack in kinds.items():
        if not dry_run:
            pack(folder / name)
    return [folder / name for name in kinds]


def _learned_from(files: argparse.Namespace) -> tuple[Iterator[str], str]:
    """Text from which pieces are learned, and the files that it is in."""
    if files.text:
        return text_lines(Path(files.text)), named_files([Path(files.text)])
    if files.parallel:
        names = [Path(name) for name in files.parallel]
        return sources(names), named_files(names)
    templates = Path(files.templates) if files.templates else None
    names = [Path(files.triples), *([templates] if templates else [])]
    return triple_lines(Path(files.triples), templates), named_files(names)


def _extended(config: Config, files: argparse.Namespace, dry_run: bool) -> list[str]:
    """Write the encoder with more pieces, learned from the files, into the run folder, unless it is there; returns the
    setting that names it."""
    if not config.adapt.new_rows_only and not (config.encoder.trainable and config.encoder.train_embeddings):
        key = "train_embeddings" if config.encoder.trainable else "trainable"
        raise ConfigError(
            f"--extend-vocabulary is given and encoder.{key} is false; expected all weights to be trained, for new "
            f"rows mean nothing before; leave lora.rank and encoder.{key} out."
        )
    folder = Path(config.run.output).absolute() / "extended"
    of = with_full_paths(config.model)
    lines, learned_from = _learned_from(files)
    made_of = Extension(of.encoder, of.encoder_revision, files.extend_vocabulary, learned_from=learned_from)
    if (folder / "config.json").is_file():
        if (found := read_extension(folder)) is None or not made_of.is_of(found):
            raise ConfigError(
                f"{folder} was made of {found or 'something else'}, and this start has {made_of}; expected the same; "
                f"choose another run.output, or remove {folder}."
            )
    elif not dry_run:
        from bridge_ds.adapt.vocabulary import extend_vocabulary
        from bridge_ds.engine.setup import quiet_transformers
        from bridge_ds.hub.encoder import BESIDE
        from bridge_ds.hub.llm import copy_files

        quiet_transformers()
        with atomic_folder(folder, replace=True) as part:
            added = extend_vocabulary(config.model, list(islice(lines, _LEARNED_FROM)), made_of.pieces, part)
            copy_files(of.encoder, of.encoder_revision, part, (*BESIDE, "README.md"))  # which states the licence
            replace(made_of, first=added.first, deviation=added.deviation).write(part)
        print(f"{added.pieces} pieces were added to the vocabulary: {folder}", file=sys.stderr)
    return [f"model.encoder={folder}"]
