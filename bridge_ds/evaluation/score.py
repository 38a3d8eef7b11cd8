"""Accuracy by task and language, counted over all ranks, every sample once."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist

from bridge_ds.disk import real, write_text
from bridge_ds.engine.distributed import agree, on_main
from bridge_ds.errors import BridgeError
from bridge_ds.evaluation.jobs import Block, ScoringJob, blocks_of, load_jobs
from bridge_ds.evaluation.predictions import Scored
from bridge_ds.evaluation.store import Answers, PredictionStore
from bridge_ds.metrics import CHECKPOINT
from bridge_ds.tasks.base import Example, Task
from bridge_ds.world import World

__all__ = ["Answering", "SystemScores", "compare", "write_evaluation"]


class Answering(Protocol):
    """Answers samples of a task. One with a method `count_tokens(examples)` says what each source costs it, for the
    progress bar."""

    def __call__(self, examples: Sequence[Example], task: Task, /) -> Answers:
        """Called on every rank equally often, never with no samples."""
        ...

    def check(self, examples: Sequence[Example], task: Task, /) -> None:
        """Raises DataError where a sample cannot be asked; runs no model."""


SystemScores = dict[str, dict[str, dict[str, float]]]
"""`{task: {language: {"acc": share, "exact_match": share, "n": samples, ...}}}`; shares are 0 to 1. Where there are
choices also "acc_norm_tokens" and, if asked for, "acc_mutual_info"; see `bridge_ds.metrics.METRICS`."""


def compare(
    bridge: Answering,
    llm: Answering | None,
    tasks: Sequence[Task],
    languages: Sequence[str] = (),
    limit: int = 0,
    batch: int = 32,
    world: World | None = None,
    before_batch: Callable[[], None] | None = None,
    stores: tuple[PredictionStore, PredictionStore] | None = None,
    llm_is_there: bool = True,
) -> dict[str, Any]:
    """Score the bridge and the LLM alone on the same samples. Every rank calls this and gets the same result.

    Args:
        bridge: what is asked.
        llm: None = it is left out, of the results too.
        tasks: what to score.
        languages: codes; empty = every language of each task. A task is scored in those that it has.
        limit: samples a task and language; 0 = all.
        batch: samples per rank in one call.
        world: this process among the others; None = alone.
        before_batch: called before each batch, on every rank.
        stores: of the bridge and of the LLM alone, where the main rank keeps the predictions; None = nowhere.
        llm_is_there: False = the LLM is another by now, and its store has the answers of another run: a task and
            language of which that has not all is left out, with a line that says so.

    Returns:
        evaluation.json's content: `{"bridge": SystemScores, "llm": SystemScores, "chance": {task: share}}`, with the
        systems that `stores` are of.

    Raises:
        ConfigError: a language that no task has, or a task without any of the languages.
        DataError: test data that cannot be had.
        LaunchError: predictions that cannot be written.
    """
    world = world or World()
    stores = stores or (
        PredictionStore(Scored("bridge", "bridge", 0, "")),
        PredictionStore(Scored("llm", "LLM alone", 0, "")),
    )
    jobs = load_jobs(tasks, languages, limit, world)
    results: dict[str, Any] = {}
    for system, store in zip((bridge, llm), stores, strict=True):
        if system is None:
            continue
        done: list[set[str]] = on_main(lambda store=store: [store.resume(job) for job in jobs], world)  # type: ignore[misc]
        asked = list(zip(jobs, done, strict=True))
        if system is llm and not llm_is_there:
            lacking = [job for job, keys in asked if len(keys) < len(job.examples)]
            asked = [(job, keys) for job, keys in asked if len(keys) == len(job.examples)]
            if lacking and world.is_main:
                _say_left_out(lacking)
        if asked:
            results[store.scored.system] = _score(system, asked, batch, world, before_batch, store)
    for store in stores:
        store.close()
    return results | {"chance": {task.name: task.chance for task in tasks}}


def write_evaluation(path: Path, results: dict[str, Any], checkpoint: str) -> None:
    """Write evaluation.json by temp + rename; for the main rank.

    Args:
        path: of the file.
        results: of :func:`compare`.
        checkpoint: name of the folder whose weights were scored.
    """
    real(path.parent).mkdir(parents=True, exist_ok=True)
    content = results | {CHECKPOINT: checkpoint}
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _say_left_out(lacking: Sequence[ScoringJob]) -> None:
    names = ", ".join(f"{job.task.name} in {job.language}" for job in lacking)
    print(
        f"the LLM alone is left out for {names}: the run of evaluation.llm_from has no answers to these samples with "
        "these settings of model, lengths, null_scores and max_new_tokens; score it so first"
    )


def _score(
    system: Answering,
    asked: Sequence[tuple[ScoringJob, set[str]]],
    size: int,
    world: World,
    before_batch: Callable[[], None] | None,
    store: PredictionStore,
) -> SystemScores:
    """`asked`: what is to be scored, and the keys of its samples that are done."""
    jobs = [job for job, _ in asked]
    blocks = [blocks_of(number, job, size, done) for number, (job, done) in enumerate(asked)]
    left = [len(part) for part in blocks]
    found: SystemScores = {}
    with _progress(system, blocks, store.scored.name, world) as (bar, work):
        for _, group in itertools.groupby(range(len(jobs)), lambda number: jobs[number].task.name):
            numbers = list(group)
            task = jobs[numbers[0]].task
            ahead = [block for number in numbers for block in blocks[number]]
            for start in range(0, len(ahead), world.size):
                turn = ahead[start : start + world.size]  # a block for each rank; fewer in the last turn
                if before_batch:
                    before_batch()
                for block, answers in zip(turn, _ask(system, task, turn, world), strict=False):
                    if world.is_main:
                        store.add(jobs[block.job], answers)
                    bar.set_postfix_str(f"{task.name} {jobs[block.job].language}")
                    bar.update(work(block))
                    left[block.job] -= 1
                    if not left[block.job]:
                        _finish(store, jobs[block.job], found, world)
            for number in numbers:
                if not blocks[number]:  # done before
                    _finish(store, jobs[number], found, world)
    in_order: SystemScores = {}
    for job in jobs if world.is_main else ():
        in_order.setdefault(job.task.name, {})[job.language] = found[job.task.name][job.language]
    return agree(in_order, world)  # type: ignore[return-value]


@contextmanager
def _progress(
    system: Answering, blocks: Sequence[Sequence[Block]], name: str, world: World
) -> Iterator[tuple[Any, Callable[[Block], int]]]:
    """A bar over the positions that the blocks take, padding included, and how many one of them takes: a language whose
    texts are many tokens is as slow as it looks. Over samples, where the system counts no tokens."""
    from tqdm import tqdm

    count: Callable[[Sequence[Example]], list[int]] | None = getattr(system, "count_tokens", None)
    shown = world.is_main and sys.stderr.isatty()

    def work(block: Block) -> int:
        return len(block.examples) * (max(count(block.examples)) if count and shown else 1)

    of = {id(block): work(block) for part in blocks for block in part}  # once: it tokenizes them
    options: dict[str, Any] = {"unit": "token" if count else "sample", "unit_scale": True, "dynamic_ncols": True}
    with tqdm(total=sum(of.values()), desc=name, disable=not shown, **options) as bar:
        yield bar, lambda block: of[id(block)]


def _ask(system: Answering, task: Task, turn: list[Block], world: World) -> list[Answers]:
    """The answers to all blocks of a turn, on every rank (a collective)."""
    # A rank without a block of its own computes another's again: all must run the models equally often.
    block = turn[min(world.rank, len(turn) - 1)]
    _agree(system, block, task, world)
    outcome: Answers | BridgeError
    try:
        outcome = system(block.examples, task)
        if len(outcome.predictions) != len(block.examples):
            raise ValueError(f"{len(outcome.predictions)} predictions for {len(block.examples)} samples")
    except BridgeError as error:
        outcome = error
    outcomes: list[Any] = [outcome]
    if world.size > 1:
        outcomes = [None] * world.size
        dist.all_gather_object(
            outcomes, outcome if world.rank < len(turn) or isinstance(outcome, BridgeError) else None
        )
    for found in outcomes:
        if isinstance(found, BridgeError):
            raise found
    return outcomes[: len(turn)]


def _agree(system: Answering, block: Block, task: Task, world: World) -> None:
    """Raises on every rank what one of them finds wrong in its samples: under ZeRO-3 the others would wait for it
    inside the models."""
    if world.size == 1:
        return
    fault: BridgeError | None = None
    try:
        system.check(block.examples, task)
    except BridgeError as error:
        fault = error
    faults: list[BridgeError | None] = [None] * world.size
    dist.all_gather_object(faults, fault)
    for found in faults:
        if found is not None:
            raise found


def _finish(store: PredictionStore, job: ScoringJob, found: SystemScores, world: World) -> None:
    if world.is_main:
        found.setdefault(job.task.name, {})[job.language] = store.finish(job)
