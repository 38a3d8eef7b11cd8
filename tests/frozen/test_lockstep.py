"""Runs in step: the order of everything, what a thread inherits, and that no thread stays."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
import torch

from bridge_ds.compat.torch import free_workspaces
from bridge_ds.frozen.lockstep import lockstep, pause


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


def test_all_come_to_a_point_before_any_goes_past_it() -> None:
    said: list[str] = []

    def work(name: str) -> str:
        for point in "pq":
            said.append(name)
            assert pause(point)
        said.append(f"{name} ends")
        return name.upper()

    assert lockstep([partial(work, name) for name in "abc"], said.append) == ["A", "B", "C"]
    assert said == [*"abc", "p", *"abc", "q", "a ends", "b ends", "c ends"]
    assert not pause("outside")


def test_an_error_in_one_ends_all_and_comes_out_with_its_place() -> None:
    reached: list[int] = []
    ended: list[int] = []

    def work(number: int) -> None:
        try:
            for point in range(5):
                pause(point)
                if (number, point) == (1, 2):
                    raise KeyError("of run 1")
        finally:
            ended.append(number)

    with pytest.raises(KeyError, match="of run 1") as caught:
        lockstep([partial(work, number) for number in range(4)], reached.append)
    assert caught.traceback[-1].name == "work"
    assert reached == [0, 1, 2] and sorted(ended) == [0, 1, 2, 3]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_caller_ends_all(error: type[BaseException]) -> None:
    ended: list[int] = []

    def work(number: int) -> None:
        try:
            pause("here")
        finally:
            ended.append(number)

    def reached(_: Any) -> None:
        raise error

    with pytest.raises(error):
        lockstep([partial(work, number) for number in range(3)], reached)
    assert ended == [0, 1, 2]


def test_other_ways_are_refused() -> None:
    for works in ([partial(pause, "a"), partial(pause, "b")], [partial(pause, "a"), lambda: True]):
        with pytest.raises(RuntimeError, match="paused at different points"):
            lockstep(works, lambda point: None)


def test_a_run_sees_what_its_caller_has_set_and_changes_none_of_it() -> None:
    variable: ContextVar[str] = ContextVar("variable", default="none")

    def state() -> tuple[Any, ...]:
        kind = "cpu"
        casting = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), casting, variable.get()

    def work(name: str) -> tuple[Any, ...]:
        before = state()
        variable.set(name)
        pause("here")
        assert variable.get() == name  # each has its own
        with torch.enable_grad():
            pause("in grad mode")
            return before

    variable.set("caller's")
    plain = state()
    contexts = [torch.enable_grad, torch.no_grad, torch.inference_mode]
    contexts.append(partial(torch.autocast, "cpu", torch.float16))  # type: ignore[arg-type]
    for context in contexts:
        with context():
            expected = state()
            assert lockstep([partial(work, name) for name in "ab"], lambda point: None) == [expected] * 2
            assert state() == expected
    assert state() == plain == (True, False, None, "caller's")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_threads_leave_no_workspaces() -> None:
    matrix = torch.ones(256, 256, device="cuda", dtype=torch.bfloat16)

    def work() -> None:
        pause("here")
        torch.mm(matrix, matrix)
        pause("there")

    free_workspaces()
    before = torch.cuda.memory_allocated()
    lockstep([work] * 4, lambda point: None)
    assert torch.cuda.memory_allocated() > before  # where this fails, free_workspaces can go
    free_workspaces()
    assert torch.cuda.memory_allocated() == before
