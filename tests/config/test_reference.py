"""The page of all settings is the one that the schema makes."""

from __future__ import annotations

from pathlib import Path

from bridge_ds.config.load import flatten
from bridge_ds.config.reference import page
from bridge_ds.config.schema import Config

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def test_the_committed_page_is_what_the_schema_says() -> None:
    text = page()
    assert PAGE.read_text(encoding="utf-8") == text, "run python -m bridge_ds.config.reference > docs/configuration.md"
    assert all(f"| `{key}` | " in text for key in flatten(Config()))
    assert "| `train.lr` | float, from 0 to 1e+38 | `3e-05` | reported | Peak learning rate of AdamW. |\n" in text
    assert "| `train.validate_every` | int or null, from 0 to 1,000,000,000 | `null` | free |" in text
    assert "| `data.mixture` | list of path | `[]` | free |" in text
