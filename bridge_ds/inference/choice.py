"""RUN/choice.json: in which languages the LLM alone answers better than the bridge, and what that was measured with.

Written by an evaluation (:mod:`bridge_ds.report.choose`), followed by `generate` and `serve` with `--choose`. It is
valid for the weights, base models and prompt settings that were scored, and for no others.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le, MinLen

from bridge_ds.config.schema import DataConfig
from bridge_ds.data.text.convention import READ
from bridge_ds.data.text.truncate import side_of
from bridge_ds.disk import file_sha256, write_text
from bridge_ds.errors import CheckpointError, ConfigError, DataError
from bridge_ds.reading import decoded
from bridge_ds.tasks.flores import find_variety
from bridge_ds.typed import CLOSED, Count, FileName, Share, typed

__all__ = [
    "BRIDGE", "CHOICE", "LLM", "ChoiceTable", "Comparison", "Measured", "expected", "read_choice", "refuse_stale",
    "write_choice",
]  # fmt: skip

CHOICE = "choice.json"
"""In a run folder or an exported folder."""
BRIDGE, LLM = "bridge", "llm"
"""Who answers: the bridge, or the LLM alone, which reads the text itself."""
_Difference = Annotated[float, Ge(-1), Le(1)]


@dataclass(frozen=True)
class Comparison:
    """The bridge and the LLM alone on the same samples of one language."""

    __pydantic_config__ = CLOSED
    verdict: Literal["bridge", "llm", "undecided"]
    """Which is significantly better."""
    bridge: Share
    """Accuracy."""
    llm: Share
    """Accuracy of the LLM alone."""
    difference: _Difference
    """Accuracy of the bridge minus that of the LLM alone."""
    low: _Difference
    """Of the 95 % interval of the difference."""
    high: _Difference
    samples: Annotated[Count, Ge(1)]
    bridge_only: Annotated[float, Ge(0)]
    """Samples that only the bridge has right; of several seeds the mean."""
    llm_only: Annotated[float, Ge(0)]
    """Samples that only the LLM alone has right."""
    p: Share
    """Of the test."""
    holm: Share
    """The same, corrected over the languages."""


@dataclass(frozen=True)
class Measured:
    """What a table is valid for."""

    __pydantic_config__ = CLOSED
    checkpoint: FileName
    """Name of the checkpoint's folder."""
    weights: dict[FileName, str]
    """File of what was trained -> its sha256."""
    base: Annotated[dict[str, str], MinLen(1)]
    """Hashes of the base models and their tokenizers, as in the checkpoint's manifest."""
    settings: dict[str, bool | int | str]
    """Settings of `data` that decide what the models read and write."""

    @classmethod
    def of(cls, checkpoint: str, files: Sequence[Path], base: Mapping[str, str], data: DataConfig) -> Measured:
        """Hashes the files of what was trained."""
        settings = {key: getattr(data, key) for key in READ} | {"truncation_side": side_of(data)}
        return cls(checkpoint, {path.name: file_sha256(path) for path in files}, dict(base), settings)


@dataclass(frozen=True)
class ChoiceTable:
    """choice.json."""

    __pydantic_config__ = CLOSED
    measured: Measured
    metric: str
    """By which a sample counts as right, see :data:`bridge_ds.metrics.METRICS`."""
    languages: dict[FileName, Comparison]
    """By language, the samples of all its tasks together."""
    tasks: dict[FileName, dict[FileName, Comparison]]
    """By task and language, with the task's own codes."""
    format: Literal[1] = 1

    def way(self, language: str) -> str:
        """BRIDGE or LLM: who answers a text in a language, which may be given by any of its codes.

        The LLM where it was significantly better; the bridge where that is undecided or the table lacks the language.
        """
        name = find_variety(language, self.languages) if language else None
        return LLM if name is not None and self.languages[name].verdict == LLM else BRIDGE

    @property
    def of_chats(self) -> bool:
        """Whether it was measured with the LLM's chat template."""
        return bool(self.measured.settings.get("chat_template"))

    def sentence(self, language: str) -> str:
        """Who answers a text in a language, and why."""
        name = find_variety(language, self.languages) if language else None
        if name is None:
            return f"the bridge answers: {CHOICE} " + (f"has no {language!r}." if language else "needs a --language.")
        tasks = [task for task, codes in self.tasks.items() if find_variety(name, codes)]
        found, who = self.languages[name], {BRIDGE: "the bridge", LLM: "the LLM alone"}[self.way(language)]
        return (
            f"{who} answers in {language!r}: {100 * found.bridge:.1f} % by the bridge, {100 * found.llm:.1f} % by the "
            f"LLM alone on {found.samples} samples of {', '.join(tasks)} ({CHOICE}; p {found.holm:.2g})."
        )

    def moved(self, files: Sequence[Path], base: Mapping[str, str]) -> ChoiceTable:
        """The same table for an exported copy of the same bridge, whose files have other hashes."""
        weights = {path.name: file_sha256(path) for path in files}
        return dataclasses.replace(self, measured=dataclasses.replace(self.measured, weights=weights, base=dict(base)))


def write_choice(folder: Path, table: ChoiceTable) -> None:
    """Write choice.json by temp + rename. Raises OSError."""
    write_text(folder / CHOICE, json.dumps(dataclasses.asdict(table), indent=1, ensure_ascii=False) + "\n")


def read_choice(path: Path) -> ChoiceTable:
    """A table from its file.

    Raises:
        DataError: it cannot be read, or is no such table.
    """
    try:
        return typed(decoded(path.read_bytes()), ChoiceTable)
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        why = str(error)
    raise DataError(
        f"{path} {why}; expected the table of an evaluation; write it again with bridge-ds evaluate --choose."
    )


def expected(table: ChoiceTable | None, run: object) -> ChoiceTable:
    """The table that is to be followed. Raises ConfigError if there is none."""
    if table is None:
        raise ConfigError(
            f"--choose follows {CHOICE}, and {run} has none; expected that of an evaluation; write it with bridge-ds "
            f"evaluate --run {run} --choose, or leave --choose out."
        )
    return table


def refuse_stale(path: Path, measured: Measured, loaded: Measured) -> None:
    """Refuse a table that was measured with something else than what is loaded.

    Args:
        path: of the table, for the message.
        measured: what the table says.
        loaded: what is loaded; its `base` may lack hashes that were not computed.

    Raises:
        CheckpointError: weights, base models or prompt settings are others.
    """
    other = ""
    if measured.weights != loaded.weights:
        here = "other weights of that step" if measured.checkpoint == loaded.checkpoint else loaded.checkpoint
        other = f"was measured with {measured.checkpoint}, and {here or 'other weights'} is what was loaded"
    elif wrong := [key for key, value in loaded.base.items() if measured.base.get(key, value) != value]:
        other = f"was measured with another {wrong[0]} than what was loaded"
    elif wrong := [key for key, value in loaded.settings.items() if measured.settings.get(key) != value]:
        old, new = _shown(measured.settings.get(wrong[0])), _shown(loaded.settings[wrong[0]])
        other = f"was measured with data.{wrong[0]} {old}, and the bridge is used with {new}"
    if other:
        raise CheckpointError(
            f"{path} {other}; expected the same; write it with bridge-ds evaluate --choose, or leave --choose out."
        )


def _shown(value: Any) -> str:
    return repr(value)[:60]
