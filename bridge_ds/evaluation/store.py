"""Predictions while they are computed: on disk block by block, so that a killed evaluation resumes where it was.

A language that is being scored has `TASK/.LANGUAGE.part` in the system's folder: a line with the hash of model and
settings, then one line per block. Complete, it becomes `TASK/LANGUAGE.jsonl`; the part file is removed when the whole
evaluation has ended, so that the next one scores from the start. Everything here happens on the main rank.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from bridge_ds.config.schema import Config
from bridge_ds.disk import locked, real, write_text
from bridge_ds.errors import DataError
from bridge_ds.evaluation.jobs import ScoringJob, wanted
from bridge_ds.evaluation.predictions import Prediction, Scored, ScoredTask, read_index, read_predictions
from bridge_ds.partial import PartFile, writing
from bridge_ds.tasks import tasks_of
from bridge_ds.tasks.base import Example, Task
from bridge_ds.typed import Count, typed

__all__ = ["Answers", "PredictionStore", "check_evaluation", "llm_of"]

_Value = TypeVar("_Value")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """A system's answers to one block."""

    predictions: list[Prediction]
    """In the order of the samples."""
    weights: list[float] = field(default_factory=list)
    """Weight of each encoder layer, summed over the sources' tokens [L]; empty for the LLM alone."""
    tokens: int = 0
    """Number of these tokens."""
    cut: dict[str, int] = field(default_factory=dict)
    """Number of texts (`texts`), and how many of them were truncated: for the encoder (`source`), for the LLM
    (`prompt`). Not stored."""

    def line(self) -> str:
        """As one line of JSON."""
        values = {"predictions": [p.line() for p in self.predictions], "weights": self.weights, "tokens": self.tokens}
        return json.dumps(values, ensure_ascii=False)

    @classmethod
    def parse(cls, line: str) -> Answers:
        """From one line. Raises ValueError."""
        block = typed(line, _Block)
        return cls([Prediction.parse(text) for text in block.predictions], block.weights, block.tokens)


@dataclass(frozen=True)
class _Block:
    """A line of a part file."""

    predictions: list[str]
    weights: list[float]
    tokens: Count


class PredictionStore:
    """All predictions of one system."""

    def __init__(
        self,
        scored: Scored,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        reuse: Path | None = None,
    ) -> None:
        """Args:
        scored: the system, without tasks.
        folder: the system's folder; none = nothing is written.
        identity: everything that a score depends on; unfinished work with another identity is discarded.
        reuse: the folder of the same system of another run, whose answers are reused where their identity is equal.
        """
        self.scored, self.folder, self._reuse = scored, folder, reuse
        self._identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.cut: Counter[str] = Counter()
        """Sums of :attr:`Answers.cut` over what was added."""
        self._answers: dict[tuple[str, str], list[Answers]] = {}
        self._parts: dict[tuple[str, str], PartFile] = {}

    def resume(self, job: ScoringJob) -> set[str]:
        """Load what an interrupted evaluation left of a language; the keys of the samples that are done.

        Raises:
            DataError: answers to reuse that cannot be read.
            LaunchError: predictions that cannot be written.
        """
        found = self._answers[job.task.name, job.language] = []
        if self._reuse is not None and (answers := self._from_other_run(self._reuse, job)):
            found.append(answers)
            return {p.key for p in answers.predictions}
        if self.folder is None:
            return set()
        part = self._parts[job.task.name, job.language] = PartFile(
            self.folder / job.task.name / f".{job.language}.part",
            json.dumps({"identity": self._identity, "labels": job.task.labels}),
        )
        expected = {example.key: _asked(example) for example in job.examples}
        done: set[str] = set()

        def parse(line: str) -> Answers:
            answers = Answers.parse(line)
            keys = {p.key for p in answers.predictions}
            if keys & done or any(expected.get(p.key) != _asked(p) for p in answers.predictions):
                raise ValueError("other samples under the same keys: the data has changed")
            done.update(keys)
            return answers

        found += part.resume(parse)
        return done

    def add(self, job: ScoringJob, answers: Answers) -> None:
        """Store a block."""
        self.cut.update(answers.cut)
        line = answers.line()
        # Metrics are computed from what is written, rounded as it is: a rerun gives the same.
        self._answers[job.task.name, job.language].append(Answers.parse(line))
        if self.folder is not None:
            self._parts[job.task.name, job.language].add(line)

    def finish(self, job: ScoringJob) -> dict[str, float]:
        """Write the predictions and the index of a language whose samples are all done; returns its metrics."""
        made = {p.key: p for answers in self._answers[job.task.name, job.language] for p in answers.predictions}
        predictions = [made[example.key] for example in job.examples]
        if self.folder is not None:
            path = self.folder / job.task.name / f"{job.language}.jsonl"
            with writing(path):
                real(path.parent).mkdir(parents=True, exist_ok=True)
                write_text(path, "".join(prediction.line() + "\n" for prediction in predictions))
                self._write_index(self.folder, job)
        return _metrics(predictions)

    def close(self) -> None:
        """Remove the part files, once the whole evaluation has succeeded."""
        for part in self._parts.values():
            part.path.unlink(missing_ok=True)

    def _from_other_run(self, folder: Path, job: ScoringJob) -> Answers | None:
        """The answers to all samples of a job, if they exist with this identity and for these samples."""
        task = read_index(folder).tasks.get(job.task.name)
        if task is None or task.identities.get(job.language) != self._identity or task.labels != job.task.labels:
            return None
        made = {_asked(p): p for p in read_predictions(folder, job.task.name, job.language)}
        asked = [_asked(example) for example in job.examples]  # some of theirs, with evaluation.limit
        return Answers([made[each] for each in asked]) if made.keys() >= set(asked) else None

    def _write_index(self, folder: Path, job: ScoringJob) -> None:
        """Add a language to the index; other languages of the same checkpoint stay."""
        blocks = self._answers[job.task.name, job.language]
        tokens = sum(answers.tokens for answers in blocks)
        layers = len(blocks[0].weights) if blocks else 0
        weights = [sum(answers.weights[layer] for answers in blocks) / max(1, tokens) for layer in range(layers)]
        task = job.task
        # Several jobs may score one run, each another language.
        with locked(folder / ".lock"):
            tasks: dict[str, ScoredTask] = {}
            if (folder / "index.json").exists():
                try:
                    before = read_index(folder)
                    if dataclasses.replace(before, tasks={}) == self.scored:
                        tasks = before.tasks
                except DataError as error:
                    _log.warning(f"{error} It is written anew, with what is scored from here on.")
            old = tasks.get(task.name)
            if old is None or (old.kind, old.labels) != (task.kind, task.labels):
                old = ScoredTask(task.kind, task.labels, task.chance, {})  # type: ignore[arg-type]
            if (lost := old.samples.get(job.language, 0)) > len(job.examples):
                _log.info(
                    f"note: {self.scored.name}, {task.name} in {job.language}: the predictions of {len(job.examples)} "
                    f"samples replace those of {lost} that were there (evaluation.limit)."
                )
            tasks[task.name] = dataclasses.replace(
                old,
                chance=task.chance,
                samples=_in_order(old.samples | {job.language: len(job.examples)}, task),
                layer_weights=_in_order(old.layer_weights | ({job.language: weights} if weights else {}), task),
                identities=_in_order(old.identities | {job.language: self._identity}, task),
            )
            index = dataclasses.replace(self.scored, tasks=tasks)
            text = json.dumps(dataclasses.asdict(index), indent=1, ensure_ascii=False)
            write_text(folder / "index.json", text + "\n")


def _asked(sample: Example | Prediction) -> tuple[str, str, str, tuple[str, ...]]:
    """What a score depends on besides model and settings: a task of the user's own may have been written anew."""
    right = sample.target if isinstance(sample, Example) else sample.answer
    return sample.key, sample.source, right, sample.choices


def _in_order(by_language: dict[str, _Value], task: Task) -> dict[str, _Value]:
    """In the task's order of languages, whichever was scored first."""
    known = {code: place for place, code in enumerate(task.languages)}
    return dict(sorted(by_language.items(), key=lambda item: known.get(item[0], len(known))))


def llm_of(run: str) -> Path | None:
    """The folder with the answers of the LLM alone in another run, or none where `run` is empty.

    Raises:
        DataError: the run was not scored.
    """
    if not run:
        return None
    folder = Path(run) / "evaluation" / "llm"
    read_index(folder)
    return folder


def check_evaluation(config: Config) -> None:
    """Refuse before training what would be refused when its end is scored: an unknown task or language, or
    `evaluation.llm_from` without answers. Raises BridgeError."""
    if config.evaluation.tasks:
        wanted(tasks_of(config), config.evaluation.languages)
        llm_of(config.evaluation.llm_from)


def _metrics(predictions: list[Prediction]) -> dict[str, float]:
    """Shares of right answers, by the metrics that the predictions hold the values for, and `n`."""
    names = ["acc", "exact_match"]
    names += ["acc_norm_tokens"] if all(p.scores for p in predictions) else []
    names += ["acc_mutual_info"] if all(p.null for p in predictions) else []
    count = len(predictions)
    return {name: sum(p.correct(name) for p in predictions) / count for name in names} | {"n": count}
