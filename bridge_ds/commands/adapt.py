"""Train the encoder alone for a language that it does not know: on unlabeled text, on translations, or on both."""

from __future__ import annotations

import sys
from pathlib import Path

from bridge_ds.cli import Parser, add_adapt_files, parse_train
from bridge_ds.commands.train import launched, split
from bridge_ds.commands.train import main as train
from bridge_ds.config.load import load_config
from bridge_ds.data.packing.lines import pack_pairs, pack_text
from bridge_ds.errors import LaunchError

__all__ = ["main"]

_PROG = "bridge-ds adapt"
_OBJECTIVES = {
    (True, False): (),  # as the recipe says
    (False, True): ("data.objective=align", "train.steps=1000", "train.global_batch=32"),
    (True, True): ("data.objective=denoise_and_align", "train.steps=10000", "train.global_batch=32"),
}
"""Text is given, pairs are given -> settings, unless --set has others."""


def main(argv: list[str] | None = None) -> int:
    """As :mod:`bridge_ds.commands.train`, with the recipe `adapt`; packs the files that are given first."""
    words = list(sys.argv[1:] if argv is None else argv)
    files = Parser(add_help=False, allow_abbrev=False, prog=_PROG)
    add_adapt_files(files)
    own, launcher = (words[: words.index("--")], words[words.index("--") :]) if "--" in words else (words, [])
    found, own = files.parse_known_args(own)
    if found.parallel and len(found.parallel) > 2:
        files.error(f"--parallel has {len(found.parallel)} files; expected one, or two whose lines are translations")
    if not any(word.partition("=")[0] == "--recipe" for word in own):
        own = ["--recipe", "adapt", *own]
    if found.text or found.parallel:
        own += _packed(own, found.text, found.parallel)
    return train([*own, *launcher], _PROG)


def _packed(words: list[str], text: str | None, parallel: list[str] | None) -> list[str]:
    """Pack the files into the run folder; returns options that name the shards."""
    if launched():
        raise LaunchError(
            "--text and --parallel are packed once, by the command that starts the processes, and this is one of them; "
            "expected shards; pack them first (bridge-ds pack) and name them with --set data.shards=FOLDER."
        )
    options = parse_train(split(words, _PROG)[0])
    ours = _OBJECTIVES[bool(text), bool(parallel)]
    config = load_config(options.recipe, [*ours, *options.overrides])
    folder = Path(config.run.output).absolute() / "shards"
    names = []
    if text:
        names.append(folder / "text")
        if not options.dry_run:
            pack_text(Path(text), names[-1])
    if parallel:
        names.append(folder / "pairs")
        if not options.dry_run:
            pack_pairs([Path(name) for name in parallel], names[-1])
    shards = f"data.shards={names[0]}" if len(names) == 1 else f"data.mixture=[{', '.join(f'{n}=1' for n in names)}]"
    given = {setting.partition("=")[0] for setting in options.overrides}
    wanted = [setting for setting in (*ours, shards) if setting.partition("=")[0] not in given]
    return [word for setting in wanted for word in ("--set", setting)]
