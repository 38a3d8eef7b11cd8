"""The sqlite file that the runs of one folder share: its URI, and how it is created whole or not at all.

MLflow makes its tables in the file itself, in some seventy steps and up to seven seconds; killed in between, it leaves
one that neither it nor any later run can use (mlflow/mlflow#23721). Here they are made in a file of another name.
"""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, unquote

from bridge_ds.compat.mlflow import make_mlflow_tables, mlflow_revision, spare_quoted_folders
from bridge_ds.disk import beside, locked, real
from bridge_ds.errors import LaunchError
from bridge_ds.track.tracker import one_line

__all__ = ["explain", "prepare", "sqlite_path", "sqlite_uri"]

_SCHEME = "sqlite:///"
_QUIET_SECONDS = 5.0
"""An incomplete file that did not change for so long is not being made any more."""
_LONGEST_SECONDS = 120.0
"""The longest wait for one that does change."""
_OLD_SECONDS = 60.0
"""One that was last changed before that is not being made either."""
_MAKING = "making"


def sqlite_uri(path: Path) -> str:
    """The URI of a sqlite file.

    SQLAlchemy (2.1 at least) ends the path at `?` and decodes `%XX`: only where one of these stands in it is it quoted,
    so that all other files keep the URI under which they are known.
    """
    text = str(path)
    return _SCHEME + (quote(text, safe="/ #:@&=+$,;!'()*[]~") if re.search(r"\?|%[0-9A-Fa-f]{2}", text) else text)


def sqlite_path(uri: str) -> Path | None:
    """The file of a sqlite URI; none for other stores, for one in memory and for sqlite's own `file:` names."""
    if not uri.startswith(_SCHEME):
        return None
    text = unquote(uri.removeprefix(_SCHEME).partition("?")[0])
    return None if text in ("", ":memory:") or text.startswith("file:") else Path(text)


def prepare(uri: str) -> str:
    """See that the database of a sqlite URI is complete; make it if it is missing or was interrupted.

    Returns:
        a sentence about what was put aside; mostly empty.

    Raises:
        LaunchError: it is being made and does not get ready.
        OSError: it cannot be written.
    """
    path = sqlite_path(uri)
    if path is None:
        return ""
    spare_quoted_folders()
    path = real(path)
    if path.exists() and _is_complete(path):
        return ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(beside(path, "lock")):
        said = ""
        if path.exists():
            if _is_complete(path) or not _is_incomplete(path):
                return ""  # by another start, while this one waited; or nothing of which anything is known here
            if _gets_whole(path):
                return ""
            aside = _free_name(path)
            path.rename(aside)
            for ending in ("-journal", "-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
            said = f"MLflow: {path} was incomplete (a start was killed) and held no run; it is now {aside.name}"
        _make(path)
    return said


def explain(uri: str, error: Exception) -> Exception:
    """The error of a store; of one that is a sqlite file of another version, or half-upgraded, with the remedy."""
    path = sqlite_path(uri)
    if path is None or isinstance(error, LaunchError) or not path.exists() or _is_complete(path):
        return error
    return LaunchError(
        f"{path} is no database of this version of MLflow ({one_line(error)}); expected one, or none; copy it to a "
        f"safe place and run `mlflow db upgrade {uri}`; if an upgrade was interrupted, restore a copy from before "
        "it; or set track.uri to another file."
    )


def _make(path: Path) -> None:
    """Make the tables elsewhere in the folder, and give the file its name, unless there is one of that name by now."""
    for stale in path.parent.glob(f".{path.name}.{_MAKING}-*"):
        stale.unlink(missing_ok=True)
    temporary = beside(path, f"{_MAKING}-{os.getpid()}")
    try:
        make_mlflow_tables(sqlite_uri(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename it never replaces a file
        except FileExistsError:
            pass
        except OSError:
            if not path.exists():  # a file system without hard links
                temporary.rename(path)
    finally:
        for left in path.parent.glob(f"{temporary.name}*"):
            left.unlink(missing_ok=True)


def _is_complete(path: Path) -> bool:
    """Whether all of MLflow's migrations are done."""
    found = _ask(path, "SELECT version_num FROM alembic_version")
    return found is not None and found == [(mlflow_revision(),)]


def _is_incomplete(path: Path) -> bool:
    """Whether the file is of an MLflow that did not come to its end, and nothing was ever recorded in it."""
    tables = _ask(path, "SELECT name FROM sqlite_master WHERE type = 'table'")
    if tables is None:
        return False
    names = {name for (name,) in tables}
    # The first experiment is made when all tables are there: its absence shows that no MLflow ever got so far.
    if "experiments" not in names:
        return names <= {"alembic_version", "_alembic_tmp_experiments"}
    return _ask(path, "SELECT 1 FROM experiments LIMIT 1") == []


def _ask(path: Path, question: str) -> list[tuple[object, ...]] | None:
    """Answers of a sqlite file; none where it cannot be asked (no such table, no database, locked)."""
    # Not read-only: what a kill has left in its journal is rolled back first.
    try:
        with contextlib.closing(sqlite3.connect(f"file:{quote(str(path))}?mode=rw", uri=True, timeout=5)) as database:
            return database.execute(question).fetchall()
    except sqlite3.Error:
        return None


def _gets_whole(path: Path) -> bool:
    """Wait while somebody (mlflow ui, an older version of this) makes it; whether it is whole then."""

    def seen() -> tuple[int, int, bool]:
        facts = path.stat()
        return facts.st_size, facts.st_mtime_ns, path.with_name(path.name + "-journal").exists()

    if time.time() - path.stat().st_mtime > _OLD_SECONDS:
        return False
    begun = since = time.monotonic()
    before = seen()
    while time.monotonic() - since < _QUIET_SECONDS:
        time.sleep(0.2)
        if _is_complete(path):
            return True
        if (now := seen()) != before:
            before, since = now, time.monotonic()
        if time.monotonic() - begun > _LONGEST_SECONDS:
            raise LaunchError(
                f"{path} is being made by another process and is not ready after {_LONGEST_SECONDS:.0f} s; expected a "
                "database of MLflow; end that process, or set track.uri."
            )
    return False


def _free_name(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.half-made-{number}")).exists():
        number += 1
    return aside


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One start at a time makes it; on a file system without locks each makes its own, and the first one's is taken."""
    while True:
        with locked(path) as lock:
            try:
                mine = os.path.samestat(os.fstat(lock.fileno()), path.stat())
            except FileNotFoundError:
                mine = False  # whoever had it has taken it away
            if mine:
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
