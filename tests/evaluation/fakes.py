"""A task and a system whose every answer is known; spawned processes import this too."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.distributed as dist

from bridge_ds.evaluation.score import evaluate, write_evaluation
from bridge_ds.tasks.base import Example
from bridge_ds.world import World


@dataclass(frozen=True)
class FakeTask:
    """`sizes` samples in each language, sources of many lengths."""

    name: str = "fake"
    labels: tuple[str, ...] = ("a", "b", "c")
    sizes: dict[str, int] = field(default_factory=lambda: {"en": 7, "xx": 1, "yy": 10})

    @property
    def languages(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def chance(self) -> float:
        return 1 / len(self.labels)

    def examples(self, language: str, limit: int) -> list[Example]:
        count = min(limit or self.sizes[language], self.sizes[language])
        return [
            Example("x" * (1 + 7 * k % 5), self.labels[k % 3], k % 3, language, f"{language}-{k}") for k in range(count)
        ]


class FakeSystem:
    """Right or wrong by a hash of the sample, so that an answer does not depend on who asks."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, examples: list[Example], labels: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append([example.key for example in examples])
        scores = torch.full((len(examples), len(labels)), -5.0)
        exact = torch.zeros(len(examples), len(labels), dtype=torch.bool)
        for row, example in enumerate(examples):
            likely, wrote = is_right(example)
            scores[row, (example.label + (not likely)) % len(labels)] = -1.0
            exact[row, example.label] = wrote
        return scores, exact


def is_right(example: Example) -> tuple[bool, bool]:
    """Whether the fake gets a sample right by likelihood, and whether exactly."""
    digest = hashlib.sha1(example.key.encode()).digest()
    return digest[0] % 3 > 0, digest[0] % 3 > 0 and digest[1] % 2 == 0


def run_rank(rank: int, size: int, folder: str) -> None:
    """One process of a gloo group: evaluate, write what this rank saw."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    try:
        system = FakeSystem()
        found = evaluate(system, [FakeTask()], batch=2, world=World(rank=rank, size=size), progress=False)
        write_evaluation(Path(folder) / f"rank{rank}.json", {"found": found, "calls": system.calls})
        try:
            broken = [FakeTask(sizes={"en": 0})] if rank == 0 else [FakeTask(sizes={"en": 4})]
            evaluate(system, broken, world=World(rank=rank, size=size), progress=False)
        except Exception as error:
            (Path(folder) / f"error{rank}").write_text(type(error).__name__)
    finally:
        dist.destroy_process_group()
