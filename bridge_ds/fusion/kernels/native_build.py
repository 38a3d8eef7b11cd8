"""Builds `native_rows.c` with the machine's own C compiler, once for each machine, and loads it.

The library is kept in a folder of the user's (`$XDG_CACHE_HOME/bridge_ds`, by default `~/.cache/bridge_ds`) under a
name that holds the hash of the source, the flags, the compiler and the kind of CPU, so that a home shared by unlike
nodes serves each its own. Nothing is taken from a folder that others may write to.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

__all__ = ["library", "why_not"]

SOURCE = Path(__file__).with_name("native_rows.c")
# Sums in vector lanes are written out in the source, so no flag that would change what NaN and infinity do is needed.
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
_SECONDS = 120


def why_not() -> str:
    """Why there is no native path here; empty if there is one."""
    found = _load()
    return found if isinstance(found, str) else ""


def library() -> ctypes.CDLL:
    """The loaded library.

    Raises:
        ValueError: it cannot be built here.
    """
    found = _load()
    if isinstance(found, str):
        raise ValueError(f"fusion.path is native, which cannot be built here: {found}; use torch or auto")
    return found


@functools.cache
def _load() -> ctypes.CDLL | str:
    names = (os.environ.get("CC", ""), "cc", "gcc", "clang")
    compiler = next((found for name in names if name and (found := shutil.which(name))), None)
    if compiler is None:
        return "no C compiler (cc, gcc or clang) is on the PATH"
    try:
        content = SOURCE.read_bytes() + "\0".join((*FLAGS, compiler, _version(compiler), _cpu())).encode()
        name = f"native_rows-{hashlib.sha256(content).hexdigest()[:16]}.so"
        folder = _own_folder()
        if folder is not None:
            path = folder / name
            if not path.is_file():
                _build(compiler, path)
            return ctypes.CDLL(str(path))
        with tempfile.TemporaryDirectory(prefix="bridge_ds-") as made:
            _build(compiler, Path(made) / name)
            return ctypes.CDLL(str(Path(made) / name))
    except subprocess.CalledProcessError as error:
        return f"{compiler} failed: {' '.join(error.stderr.split())[-300:]}"
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{compiler}: {error}"


def _build(compiler: str, path: Path) -> None:
    # Several processes may build at once: each its own file, and the last rename wins with the same content.
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        command = [compiler, *FLAGS, str(SOURCE), "-o", str(temporary), "-lm"]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_SECONDS)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _version(compiler: str) -> str:
    return subprocess.run([compiler, "--version"], capture_output=True, text=True, timeout=_SECONDS).stdout


def _cpu() -> str:
    """What `-march=native` looks at, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _own_folder() -> Path | None:
    """The cache folder, if it can be made and only this user can write to it."""
    home = os.environ.get("XDG_CACHE_HOME", "")
    folder = (Path(home) if home else Path.home() / ".cache") / "bridge_ds"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        found = folder.stat()
    except (OSError, RuntimeError):
        return None
    mine = found.st_uid == os.getuid() and not found.st_mode & 0o022
    return folder if mine and os.access(folder, os.W_OK) else None
