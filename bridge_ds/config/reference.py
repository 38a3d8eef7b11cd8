"""The page of all settings, docs/configuration.md, made from the schema.

python -m bridge_ds.config.reference > docs/configuration.md
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing

from bridge_ds.config.build import adapter, bounds, to_dict
from bridge_ds.config.schema import SECTIONS, TaskConfig, TaskDataConfig, metadata
from bridge_ds.config.schema.fields import Kind, OrNone, read_path
from bridge_ds.entry import run_command

__all__ = ["main", "page"]

_INTRO = """\
# Configuration

<!-- Made by `python -m bridge_ds.config.reference`; edit the docstrings in bridge_ds/config/schema/ instead. -->

A recipe is a YAML file of these keys, by section. `--recipe` takes the name of a shipped recipe or the path of a file.
Without it the recipe `testbed` is used, whose settings are for small models. Keys that a recipe leaves out have their
default. `base: NAME_OR_PATH` at the top of a recipe inherits from another one (a path relative to the file, or the name
of a shipped recipe). `--set section.key=value` overrides one key; text is taken literally. The resolved config of a run
is in its `config.yaml`.

In paths, `~` and `$NAME` are expanded, in recipes and after `--set`.

*On resume* says what happens if a run resumes from a checkpoint with another value of the key: `refused` (the same
weights would compute something else; `run.allow_changes` allows it), `fixed` (other samples would follow: always
refused), `reported` (in the log and in the next manifest), or `free` (nothing). Of models, data sets and dictionaries
the content is compared, not the name: other content is refused.
"""
_ON_RESUME = {Kind.FUNCTION: "refused", Kind.ORDER: "fixed", Kind.TRAINING: "reported", Kind.NEITHER: "free"}


def page() -> str:
    """The whole page."""
    parts = [_INTRO]
    for name, section in SECTIONS.items():
        parts.append(_table(name, section, (name,)))
        if name == "evaluation":
            parts.append(_table("evaluation.data.TASK", TaskDataConfig, (name, "data", "TASK")))
    parts.append(_table("tasks.TASK", TaskConfig, ("tasks", "TASK")))
    return "\n".join(parts)


def main() -> None:
    """Print the page."""
    print(page(), end="")


def _table(title: str, section: type, loc: tuple[str, ...]) -> str:
    sentences = adapter().json_schema()["$defs"][section.__name__]["properties"]
    defaults = to_dict(section())
    lines = [f"## {title}", "", " ".join(inspect.cleandoc(section.__doc__ or "").split()), ""]
    lines += ["| Key | Type | Default | On resume | Meaning |", "| --- | --- | --- | --- | --- |"]
    for field in dataclasses.fields(section):
        of = metadata((*loc, field.name))
        default = json.dumps(defaults[field.name], ensure_ascii=False)
        resume = next((_ON_RESUME[note] for note in of if isinstance(note, Kind)), "free")
        meaning = " ".join(sentences[field.name]["description"].split())
        cells = [f"`{title}.{field.name}`", _type((*loc, field.name)), f"`{default}`", resume, meaning]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def _type(loc: tuple[int | str, ...]) -> str:
    """Type and bounds in words."""
    of = metadata(loc)
    origin, inner = typing.get_origin(of[0]), typing.get_args(of[0])
    if origin is typing.Literal:
        return " or ".join(f"`{choice}`" for choice in inner)
    if origin is tuple:
        many = "list of" if inner[-1] is ... else f"{len(inner)} of"
        return f"{many} {_type((*loc, 0))}"
    if origin is dict:
        return "mapping"
    words = "path" if any(getattr(note, "func", None) is read_path for note in of) else of[0].__name__
    words += " or null" if OrNone in of else ""
    return f"{words}, {limits}" if words not in ("path", "str") and (limits := bounds(of)) else words


if __name__ == "__main__":
    run_command(main)
