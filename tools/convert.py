#!/usr/bin/env python3
"""`bridge-ds convert`, from a checkout that need not be installed."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bridge_ds.commands.convert import main
from bridge_ds.entry import run_command

if __name__ == "__main__":
    run_command(main)
