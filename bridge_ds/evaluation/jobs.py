"""What is to be scored: samples by task and language, in blocks that are distributed over the ranks."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from bridge_ds.config.build import offered
from bridge_ds.config.text import shown
from bridge_ds.engine.distributed import agree
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.reading import twice
from bridge_ds.tasks.base import Example, Task
from bridge_ds.typed import is_file_name
from bridge_ds.world import World

__all__ = ["Block", "ScoringJob", "blocks_of", "load_jobs", "wanted"]

_LONGEST_CODE = 200
"""Bytes; file systems take 255 for a name, and that of an unfinished file is longer than the code."""


@dataclass(frozen=True)
class ScoringJob:
    """One task in one language."""

    task: Task
    """What is asked."""
    language: str
    """Language code."""
    examples: list[Example]
    """All samples, in the task's own order; the same on every rank."""


@dataclass(frozen=True)
class Block:
    """Samples that go through the models together, on whichever rank."""

    job: int
    """Index of their job."""
    examples: list[Example]
    """Of similar length."""


def wanted(tasks: Sequence[Task], languages: Sequence[str]) -> list[tuple[Task, str]]:
    """Every task with each of its languages that is asked for.

    Args:
        languages: codes; empty = every language of each task. A task is scored in those that it has.

    Raises:
        ConfigError: a language that no task has or that is given twice, a task without any of the languages, or a
            language whose predictions could not be written.
    """
    unknown = [
        code
        for code in languages
        if not any(task.code_of(code) in (*task.languages, *task.on_request) for task in tasks)
    ]
    if unknown:
        known = list(dict.fromkeys(code for task in tasks for code in task.languages))
        expected = f"some of {offered(unknown[0], known)}" if known else "those with test files; remove it."
        raise ConfigError(f"evaluation.languages has {unknown[0]!r}, which no task has; expected {expected}")
    for task in tasks:
        again = twice(task.code_of(code) for code in languages)
        if again is not None:
            raise ConfigError(f"evaluation.languages names {again} twice; expected each language once; remove one.")
    pairs = [(task, language) for task in tasks for language in _languages(task, languages)]
    for task, code in pairs:
        if not is_file_name(code) or len(code.encode()) > _LONGEST_CODE:
            raise ConfigError(
                f"task {task.name} has the language {shown(code)}; expected what can name the file of its predictions "
                f"(no / or \\, not . or .., at most {_LONGEST_CODE} bytes); rename it in the data, give it another "
                f"code in tasks.{task.name}.languages, such as {{prs: Dari/Persian}}, or leave it out of "
                "evaluation.languages."
            )
    return pairs


def load_jobs(tasks: Sequence[Task], languages: Sequence[str], limit: int, world: World) -> list[ScoringJob]:
    """The samples, read on the main rank and sent to the others (a collective): all score the same ones.

    Raises:
        ConfigError: see :func:`wanted`.
        DataError: test data that cannot be had.
    """
    pairs = wanted(tasks, languages)
    outcome: object = None
    if world.is_main:
        try:
            outcome = [_load(task, language, limit) for task, language in pairs]
        except Exception as error:
            # An error of one must become an error of all: the others would wait forever.
            outcome = error
    outcome = agree(outcome, world)
    if isinstance(outcome, Exception):
        raise outcome
    assert isinstance(outcome, list)
    return [ScoringJob(task, code, found) for (task, code), found in zip(pairs, outcome, strict=True)]


def blocks_of(number: int, job: ScoringJob, size: int, done: Container[str] = ()) -> list[Block]:
    """Blocks of `size` samples, those with the longest sources first: running out of memory shows at once.

    Which samples share a block depends on neither ranks nor interruptions (what is done is the first blocks), so that
    padding, and with it the last bits of a score, does not either.

    Args:
        number: the job's index in the list of jobs.
        size: samples of a block.
        done: keys of samples that are left out.
    """
    left = [example for example in job.examples if example.key not in done]
    left.sort(key=lambda example: (-len(example.source), example.key))
    return [Block(number, left[start : start + size]) for start in range(0, len(left), size)]


def _languages(task: Task, languages: Sequence[str]) -> list[str]:
    asked = {task.code_of(code) for code in languages}
    chosen = [code for code in task.languages if not languages or code in asked]
    chosen += [code for code in task.on_request if code in asked]
    if not chosen:
        has = f"has none of the languages {', '.join(languages)}" if languages else "has no test data"
        raise ConfigError(
            f"task {task.name} {has}; expected some of {', '.join(task.languages) or 'any language'}; fix "
            "evaluation.languages or leave the task out."
        )
    return chosen


def _load(task: Task, language: str, limit: int) -> list[Example]:
    examples = task.examples(language, limit)
    if not examples:
        raise DataError(f"{task.name} has no test samples in {language}; expected at least one; check its data.")
    return examples
