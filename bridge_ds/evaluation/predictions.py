"""What a system answered, a line a sample: the files that scoring writes and reports read.

    RUN/evaluation/SYSTEM/index.json              what was scored: `Scored` as JSON; SYSTEM is `bridge` or `llm`
    RUN/evaluation/SYSTEM/TASK/LANGUAGE.jsonl     one `Prediction` a line, in the task's own order

A sample bears the same key in every system and run, so that systems are compared sample by sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from bridge_ds.errors import DataError

__all__ = ["FORMAT", "KINDS", "NORMALIZATIONS", "Prediction", "Scored", "ScoredTask", "read_index", "read_predictions"]

FORMAT = 1
"""Of both files."""
KINDS = ("labels", "choices", "number")
"""Of tasks: the same labels for every sample, choices of each sample's own, a number to be written."""
NORMALIZATIONS = ("sum", "mean", "calibrated")
"""How a choice's log-probability counts: as it is, by token, or less that after a null source."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One system's answer to one sample."""

    key: str
    """Name of the sample, the same in every language where the benchmark is parallel."""
    source: str
    """The prompt."""
    label: int = -1
    """Place of the right choice; -1 where a number is asked for."""
    answer: str = ""
    """The right text: the right choice, or the number."""
    choices: tuple[str, ...] = ()
    """The sample's own choices; empty where the task's labels are the choices."""
    scores: tuple[float, ...] = ()
    """Log-probability (nats) of each choice with its end token."""
    tokens: tuple[int, ...] = ()
    """LLM tokens of each choice, the end token included."""
    null: tuple[float, ...] = ()
    """The scores after a null source; empty where that was not asked for."""
    exact: bool = False
    """Whether greedy decoding writes exactly the right text (for a number: whether the number is right)."""
    text: str = ""
    """What greedy decoding wrote; empty where nothing was generated."""
    source_tokens: int = 0
    """Encoder tokens of the source, special ones included."""
    unknown: int = 0
    """Those among them that are the unknown token."""

    def chosen(self, normalization: str = "sum") -> int:
        """Place of the likeliest choice; -1 if there is none or a score is no number."""
        values = list(self.scores)
        if normalization == "mean":
            values = [score / count for score, count in zip(self.scores, self.tokens, strict=True)]
        elif normalization == "calibrated":
            values = [score - null for score, null in zip(self.scores, self.null, strict=True)]
        if not values or any(math.isnan(value) for value in values):
            return -1
        return values.index(max(values))

    def correct(self, normalization: str = "sum") -> bool:
        """Whether the likeliest choice is right; for a number, whether it is."""
        return self.chosen(normalization) == self.label if self.label >= 0 else self.exact

    def line(self) -> str:
        """As one line of JSON; empty fields are left out, scores keep six decimals."""
        values = {name: value for name, value in asdict(self).items() if value not in ((), "")}
        for name in ("scores", "null"):
            if name in values:
                values[name] = [round(value, 6) for value in values[name]]
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def parse(cls, line: str) -> Prediction:
        """From one line. Raises ValueError, TypeError, KeyError."""
        values = json.loads(line)
        names = {field.name for field in fields(cls)}
        known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items() if k in names}
        return cls(**known)


@dataclass(frozen=True)
class ScoredTask:
    """One task of a system."""

    kind: str
    """One of KINDS."""
    labels: tuple[str, ...]
    """The task's labels; empty unless they are every sample's choices."""
    chance: float
    """Accuracy of guessing, 0 to 1."""
    samples: dict[str, int]
    """Language -> samples scored."""
    layer_weights: dict[str, list[float]] = field(default_factory=dict)
    """Language -> mean weight of each encoder layer over the sources' tokens [L]; empty where there is no bridge."""
    identities: dict[str, str] = field(default_factory=dict)
    """Language -> hash of the models and settings that these answers depend on."""


@dataclass(frozen=True)
class Scored:
    """What was scored of a system, and which system it is."""

    system: str
    """`bridge`, or `llm` for the LLM alone."""
    name: str
    """For reports: the fusion's name, or `LLM alone`."""
    seed: int
    """run.seed."""
    checkpoint: str
    """Name of the checkpoint's folder, such as step-00000750; empty for the LLM alone."""
    tasks: dict[str, ScoredTask] = field(default_factory=dict)
    """By name."""
    format: int = FORMAT
    """Of the files."""

    def as_json(self) -> dict[str, Any]:
        """For index.json."""
        return asdict(self)


def read_index(folder: Path) -> Scored:
    """`index.json` of a system's folder.

    Raises:
        DataError: there is none, or it is of another format.
    """
    path = folder / "index.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise DataError(f"{path} has format {values['format']}; expected {FORMAT}; score the run again.")
        tasks = {name: ScoredTask(**task | {"labels": tuple(task["labels"])}) for name, task in values["tasks"].items()}
        return Scored(**values | {"tasks": tasks})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} cannot be read ({type(error).__name__}: {error}); expected the record of a scored system; "
            "score the run with python -m bridge_ds.evaluation --run RUN."
        ) from None


def read_predictions(folder: Path, task: str, language: str) -> Iterator[Prediction]:
    """The lines of one task and language of a system's folder, in their order.

    Raises:
        DataError: the file is missing or a line is not a prediction.
    """
    path = folder / task / f"{language}.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Prediction.parse(line)
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    raise DataError(
                        f"{path} line {number} is no prediction ({error}); expected one JSON object a line; score the "
                        "run again."
                    ) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); expected predictions; score the run again."
        ) from None
