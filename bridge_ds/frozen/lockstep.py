"""Run the same code on several inputs so that all reach a point before any goes on.

Each run has its own thread, but only one thread runs at any time and the order is fixed: coroutines for code that
cannot yield, such as the forward of a transformers model with its hooks.
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import torch

__all__ = ["lockstep", "pause"]

T = TypeVar("T")
_here = threading.local()


def pause(point: object) -> bool:
    """Inside a run: wait until all runs have reached `point`. Outside of one: false, at once."""
    run: _Run[Any] | None = getattr(_here, "run", None)
    if run is None:
        return False
    run.wait_at(point)
    return True


def lockstep(works: Sequence[Callable[[], T]], reached: Callable[[Any], None]) -> list[T]:
    """Run all of `works`, in their order from each :func:`pause` to the next.

    Each has the state of the caller's thread: grad mode, inference mode, autocast, CUDA device and stream, context
    variables (a copy). Torch dispatch and function modes are not copied.

    Args:
        works: they must pause at the same points in the same order.
        reached: called in the caller's thread with each point, once all have reached it.

    Returns:
        What they returned, in their order.

    Raises:
        RuntimeError: they paused at different points.
        BaseException: whatever a run or `reached` raises first; the other runs are stopped at their points.
    """
    runs = [_Run(work) for work in works]
    try:
        while True:
            points = [run.go_on() for run in runs]
            if any(point is not points[0] for point in points):
                raise RuntimeError("the runs paused at different points; expected the same points in the same order.")
            if points[0] is _END:
                return [run.results[0] for run in runs]
            reached(points[0])
    finally:
        for run in runs:
            run.close()


_END = object()


class _Stop(BaseException):
    """Stops a run."""


class _Run(Generic[T]):
    def __init__(self, work: Callable[[], T]) -> None:
        self.results: list[T] = []
        self._work, self._as_caller = work, _thread_state()
        self._go: SimpleQueue[bool] = SimpleQueue()
        self._came: SimpleQueue[tuple[object, BaseException | None]] = SimpleQueue()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="lockstep", daemon=True)
        self._thread.start()

    def go_on(self) -> object:
        """Run to the next point, or to the end."""
        self._go.put(True)
        point, error = self._came.get()
        if error is not None:
            raise error
        return point

    def close(self) -> None:
        """Stop it, if it has not ended."""
        self._go.put(False)
        self._thread.join()

    def wait_at(self, point: object) -> None:
        """In its own thread: let the caller go on, and wait."""
        self._came.put((point, None))
        if not self._go.get():
            raise _Stop

    def _run(self) -> None:
        error = None
        try:
            if not self._go.get():
                return
            _here.run = self
            with self._as_caller():
                self.results.append(self._work())
        except BaseException as raised:
            error = raised
        finally:
            self._came.put((_END, error))


def _thread_state() -> Callable[[], AbstractContextManager[None]]:
    """Torch's state of the calling thread, as a context for another one."""
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    on_cuda = torch.cuda.is_initialized()
    stream = torch.cuda.current_stream() if on_cuda else None
    kinds = [kind for kind in ("cpu", *["cuda"] * on_cuda) if torch.is_autocast_enabled(kind)]
    casts = [(kind, torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled()) for kind in kinds]

    @contextmanager
    def entered() -> Iterator[None]:
        if stream is not None:
            # Never reset, for the thread ends: to go back would make a context on device 0, where every thread begins.
            torch.cuda.set_device(stream.device)
            torch.cuda.set_stream(stream)
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for kind, dtype, caching in casts:
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=caching))
            yield

    return entered
