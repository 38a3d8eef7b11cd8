"""What the command lines share: options and argument types. Imports no torch."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TextIO

from bridge_ds.config.text import Unusable, printable, short, shown

__all__ = [
    "Parser",
    "add_config_options",
    "add_placing",
    "positive",
    "say",
    "say_repeated",
]

_MESSAGE = 500
"""Most characters of a message about an option."""


class _NotedStore(argparse._StoreAction):
    """An option whose last value counts; a note is printed where an earlier one was different."""

    _before: argparse.Namespace | None = None

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option: str | None = None) -> None:
        if option and self._before is namespace and getattr(namespace, self.dest) != values:
            say(f"{option} is given more than once; the last one holds: {short(str(values))}")
        self._before = namespace
        super().__call__(parser, namespace, values, option)


class Parser(argparse.ArgumentParser):
    """argparse's parser, with a note where an option is given more than once; it names a mistyped option first.

    It refuses what neither a file nor a request can hold (NUL; bytes that are not UTF-8, which Python keeps as halves
    of surrogate pairs), and cuts long values in its messages.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in (None, "store"):
            self.register("action", name, _NotedStore)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's."""
        self._words = list(sys.argv[1:] if args is None else args)
        for text in self._words:
            try:
                printable(text)
            except Unusable as error:
                self.error(f"an argument is {shown(text)}{error}")
        return super().parse_known_args(self._words, namespace)

    def error(self, message: str) -> NoReturn:
        """As argparse's. It would ask for a required option, and not tell of the mistyped one."""
        if message.startswith(("the following arguments are required", "unrecognized arguments")):
            words = self._words[: self._words.index("--")] if "--" in self._words else self._words
            names = [word.partition("=")[0] for word in words if word.startswith("--") and " " not in word]
            known = self._option_string_actions
            unknown = [name for name in names if not any(option.startswith(name) for option in known)]
            if unknown:
                near = difflib.get_close_matches(unknown[0], known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                message = f"unrecognized arguments: {' '.join(unknown)}{hint}"
            elif message.startswith("unrecognized") and "--set" in known:
                message += "; a setting is written as --set KEY=VALUE"
        super().error(short(" ".join(message.split()), _MESSAGE))


def add_config_options(parser: argparse.ArgumentParser, recipe: str = "testbed", engine: bool = True) -> None:
    """Options that name a run: `--recipe` (default: `recipe`), `--set`, and with DeepSpeed's `engine` `--ds_config`."""
    parser.add_argument(
        "--recipe", default=recipe, help=f"name in bridge_ds/config/recipes/, or a YAML file (default: {recipe})"
    )
    if engine:
        parser.add_argument(
            "--ds_config", default="", help="DeepSpeed JSON: a path, or a name in ds_configs/ (sets run.ds_config)"
        )
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE", help="override one key; repeatable"
    )


def say_repeated(overrides: Sequence[str], stream: TextIO | None = None) -> None:
    """On the first rank, print which keys --set gives more than once with different values; the last value counts.

    Args:
        overrides: the `key=value` texts of --set.
        stream: where to print; default: stderr.
    """
    values: dict[str, str] = {}
    repeated: dict[str, str] = {}
    for text in overrides:
        key, _, value = text.partition("=")
        if values.setdefault(key.strip(), value) != value:
            repeated[key.strip()] = value
        values[key.strip()] = value
    for key, value in repeated.items():
        say(f"{short(key)} is given more than once; the last one holds: {short(value)}", stream)


def say(note: str, stream: TextIO | None = None) -> None:
    """Print a note on the first rank; default stream: stderr. Called before World.detect, which may raise."""
    if (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0":
        print(f"note: {note}", file=stream or sys.stderr)


def add_placing(parser: argparse._ActionsContainer, default: str) -> None:
    """Add `--device-map` and `--max-memory`, which :mod:`bridge_ds.frozen.device_map` reads.

    Args:
        parser: takes the options.
        default: device named in the help where --device-map is not given.
    """
    parser.add_argument(
        "--device-map", metavar="MAP",
        help="split models that are too large for one device: auto, balanced, balanced_low_0, sequential; or a device "
        "(cpu, cuda:1); or a JSON object (or a file of one) of the LLM's module names and devices, 'encoder' being the "
        f"encoder (default: {default})",
    )  # fmt: skip
    sizes = "memory limit of each GPU and of the CPU, for auto and the like: 0=20GiB,cpu=60GiB"
    parser.add_argument("--max-memory", metavar="SIZES", help=sizes)


def positive(
    kind: type[int] | type[float], *, zero: bool = False, least: float = 0, most: float | None = None
) -> Callable[[str], Any]:
    """A `type` for argparse: a finite number above 0, of at most a thousand million unless said otherwise.

    Args:
        kind: int or float.
        zero: accept 0 too.
        least: smallest accepted value above 0.
        most: largest accepted value; default: 1e9.
    """
    most = 10**9 if most is None else most

    def convert(text: str) -> int | float:
        value = kind(text)
        if not (value > 0 or (zero and value == 0)):
            raise argparse.ArgumentTypeError(f"{short(text)} is not {'0 or more' if zero else 'above 0'}")
        if value < least and value:
            raise argparse.ArgumentTypeError(f"{short(text)} is not {least:g} or more")
        if value > most:
            what = "not finite" if value == float("inf") else f"more than {most:,}"
            raise argparse.ArgumentTypeError(f"{short(text)} is {what}")
        return value

    convert.__name__ = kind.__name__
    return convert
