"""Copy the Slurm launchers to where they can be read, changed and submitted."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from bridge_ds.cli import Parser
from bridge_ds.errors import LaunchError
from bridge_ds.shipped import shipped

__all__ = ["copy_launchers", "main"]

_HELP = """\
Copy the Slurm launchers into DIR/slurm. Change the head of DIR/slurm/env.sh for your site, then submit from DIR.

examples:
  bridge-ds slurm copy .
  sbatch slurm/train_13b.sh --set data.shards=data/english
  OUTPUT=runs/mt5xl_13b LANGUAGES="sw ur" sbatch --array=0-1 slurm/evaluate.sh --tasks xnli"""


def main(argv: list[str] | None = None) -> int:
    """Copy; returns the exit status."""
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="bridge-ds slurm", description=_HELP, formatter_class=form)
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    copy = actions.add_parser("copy", help="copy the launchers into DIR/slurm", description=_HELP, formatter_class=form)
    copy.add_argument("folder", nargs="?", type=Path, default=Path(), metavar="DIR", help="default: this folder")
    copy.add_argument("--overwrite", action="store_true", help="replace launchers that were changed")
    options = parser.parse_args(argv)
    copied = copy_launchers(options.folder, options.overwrite)
    print(f"{len(copied)} launchers in {options.folder / 'slurm'}; submit from {options.folder.resolve()}")
    return 0


def copy_launchers(folder: Path, overwrite: bool = False) -> list[Path]:
    """Copy the launchers into `folder`/slurm.

    Args:
        folder: made where it is missing.
        overwrite: replace launchers that differ from the shipped ones.

    Returns:
        the files.

    Raises:
        LaunchError: a launcher there differs, or the folder cannot be written.
    """
    target = folder / "slurm"
    scripts = {target / path.name: path for path in sorted(shipped("slurm").glob("*.sh"))}
    try:
        changed = [new.name for new, old in scripts.items() if new.exists() and new.read_bytes() != old.read_bytes()]
        if changed and not overwrite:
            raise LaunchError(
                f"{target} holds launchers that differ ({', '.join(changed)}); expected none, or the shipped ones; "
                "choose another folder, or replace them with --overwrite."
            )
        target.mkdir(parents=True, exist_ok=True)
        for new, old in scripts.items():
            shutil.copyfile(old, new)
    except OSError as error:
        raise LaunchError(
            f"{target} cannot be written ({error.strerror}); expected a folder that you may write; choose another."
        ) from None
    return list(scripts)
