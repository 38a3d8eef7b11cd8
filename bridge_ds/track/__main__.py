"""`python -m bridge_ds.track RUN`: send to MLflow what a run could not send while it ran."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bridge_ds.config.load import load_run_config
from bridge_ds.errors import EXIT_USER_ERROR, BridgeError
from bridge_ds.track.mlflow import sync

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bridge_ds.track", description=__doc__)
    parser.add_argument("run", type=Path, help="run folder (the run.output of a training run)")
    folder = parser.parse_args(arguments).run
    try:
        print(sync(folder, load_run_config(folder)))
    except BridgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
