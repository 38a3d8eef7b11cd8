"""A testbed run that has really been trained, for long enough to read its sources: once a test session."""

from __future__ import annotations

import time
from pathlib import Path

from tests.launch import succeed, train

STEPS, SAMPLES = 300, 60
"""Two fifths of the recipe's steps, and a fifth of its test samples: enough to be far from chance."""


def trained_once(shared: Path) -> Path:
    """The run folder under `shared`, which all processes of a test session have in common; read, do not change."""
    run, claim, done = shared / "trained", shared / "trained.claim", shared / "trained.done"
    try:
        claim.mkdir()
    except FileExistsError:
        deadline = time.monotonic() + 600
        while not done.exists():
            assert time.monotonic() < deadline, "the process that trains the shared run has failed"
            time.sleep(0.5)
        return run
    settings = {
        "run.output": run, "run.seed": 3, "train.steps": STEPS, "track.uri": "none", "evaluation.limit": SAMPLES,
        "checkpoint.every": 1000,
    }  # fmt: skip
    arguments = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    succeed(train(arguments, 1, shared / "trained.logs", timeout=580))
    done.touch()
    return run
