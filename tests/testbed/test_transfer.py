"""What the project is for, on the shipped models: a bridge trained on English answers in languages it never saw."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean

import pytest

from tests.trained import SAMPLES

CARRIED = {"testbed_inference": 1 / 3, "testbed_news": 1 / 2, "testbed_reviews": 1 / 2}
"""Least share of the way from chance to the bridge's own English accuracy."""


@pytest.mark.slow
def test_english_training_carries_over(trained_run: Path) -> None:
    found = json.loads((trained_run / "evaluation.json").read_text())
    for task, least in CARRIED.items():
        bridge = {language: cell["acc"] for language, cell in found["bridge"][task].items()}
        alone = {language: cell["acc"] for language, cell in found["llm"][task].items()}
        chance, english = found["chance"][task], bridge.pop("en")
        assert alone.pop("en") >= 0.95
        assert english >= 0.8, (task, english)
        spread = 3 * (chance * (1 - chance) / SAMPLES) ** 0.5
        assert all(abs(share - chance) < 0.06 + spread for share in alone.values()), (task, alone)
        assert mean(bridge.values()) - chance >= least * (english - chance), (task, bridge)
