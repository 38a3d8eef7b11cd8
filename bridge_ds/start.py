"""What a start does to its run folder: nothing until all is known to be accepted, and then all at once."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from bridge_ds.config.load import config_text
from bridge_ds.config.schema import Config
from bridge_ds.data.loading.embedded import write_embedded
from bridge_ds.disk import atomic_write, real, remove
from bridge_ds.engine.heartbeat import await_leaving, claim, living
from bridge_ds.errors import LaunchError

__all__ = ["RunFolder"]


class RunFolder:
    """The folder of one start, on rank 0.

    Between :meth:`check` and :meth:`accept` the start may be refused (that models do not fit the checkpoint is known
    when they are loaded); :meth:`undo` then leaves the folder as it was found.
    """

    def __init__(self, output: str) -> None:
        self.path = Path(output).absolute()
        self._output = output
        self._accepted = False
        self._made: list[Path] = []
        self._found: tuple[Path, os.stat_result] | None = None

    def check(self) -> None:
        """Look whether the folder can be made and written, and write nothing.

        Raises:
            LaunchError: it cannot.
        """
        place = real(self.path)
        while not os.path.lexists(place):
            place = place.parent
        if not place.is_dir():
            raise self._unwritable(f"{place} is no folder")
        if not os.access(place, os.W_OK | os.X_OK):
            raise self._unwritable(f"{place} may not be changed by this user")

    def embedded_shards(self) -> Path:
        """The folder with the testbed's shards, written there unless they are there already.

        The loader's workers read them before the models are loaded, so before the start is accepted.

        Raises:
            LaunchError: they cannot be written.
        """
        shards = self.path / "shards"
        if not (shards / "index.json").is_file():
            try:
                self._make_folder()
                if not shards.exists():
                    self._made.append(real(shards))
                write_embedded(shards)
            except OSError as error:
                raise self._unwritable(error.strerror or str(error)) from None
        return shards

    def accept(self, config: Config) -> str:
        """The start goes on: config.yaml is its own, and an earlier start that still lives leaves.

        Returns:
            the mark of this start, see :func:`bridge_ds.engine.heartbeat.claim`.

        Raises:
            LaunchError: it cannot be written; all is as it was.
        """
        record = self.path / "config.yaml"
        try:
            self._make_folder()
            with atomic_write(record) as file:
                file.write(config_text(config))
                file.flush()  # a full disk is known before the earlier start is made to leave
                os.fsync(file.fileno())
                mark = claim(self.path / "heartbeat")
                await_leaving(self.path / "heartbeat", living(self.path / "heartbeat"))
        except OSError as error:
            raise self._unwritable(error.strerror or str(error)) from None
        self._accepted = True
        return mark

    def undo(self) -> None:
        """Take away what this start has made, if it was not accepted."""
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
        place = real(self.path)
        missing = []
        while not place.exists():
            missing.append(place)
            place = place.parent
        if self._found is None:
            self._found = place, place.stat()
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            self._made.append(folder)

    def _unwritable(self, why: str) -> LaunchError:
        return LaunchError(
            f"run.output {self._output} cannot be written ({why}); expected a folder that you may write; "
            "choose another with --set run.output=PATH."
        )
