"""Tables of choice.json with the verdicts that a test asks for."""

from __future__ import annotations

from bridge_ds.inference.choice import ChoiceTable, Comparison, Measured


def compared(verdict: str) -> Comparison:
    """30 samples; the numbers are in line with a verdict for the LLM alone."""
    return Comparison(verdict, 0.2, 0.6, -0.4, -0.6, -0.2, 30, 0.0, 12.0, 0.0005, 0.001)  # type: ignore[arg-type]


MEASURED = {"chat_template": False}
"""Prompt settings."""


def table(settings: dict[str, bool] | None = None, **verdicts: str) -> ChoiceTable:
    """By language."""
    measured = Measured("step-00000001", {}, {"llm": "0"}, dict(settings or MEASURED))
    languages = {code: compared(verdict) for code, verdict in verdicts.items()}
    return ChoiceTable(measured, "acc", languages, {"news": languages})
