"""The terminal: lines without one, a bar on one, and a summary of numbers that were measured."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from bridge_ds.log import setup_logging
from bridge_ds.track.console import Console, duration, short

from .records import record


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _as_in_a_command() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("bridge_ds", "__main__")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    setup_logging(rank=0)
    yield
    for logger, (logger.handlers, level, logger.propagate) in zip(loggers, before, strict=True):
        logger.setLevel(level)


def _run(stream: io.StringIO, steps: int, total: int) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stream)
        return _told(stream, steps, total)


def _told(stream: io.StringIO, steps: int, total: int) -> str:
    console = Console("bridge_ds: a title", {"run": "runs/x", "ranks": 2}, every=10)
    console.on_start(step=0, total_steps=total)
    for step in range(1, steps + 1):
        console.on_step(record(step, total))
    logging.getLogger("bridge_ds.track.plots").info("a word from another hook")
    logging.getLogger("bridge_ds.track.plots").warning("a %s", "fault")
    logging.getLogger("bridge_ds.track.plots").debug("nobody wants to know")
    console.on_end("finished")
    return stream.getvalue()


def test_lines_without_a_terminal() -> None:
    text = _run(io.StringIO(), 25, 25)
    lines = [line for line in text.splitlines() if line.startswith("step ")]
    assert [line.split("/")[0].split()[-1] for line in lines] == ["1", "10", "20", "25"]
    assert "loss 0.2000  lr 1.00e-04  grad 0.5  1.00k tokens/s  0.50 s/step  0:00:08 left" in lines[1]
    assert "  run    runs/x\n  ranks  2\n" in text
    assert max(map(len, text.splitlines())) <= 110


def test_summary_has_the_measured_numbers() -> None:
    text = _run(io.StringIO(), 25, 25)
    mean = sum(2.0 / step for step in range(6, 26)) / 20
    assert "finished at step 25 of 25: 25 steps in" in text
    assert f"2.0000 at step 1, {mean:.4f} as the mean of the last 20" in text
    assert "1.25 GiB at most" in text
    assert "25 source texts" in text and "prompt texts" not in text


def test_bar_on_a_terminal() -> None:
    text = _run(_Terminal(), 3, 25)
    assert "3/25" in text and "\ra word from another hook\n" in text and "\rwarning: a fault\n" in text
    assert "nobody" not in text
    assert "step  1/25" not in text


def test_end_before_the_first_step() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stderr", stream := io.StringIO())
        console = Console("title")
        console.on_start(step=0, total_steps=5)
        console.on_end("failed")
    assert "failed before the first step" in stream.getvalue()


def test_other_ranks_print_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    setup_logging(rank=1)
    logging.getLogger("bridge_ds.run").info("said by rank 0")
    logging.getLogger("__main__").error("of this rank")
    assert capsys.readouterr() == ("", "error: of this rank\n")


def test_numbers_for_people() -> None:
    assert [duration(s) for s in (0.4, 61, 3725)] == ["0:00:00", "0:01:01", "1:02:05"]
    assert [short(n) for n in (7, 950, 1000, 41234, 1_300_000)] == ["7", "950", "1.00k", "41.2k", "1.30M"]
