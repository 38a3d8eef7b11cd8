"""Predictions on disk, one line per sample: written by scoring, read by reports.

    RUN/evaluation/SYSTEM/index.json              what was scored: `Scored` as JSON; SYSTEM is `bridge` or `llm`
    RUN/evaluation/SYSTEM/TASK/LANGUAGE.jsonl     one `Prediction` per line, in the task's order

A sample has the same key in every system and run, so that systems are compared sample by sample.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le, MaxLen

from bridge_ds.errors import DataError
from bridge_ds.metrics import metric_name
from bridge_ds.reading import decoded, json_value
from bridge_ds.typed import CLOSED, Count, FileName, Share, typed, typed_object

__all__ = ["FORMAT", "Prediction", "Scored", "ScoredTask", "read_index", "read_predictions"]

FORMAT = 2
"""Version of both files. Version 1, which is still read, has `exact` in place of `exact_match`."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """One system's answer to one sample."""

    key: str
    """Id of the sample, the same in every language where the benchmark is parallel."""
    source: str
    """The prompt."""
    label: Annotated[int, Ge(-1), Le(2**31)] = -1
    """Index of the right choice; -1 where a number is asked for."""
    answer: str = ""
    """The right text: the right choice, or the number."""
    choices: tuple[str, ...] = ()
    """The sample's own choices; empty where the task's labels are the choices."""
    scores: tuple[float, ...] = ()
    """Log-probability (nats) of each choice with its end token."""
    tokens: tuple[Count, ...] = ()
    """LLM tokens of each choice, the end token included."""
    null: tuple[float, ...] = ()
    """The scores after the empty prompt; empty where that was not asked for."""
    exact_match: bool = False
    """Whether greedy decoding writes exactly the right text (for a number: whether the number is right)."""
    text: str = ""
    """The generated text; empty where nothing was generated."""
    source_tokens: Count = 0
    """Encoder tokens of the source, special tokens included."""
    unknown: Count = 0
    """Number of unknown tokens among them."""

    def chosen(self, metric: str = "acc") -> int:
        """Index of the choice that a metric (one of CHOICE_METRICS) picks; -1 without choices or if a score is NaN."""
        values = list(self.scores)
        if metric == "acc_norm_tokens":
            values = [score / count for score, count in zip(self.scores, self.tokens, strict=True)]
        elif metric == "acc_mutual_info":
            values = [score - null for score, null in zip(self.scores, self.null, strict=True)]
        if not values or any(math.isnan(value) for value in values):
            return -1
        return values.index(max(values))

    def correct(self, metric: str = "acc") -> bool:
        """Whether the sample counts as right by a metric (a key of METRICS)."""
        if self.label < 0 or metric == "exact_match":
            return self.exact_match
        return self.chosen(metric) == self.label

    def line(self) -> str:
        """As one line of JSON; empty fields are left out, scores keep six decimals."""
        values = {name: value for name, value in asdict(self).items() if value not in ((), "")}
        for name in ("scores", "null"):
            if name in values:
                values[name] = [round(value, 6) for value in values[name]]
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def parse(cls, line: str) -> Prediction:
        """From one line; keys of a later version are left out. Raises ValueError."""
        prediction = typed(line, cls)
        if '"exact":' not in line:
            return prediction
        values = {metric_name(name): value for name, value in json_value(line).items()}  # of version 1
        return typed(json.dumps(values), cls)


@dataclass(frozen=True)
class ScoredTask:
    """One task of a system."""

    __pydantic_config__ = CLOSED
    kind: Literal["labels", "choices", "number"]
    """`labels`, `choices` or `number`, as of `bridge_ds.tasks.base.Task`."""
    labels: tuple[str, ...]
    """The task's labels; empty unless they are every sample's choices."""
    chance: Share
    """Accuracy of guessing, 0 to 1."""
    samples: dict[FileName, Count]
    """Language -> samples scored."""
    layer_weights: dict[str, list[float]] = field(default_factory=dict)
    """Language -> mean weight of each encoder layer over the sources' tokens [L]; empty for the LLM alone."""
    identities: dict[str, str] = field(default_factory=dict)
    """Language -> hash of the models and settings that the answers depend on."""


@dataclass(frozen=True)
class Scored:
    """A system and what it was scored on."""

    __pydantic_config__ = CLOSED
    system: Literal["bridge", "llm", "finetuned"]
    """`bridge`, `llm` for the LLM alone, or `finetuned` for the LLM that a run without a bridge has trained."""
    name: Annotated[str, MaxLen(200)]
    """For reports: the fusion's name, or `LLM alone`."""
    seed: Count
    """run.seed."""
    checkpoint: str
    """Name of the checkpoint's folder, such as step-00000750; empty for the LLM alone."""
    tasks: dict[FileName, ScoredTask] = field(default_factory=dict)
    """By name."""
    format: int = FORMAT
    """Version of the files."""


@dataclass(frozen=True)
class _Version:
    format: int


def read_index(folder: Path) -> Scored:
    """`index.json` of a system's folder, as one of today's format.

    Raises:
        DataError: there is none, or it is of a format that this version does not know.
    """
    path = folder / "index.json"
    try:
        version = typed_object(path, _Version)["format"]
        if version not in (1, FORMAT):
            raise DataError(f"{path} has format {version}; expected 1 or {FORMAT}; score the run again.")
        found = typed(decoded(path.read_bytes()), Scored)
        if found.system != folder.name:
            raise ValueError(f"is of the system {found.system!r}; expected {folder.name!r}")
        return replace(found, format=FORMAT)
    except OSError as error:
        why = f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        why = str(error)
    raise DataError(
        f"{path} {why}; expected the index of a scored system; score the run with bridge-ds evaluate --run RUN."
    )


def read_predictions(folder: Path, task: str, language: str) -> Iterator[Prediction]:
    """The predictions of one task and language of a system's folder, in their order.

    Raises:
        DataError: the file is missing or a line is not a prediction.
    """
    path = folder / task / f"{language}.jsonl"
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield Prediction.parse(decoded(line))
                except ValueError as error:
                    raise DataError(
                        f"{path} line {number} is no prediction: it {error}; expected one JSON object per line; score "
                        "the run again."
                    ) from None
    except OSError as error:
        raise DataError(
            f"{path} cannot be read ({error.strerror}); expected predictions; score the run again."
        ) from None
