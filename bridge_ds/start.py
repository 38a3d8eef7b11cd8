"""The run folder at the start of a run: written only when nothing can refuse the start any more."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

from bridge_ds import __version__
from bridge_ds.config.load import config_text
from bridge_ds.config.schema import Config
from bridge_ds.data.packing.write import pack_rows
from bridge_ds.data.shards.index import INDEX_NAME
from bridge_ds.disk import atomic_write, real, remove
from bridge_ds.engine.heartbeat import await_leaving, claim, living
from bridge_ds.errors import LaunchError
from bridge_ds.tasks.shards import definition, refuse_other_rows, rows_at_start

__all__ = ["RunFolder", "versions"]


class RunFolder:
    """The run folder, on rank 0.

    Between :meth:`check` and :meth:`accept` the start may be refused (whether models fit the checkpoint is known only
    after loading them); :meth:`undo` then restores the folder.
    """

    def __init__(self, output: str) -> None:
        self.path = Path(output).absolute()
        self._output = output
        self._accepted = False
        self._made: list[Path] = []
        self._found: tuple[Path, os.stat_result] | None = None

    def check(self) -> None:
        """Check that the folder can be made and written, without writing.

        Raises:
            LaunchError: it cannot.
        """
        folder = real(self.path)
        while not os.path.lexists(folder):
            folder = folder.parent
        if not folder.is_dir():
            raise self._unwritable(f"{folder} is not a folder")
        if not os.access(folder, os.W_OK | os.X_OK):
            raise self._unwritable(f"{folder} is not writable by this user")

    def made_shards(self, config: Config) -> Path:
        """The folder with the shards that :func:`.names.made_at_start` means, which are written unless they exist.

        The loader's workers read them before the models are loaded, so before the start is accepted.

        Raises:
            ConfigError: there is no such task, or it has no English train split.
            DataError: its rows cannot be read, or those that are there were written for another `data.shards` or task.
            LaunchError: they cannot be written.
        """
        shards = self.path / "shards"
        if (shards / INDEX_NAME).is_file():
            refuse_other_rows(shards, config)
        else:
            try:
                self._make_folder()
                if not shards.exists():
                    self._made.append(real(shards))
                rows, source = rows_at_start(config)
                manifest = {"bridge_ds": __version__, "task": definition(config)} if source else None
                pack_rows(rows, shards, language="en" if source else "", source=source, manifest=manifest)
            except OSError as error:
                raise self._unwritable(error.strerror or str(error)) from None
        return shards

    def accept(self, config: Config) -> str:
        """Write config.yaml, and wait until an earlier process of this run that is still alive has ended.

        Returns:
            the identifier of this start, see :func:`bridge_ds.engine.heartbeat.claim`.

        Raises:
            LaunchError: it cannot be written; nothing has changed.
        """
        record = self.path / "config.yaml"
        try:
            self._make_folder()
            with atomic_write(record) as file:
                file.write(config_text(config))
                file.flush()  # a full disk is noticed before the earlier start is ended
                os.fsync(file.fileno())
                mark = claim(self.path / "heartbeat")
                await_leaving(self.path / "heartbeat", living(self.path / "heartbeat"))
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from None
        self._accepted = True
        return mark

    def undo(self) -> None:
        """Remove files that this start has written, unless it was accepted."""
        if self._accepted:
            return
        for path in reversed(self._made):
            with contextlib.suppress(OSError):  # another start may have begun to use the folder
                remove(path) if path.name == "shards" else path.rmdir()
        self._made = []
        if self._found:
            folder, before = self._found
            with contextlib.suppress(OSError):
                os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _make_folder(self) -> None:
        folder = real(self.path)
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        if self._found is None:
            self._found = folder, folder.stat()
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            self._made.append(path)

    def _unwritable(self, why: str) -> LaunchError:
        return LaunchError(
            f"run.output {self._output} cannot be written ({why}); expected a folder that you may write; "
            "choose another with --set run.output=PATH."
        )


def versions() -> dict[str, str]:
    """Of this package, Python and what a run depends on, for a checkpoint's manifest."""
    from importlib.metadata import version

    names = ("torch", "transformers", "deepspeed", "safetensors", "webdataset")
    return {"bridge_ds": __version__, "python": sys.version.split()[0]} | {name: version(name) for name in names}
