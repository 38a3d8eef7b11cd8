"""MLflow: its sqlite file made by a function of ours, see :mod:`bridge_ds.track.mlflow_database`."""

from __future__ import annotations

from functools import cache, wraps
from typing import Any

__all__ = ["make_mlflow_tables", "mlflow_revision", "spare_quoted_folders"]


def make_mlflow_tables(uri: str) -> None:
    """Make all tables of MLflow in a sqlite file that nobody else knows yet.

    MLflow (3.17 at least) has no command for it: `mlflow db upgrade` wants a database that was used, and making a store
    works on the file under its own name, where a kill leaves half of it (mlflow/mlflow#23721). The file is not flushed
    to disk after each of some seventy migrations, which takes seven seconds: whoever calls does it at the end.

    It can go when MLflow makes a sqlite database in one transaction; the test that kills a plain client in
    tests/track/test_database.py finds no half-made file then.

    Args:
        uri: of a file in a folder that is there.
    """
    import sqlalchemy
    from mlflow.store.db import utils

    engine = sqlalchemy.create_engine(uri, poolclass=sqlalchemy.pool.NullPool)

    def relax(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(engine, "connect", relax)
    try:
        utils._initialize_tables(engine)
        utils._verify_schema(engine)
    finally:
        engine.dispose()


@cache
def mlflow_revision() -> str:
    """The version of the tables that this MLflow (3.17 at least: a private name) works with."""
    from mlflow.store.db import utils

    return str(utils._get_latest_schema_revision())


def spare_quoted_folders() -> None:
    """Keep MLflow from making a folder called `a%3Fb` beside `a?b`.

    MLflow (3.17) makes the parent folder of a sqlite file by the letters of its URI, and SQLAlchemy opens the file that
    they stand for. The folder is there already when this project asks. tests/track/test_database.py says when it can
    go: it finds no such folder then.
    """
    from mlflow.store.db import utils

    make = getattr(utils, "_make_parent_dirs_if_sqlite", None)
    if make is None or hasattr(make, "spares"):
        return

    @wraps(make)
    def make_unquoted(db_uri: str) -> None:
        if not (db_uri.startswith("sqlite:") and "%" in db_uri):
            make(db_uri)

    make_unquoted.spares = True  # type: ignore[attr-defined]
    utils._make_parent_dirs_if_sqlite = make_unquoted
