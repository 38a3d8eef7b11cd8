"""A small encoder with rows to spare in its embedding, as mT5 has them, and the model fixtures of the whole suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import tiny


@pytest.fixture(scope="session")
def roomy(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`encoder` and `llm`; the encoder's embedding has room for tokens that somebody adds."""
    return models | {"encoder": tiny.make_encoder("mt5", tmp_path_factory.mktemp("roomy") / "mt5", vocab=400)}
