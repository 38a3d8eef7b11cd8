"""A task and a system whose every answer is known; spawned processes import this too."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch.distributed as dist

from bridge_ds.errors import DataError
from bridge_ds.evaluation.predictions import Prediction, Scored
from bridge_ds.evaluation.score import SystemScores, compare, write_evaluation
from bridge_ds.evaluation.store import Answers, PredictionStore
from bridge_ds.tasks.base import Example, Task
from bridge_ds.world import World


@dataclass(frozen=True)
class FakeTask:
    """`sizes` samples in each language, sources of many lengths."""

    name: str = "fake"
    labels: tuple[str, ...] = ("a", "b", "c")
    sizes: dict[str, int] = field(default_factory=lambda: {"en": 7, "xx": 1, "yy": 10})
    kind: str = "labels"
    choices: tuple[str, ...] = ()
    on_request: tuple[str, ...] = ()

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def chance(self) -> float:
        return 1 / len(self.labels)

    def code_of(self, language: str) -> str:
        return language

    def examples(self, language: str, limit: int) -> list[Example]:
        count = min(limit or self.sizes[language], self.sizes[language])
        return [
            Example("x" * (1 + 7 * k % 5), self.labels[k % 3], k % 3, language, f"{language}-{k}", self.choices)
            for k in range(count)
        ]


def evaluate(system: Any, tasks: Sequence[Task], *args: Any, **options: Any) -> SystemScores:
    """The scores of one system."""
    found: SystemScores = compare(system, None, tasks, *args, **options)["bridge"]
    return found


class FakeSystem:
    """Right or wrong by a hash of the sample, so that an answer does not depend on who asks."""

    def __init__(self, stop_after: int = 0, refuses: str = "") -> None:
        self.calls: list[list[str]] = []
        self.stop_after, self.refuses = stop_after, refuses

    def check(self, examples: Sequence[Example], task: Task) -> None:
        if self.refuses in [example.key for example in examples]:
            raise DataError(f"{self.refuses} cannot be asked.")

    def __call__(self, examples: Sequence[Example], task: Task) -> Answers:
        if self.stop_after and len(self.calls) == self.stop_after:
            raise KeyboardInterrupt
        self.calls.append([example.key for example in examples])
        predictions = []
        for example in examples:
            likely, wrote = is_right(example)
            scores = [-5.0] * len(task.labels)
            scores[(example.label + (not likely)) % len(task.labels)] = -1.0
            predictions.append(
                Prediction(
                    key=example.key,
                    source=example.source,
                    label=example.label,
                    answer=example.target,
                    scores=tuple(scores),
                    tokens=(2,) * len(scores),
                    exact_match=wrote,
                )  # fmt: skip
            )
        tokens = sum(len(example.source) for example in examples)
        return Answers(predictions, [0.25 * tokens, 0.75 * tokens], tokens)


def is_right(example: Example) -> tuple[bool, bool]:
    """Whether the fake gets a sample right by likelihood, and whether exactly."""
    digest = hashlib.sha1(example.key.encode()).digest()
    return digest[0] % 3 > 0, digest[0] % 3 > 0 and digest[1] % 2 == 0


def stores(folder: Path, identity: str = "one", reuse: Path | None = None) -> tuple[PredictionStore, PredictionStore]:
    """Of both systems; `reuse` = where answers of the LLM alone are."""
    return (
        PredictionStore(Scored("bridge", "some_fusion", 3, "step-00000001"), folder / "bridge", {"is": identity}),
        PredictionStore(Scored("llm", "LLM alone", 3, ""), folder / "llm", {"is": identity}, reuse),
    )


def run_rank(rank: int, size: int, folder: str) -> None:
    """One process of a gloo group: compare with predictions, write what this rank saw; then fail together."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    world = World(rank=rank, size=size)
    try:
        bridge, llm = FakeSystem(), FakeSystem()
        found = compare(bridge, llm, [FakeTask()], batch=2, world=world, stores=stores(Path(folder) / "evaluation"))
        write_evaluation(Path(folder) / f"rank{rank}.json", {"found": found, "calls": bridge.calls}, "")
        try:
            broken = [FakeTask(sizes={"en": 0})] if rank == 0 else [FakeTask(sizes={"en": 4})]
            evaluate(FakeSystem(), broken, world=world)
        except Exception as error:
            (Path(folder) / f"error{rank}").write_text(type(error).__name__)
        refusing = FakeSystem(refuses="en-0")
        try:
            evaluate(refusing, [FakeTask()], batch=2, world=world)
        except Exception as error:
            (Path(folder) / f"refused{rank}").write_text(f"{type(error).__name__} after {len(refusing.calls)} calls")
    finally:
        dist.destroy_process_group()
