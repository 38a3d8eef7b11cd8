"""Accuracy by task and language, counted over all ranks, every sample once."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bridge_ds.errors import ConfigError, DataError
from bridge_ds.tasks.base import Example, Task
from bridge_ds.world import World

__all__ = ["ScoreBatch", "SystemScores", "compare", "evaluate", "write_evaluation"]

ScoreBatch = Callable[[list[Example], tuple[str, ...]], tuple[torch.Tensor, torch.Tensor]]
"""Given B examples and C labels: scores [B, C] float, the log-probability (nats) of each label's tokens with
its end token; and exact [B, C] bool, whether greedy decoding writes exactly this label. Called on every rank
equally often, never with no examples."""

SystemScores = dict[str, dict[str, dict[str, float]]]
"""`{task: {language: {"likelihood": share, "exact": share, "n": samples}}}`; shares are 0 to 1."""


@dataclass(frozen=True)
class _Job:
    """One task in one language: the whole test set, shortest source first, the same on every rank."""

    task: Task
    language: str
    examples: list[Example]

    def batches(self, world: World, size: int) -> Iterator[tuple[list[Example], int]]:
        """This rank's batches, each with how many of its samples count; as many batches on every rank."""
        own = self.examples[world.rank :: world.size]
        places = math.ceil(len(self.examples) / world.size)
        # A rank short of samples scores one again for nothing: all ranks must run the models equally often.
        padded = own + [self.examples[-1]] * (places - len(own))
        for start in range(0, places, size):
            part = padded[start : start + size]
            yield part, max(0, min(len(part), len(own) - start))

    def count_batches(self, world: World, size: int) -> int:
        """How many :meth:`batches` gives on each rank."""
        return math.ceil(math.ceil(len(self.examples) / world.size) / size)


def evaluate(
    score_batch: ScoreBatch,
    tasks: Sequence[Task],
    languages: Sequence[str] = (),
    limit: int = 0,
    batch: int = 32,
    world: World | None = None,
    progress: bool = True,
) -> SystemScores:
    """Score one system. Every rank calls this and gets the same result.

    Args:
        score_batch: the system.
        tasks: what to score.
        languages: codes; empty = every language of each task. A task is scored in those that it has.
        limit: samples a task and language; 0 = all.
        batch: samples per rank in one call of `score_batch`.
        world: this process among the others; none = alone.
        progress: show a bar on the main rank if standard error is a terminal.

    Raises:
        ConfigError: a language that no task has, or a task without any of the languages.
        DataError: test data that cannot be had.
    """
    world = world or World()
    return _score(score_batch, _load(tasks, languages, limit, world), batch, world, progress, "evaluating")


def compare(
    bridge: ScoreBatch,
    llm: ScoreBatch,
    tasks: Sequence[Task],
    languages: Sequence[str] = (),
    limit: int = 0,
    batch: int = 32,
    world: World | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Score the bridge and the LLM alone on the same samples; arguments and errors as in :func:`evaluate`.

    Returns:
        evaluation.json's content: `{"bridge": SystemScores, "llm": SystemScores, "chance": {task: share}}`.
    """
    world = world or World()
    jobs = _load(tasks, languages, limit, world)
    return {
        "bridge": _score(bridge, jobs, batch, world, progress, "bridge"),
        "llm": _score(llm, jobs, batch, world, progress, "LLM alone"),
        "chance": {task.name: task.chance for task in tasks},
    }


def write_evaluation(path: Path, results: dict[str, Any]) -> None:
    """Write evaluation.json by temp + rename; for the main rank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temp = path.with_name(path.name + ".tmp")
    with temp.open("w", encoding="utf-8") as file:
        file.write(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    temp.replace(path)


def _score(
    score_batch: ScoreBatch, jobs: Sequence[_Job], size: int, world: World, progress: bool, name: str
) -> SystemScores:
    counts = torch.zeros(len(jobs), 3, dtype=torch.int64)  # right by likelihood, right exactly, samples
    total = sum(job.count_batches(world, size) for job in jobs)
    shown = progress and world.is_main and sys.stderr.isatty()
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit="batch", disable=not shown, dynamic_ncols=True) as bar:
        for place, job in enumerate(jobs):
            bar.set_postfix_str(f"{job.task.name} {job.language}")
            for examples, real in job.batches(world, size):
                scores_BC, exact_BC = score_batch(examples, job.task.labels)
                counts[place] += _count(examples, scores_BC, exact_BC, len(job.task.labels), real)
                bar.update(1)
    counts = _sum_over_ranks(counts)
    found: SystemScores = {}
    for job, (likely, exact, n) in zip(jobs, counts.tolist(), strict=True):
        found.setdefault(job.task.name, {})[job.language] = {
            "likelihood": likely / n,
            "exact": exact / n,
            "n": n,
        }
    return found


def _count(
    examples: list[Example], scores_BC: torch.Tensor, exact_BC: torch.Tensor, labels: int, real: int
) -> torch.Tensor:
    expected = (len(examples), labels)
    if tuple(scores_BC.shape) != expected or tuple(exact_BC.shape) != expected:
        raise ValueError(
            f"score_batch gave {tuple(scores_BC.shape)}, {tuple(exact_BC.shape)}; expected {expected} twice"
        )
    scores_BC, exact_BC = scores_BC[:real].float().cpu(), exact_BC[:real].bool().cpu()
    label_B1 = torch.tensor([example.label for example in examples[:real]], dtype=torch.int64)[:, None]
    # A sample with a score that is no number is wrong, whatever argmax makes of it.
    usable_B = ~scores_BC.isnan().any(dim=1)
    likely = (scores_BC.argmax(dim=1) == label_B1[:, 0]) & usable_B if real else usable_B
    return torch.stack([likely.sum(), exact_BC.gather(1, label_B1).sum(), torch.tensor(real)])


def _load(tasks: Sequence[Task], languages: Sequence[str], limit: int, world: World) -> list[_Job]:
    unknown = [code for code in languages if not any(code in task.languages for task in tasks)]
    if unknown:
        known = ", ".join(dict.fromkeys(code for task in tasks for code in task.languages))
        raise ConfigError(
            f"evaluation.languages has {unknown[0]!r}, which no task has; expected some of {known}; remove it."
        )
    wanted = [(task, language) for task in tasks for language in _languages(task, languages)]
    # The main rank goes first and fills the download cache, the others then read it; an error there becomes
    # an error everywhere, where ranks that went on alone would wait for ever.
    problem: Exception | None = None
    jobs: list[_Job] = []
    if world.is_main:
        try:
            jobs = [_job(task, language, limit) for task, language in wanted]
        except Exception as error:
            problem = error
    if int(_sum_over_ranks(torch.tensor([int(problem is not None)]))) > 0:
        raise problem or DataError("the main rank could not load the test data; see its message.")
    return jobs if world.is_main else [_job(task, language, limit) for task, language in wanted]


def _languages(task: Task, languages: Sequence[str]) -> list[str]:
    chosen = [code for code in task.languages if not languages or code in languages]
    if not chosen:
        raise ConfigError(
            f"task {task.name} has none of the languages {', '.join(languages)}; expected some of "
            f"{', '.join(task.languages)}; mend evaluation.languages or leave the task out."
        )
    return chosen


def _job(task: Task, language: str, limit: int) -> _Job:
    examples = task.examples(language, limit)
    if not examples:
        raise DataError(f"{task.name} has no test samples in {language}; expected at least one; check its data.")
    # Like lengths in one batch: less padding. The key makes the order the same on every rank.
    return _Job(task, language, sorted(examples, key=lambda example: (len(example.source), example.key)))


def _sum_over_ranks(counts: torch.Tensor) -> torch.Tensor:
    if not (dist.is_available() and dist.is_initialized()):
        return counts
    on_gpu = dist.get_backend() == "nccl"
    shared = counts.to(torch.device("cuda", torch.cuda.current_device()) if on_gpu else "cpu")
    dist.all_reduce(shared)
    return shared.cpu()
