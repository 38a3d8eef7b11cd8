"""Progress for people: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bridge_ds.engine.hooks import Hook, StepRecord

__all__ = ["Console", "duration", "short"]

_log = logging.getLogger(__name__)

_WINDOW = 20
"""Steps behind the means of the final summary and the remaining time."""


class Console(Hook):
    """Header, progress, final summary. On rank 0 only; the other ranks stay silent by not having it."""

    def __init__(self, title: str, facts: Mapping[str, object] | None = None, every: int = 10) -> None:
        """`facts` come under the title, a line each; `every`: steps between lines without a terminal."""
        self._title = title
        self._facts = dict(facts or {})
        self._every = max(1, every)
        self._bar: Any = None
        self._first: StepRecord | None = None
        self._recent: deque[StepRecord] = deque(maxlen=_WINDOW)
        self._validated: list[StepRecord] = []
        self._peak_gib = 0.0
        self._cut: Counter[str] = Counter()
        self._total = self._start_step = 0
        self._began = 0.0

    def on_start(self, *, step: int, total_steps: int) -> None:
        """Print the header and, on a terminal, open the bar."""
        self._total, self._start_step, self._began = total_steps, step, time.monotonic()
        _log.info(self._title)
        width = max((len(name) for name in self._facts), default=0)
        for name, fact in self._facts.items():
            _log.info(f"  {name:<{width}}  {fact}")
        _log.info(f"{total_steps} steps" + (f", of which {step} are done" if step else "") + "\n")
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total_steps, initial=step, unit="step", dynamic_ncols=True, smoothing=0.1)

    def on_step(self, record: StepRecord) -> None:
        """Move the bar, or print a line every `every` steps and at the last."""
        self._first = self._first or record
        self._recent.append(record)
        self._peak_gib = max(self._peak_gib, record.get("peak_memory_gib") or 0.0)
        self._cut.update(record.get("truncated") or {})
        if self._bar is not None:
            self._bar.set_postfix_str(_numbers(record), refresh=False)
            self._bar.update(1)
        elif record["step"] % self._every == 0 or record["step"] in (self._start_step + 1, self._total):
            width = len(str(self._total))
            left = duration((self._total - record["step"]) * _mean(self._recent, "seconds"))
            seconds = record.get("seconds") or 0.0
            at = f"step {record['step']:>{width}}/{self._total}"
            _log.info(f"{at}  {_numbers(record)}  {seconds:.2f} s/step  {left} left")
        if "validation_loss" in record:
            self._validated.append(record)
            _log.info(f"step {record['step']}: {_validation(record)}")

    def on_checkpoint(self, step: int, folder: Path) -> None:
        """Name the checkpoint."""
        _log.info(f"checkpoint {folder.name} written")

    def on_end(self, status: str) -> None:
        """Close the bar and print the summary."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        for line in self._summary(status):
            _log.info(line)

    def _summary(self, status: str) -> list[str]:
        if self._first is None or not self._recent:
            return [f"\n{status} before the first step"]
        last = self._recent[-1]
        done = last["step"] - self._first["step"] + 1
        took = time.monotonic() - self._began
        lines = [
            f"\n{status} at step {last['step']} of {self._total}: {done} steps in {duration(took)} "
            f"({_mean(self._recent, 'seconds'):.2f} s/step, {short(_mean_tokens(self._recent))} tokens/s, "
            f"mean of the last {len(self._recent)})",
            f"  loss       {_number(self._first.get('loss'), '.4f')} at step {self._first['step']}, "
            f"{_mean(self._recent, 'loss'):.4f} as the mean of the last {len(self._recent)} "
            "(nats a target token)",
            f"  memory     {self._peak_gib:.2f} GiB at most, on the fullest rank",
        ]
        if known := [record for record in self._validated if record["validation_loss"] is not None]:
            best = min(known, key=lambda record: record["validation_loss"])
            lines.append(
                f"  held out   {_number(known[-1]['validation_loss'], '.4f')} at step {known[-1]['step']}, lowest "
                f"{_number(best['validation_loss'], '.4f')} at step {best['step']}"
            )
        if last.get("skipped_steps"):
            lines.append(f"  skipped    {last['skipped_steps']} steps whose loss or gradient was not finite")
        if bad := {kind: count for kind, count in (last.get("bad_samples") or {}).items() if count}:
            lines.append(f"  bad        {', '.join(f'{n} {kind}' for kind, n in bad.items())} samples left out")
        if cut := +self._cut:
            texts = ", ".join(f"{count} {name} texts" for name, count in cut.items())
            lines.append(f"  truncated  {texts} to their longest allowed length (counted on this rank)")
        return lines


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `0:12:34`."""
    whole = max(0, round(seconds))
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def short(number: float) -> str:
    """Three digits and a letter: `950`, `41.2k`, `1.30M`."""
    for limit, factor, letter in ((1e6, 1e6, "M"), (1e3, 1e3, "k")):
        if number >= limit:
            scaled = number / factor
            return f"{scaled:.{max(0, 2 - len(str(int(scaled))) + 1)}f}{letter}"
    return f"{number:.0f}"


def _numbers(record: StepRecord) -> str:
    skipped = f"  {record['skipped_steps']} skipped" if record.get("skipped_steps") else ""
    taught = f"  kl {_number(record['kl'], '.4f')}" if "kl" in record else ""
    return (
        f"loss {_number(record.get('loss'), '.4f')}{taught}  lr {_number(record.get('lr'), '.2e')}  "
        f"grad {_number(record.get('grad_norm'), '.3g')}  {short(_mean_tokens([record]))} tokens/s{skipped}"
    )


def _validation(record: StepRecord) -> str:
    accuracy = record.get("validation_accuracy")
    right = "" if accuracy is None else f", {100 * accuracy:.1f} % of the target tokens right"
    return (
        f"validation loss {_number(record['validation_loss'], '.4f')} on {record.get('validation_samples')} held-out "
        f"samples{right} ({duration(record.get('validation_seconds') or 0)})"
    )


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _mean(records: Any, key: str) -> float:
    values = [record[key] for record in records if isinstance(record.get(key), int | float)]
    return sum(values) / len(values) if values else 0.0


def _mean_tokens(records: Any) -> float:
    # Source tokens (encoder) and target tokens (LLM) of all ranks together.
    return _mean(records, "source_tokens_per_s") + _mean(records, "target_tokens_per_s")
