"""Small models for conversions, instead of the suite's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`encoder` and `llm`. With smaller weights a random LLM hardly notices a wrong soft prompt, with larger ones its
    rounding errors come near to what the tests allow."""
    root = tmp_path_factory.mktemp("converted")
    llm = tiny.make_llm("llama", root / "llm", initializer_range=0.06)
    return {"encoder": tiny.make_encoder("mt5", root / "encoder"), "llm": llm}


@pytest.fixture(scope="session")
def roomy(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same with an encoder whose embedding has room for tokens that somebody adds, as mT5's has."""
    return models | {"encoder": tiny.make_encoder("mt5", tmp_path_factory.mktemp("roomy") / "mt5", vocab=400)}
