"""A store of MLflow on this machine, made fast."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture
def no_server_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the machine has set must not reach a test."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def no_fsync() -> Iterator[None]:
    """MLflow's first migrations of a sqlite file are 7 s of fsync; 2 s without."""
    import sqlalchemy

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", relax)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", relax)
