"""The examination as a page for a terminal. Pure."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

from bridge_ds.doctor.diagnose import LIMITS, Finding
from bridge_ds.doctor.example import WorkedExample
from bridge_ds.doctor.measurements import Measurements

__all__ = ["page"]

_WIDTH = 110
_SHOWN = 40
"""Soft vectors of the example that are shown."""


def page(name: str, m: Measurements, findings: Sequence[Finding], example: WorkedExample | None) -> str:
    """Findings first, worst on top; then the numbers, then one sample as the LLM sees it."""
    wrong = sum(finding.wrong for finding in findings)
    head = f"{name}, {m.samples} training samples: " + ("healthy" if not wrong else f"{wrong} thing(s) wrong")
    lines = [head, ""]
    for finding in findings:
        lines += _wrapped("WRONG  " if finding.wrong else "look   ", finding.what)
        lines += [*_wrapped("  try  ", finding.advice), ""]
    lines += ["measured", *_numbers(m), ""]
    return "\n".join(lines + (_example(example) if example else []))


def _wrapped(mark: str, text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))


def _numbers(m: Measurements) -> list[str]:
    def line(what: str, found: str, healthy: str = "") -> str:
        return f"  {what:<47}{found:<22}{healthy}".rstrip()

    lines = [
        line(
            "truncated: sources / prompts / targets",
            f"{m.sources_cut:.1%} / {m.prompts_cut:.1%} / {m.targets_cut:.1%}",
        ),
        line("target tokens lost by truncation", f"{m.targets_lost:.1%}", f"healthy: to {LIMITS.targets_lost:.0%}"),
        line("encoder tokens unknown", f"{m.unknown:.1%}", f"healthy: to {LIMITS.unknown:.0%}"),
    ]
    if m.soft_norm is None:
        return lines
    sizes = f"healthy: {LIMITS.smallest:g} to {LIMITS.largest:g}"
    lines += [
        line("loss, nats a target token: right source", _number(m.loss_right)),
        line("  another sample's source", _number(m.loss_shuffled), f"healthy: above the right one by {LIMITS.gap:g}"),
        line("  the most similar one's", _number(m.loss_near), f"healthy: above the right one by {LIMITS.gap:g}"),
        line("  no source", _number(m.loss_none), "healthy: above the right one"),
        line("  recorded in training", _number(m.loss_recorded)),
        line("norm of a soft vector / of a token embedding", _number(m.size), sizes),
        line("  of the end vector", _number(_ratio(m.end_norm, m.embedding_norm))),
        line("  by position, from the first", ""),
        *_wrapped("    ", " ".join(_number(_ratio(norm, m.embedding_norm)) for norm in m.soft_norm_by_position)),
        line("share of the soft vectors that varies", _number(m.variation), f"healthy: above {LIMITS.variation:g}"),
        line("  between samples, by position", ""),
        *_wrapped("    ", " ".join(map(_number, m.variation_by_position))),
        line("mapping moved from its initial value", _number(m.mapping_moved), f"healthy: above {LIMITS.untrained:g}"),
        line(f"layers ({m.fusion}): weight", ""),
        *_wrapped("    ", " ".join(map(_number, m.layer_weights))),
        line("  RMS of the layer's states", ""),
        *_wrapped("    ", " ".join(map(_number, m.layer_rms))),
    ]  # fmt: skip
    return lines


def _example(of: WorkedExample) -> list[str]:
    lines = ["one sample as the LLM sees it (soft vectors: encoder token, nearest LLM token, cosine, norm / embedding)"]
    if of.opening:
        lines.append(f"  {of.opening if of.opening.isprintable() else repr(of.opening)}")
    shown = of.soft if len(of.soft) <= _SHOWN else (*of.soft[: _SHOWN - 1], of.soft[-1])
    for number, token in enumerate(shown, 1):
        if len(shown) < len(of.soft) and number == len(shown):
            lines.append(f"  ... {len(of.soft) - len(shown)} more")
        lines.append(
            f"  soft {token.encoder!r:<24} {token.nearest!r:<24} {token.cosine:>6.2f} {_number(token.size):>8}"
        )
    if of.prompt:
        lines += _wrapped("  prompt  ", repr(of.prompt))
    lines += _wrapped("  target  ", repr(of.target))
    return lines + _wrapped("  written ", repr(of.written))


def _ratio(a: float | None, b: float | None) -> float | None:
    return None if a is None or not b else a / b


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if math.isfinite(value) else str(value)
