"""Data, tasks and models small enough to try the complete system in minutes, with no download.

It has small English sentences and the same sentences in five constructed languages, three tasks shaped like those of
arXiv 2508.09091 (inference, news topics, reviews), and two pretrained models: a multilingual encoder of the MT5
architecture that has read all six languages, and a LLaMA-style language model that has read English and nothing else.

The constructed languages are NOT Sinhala, Tamil, Bengali or Malayalam. They use the same scripts and nothing more; all
of their words, endings and rules are invented. A result on them shows that the system works, and nothing about any real
language.

Importing this module imports neither torch nor transformers.
"""

from __future__ import annotations

from pathlib import Path

from .languages import ENGLISH, LANGUAGE_NAMES, LANGUAGES, UNSEEN
from .tasks import ENGLISH_ROWS, LABELS, PROMPTS, TASKS, TestbedExample, english_rows, examples

__all__ = [
    "ENCODER_PATH",
    "ENGLISH",
    "ENGLISH_ROWS",
    "LABELS",
    "LANGUAGES",
    "LANGUAGE_NAMES",
    "LLM_PATH",
    "PROMPTS",
    "TASKS",
    "UNSEEN",
    "TestbedExample",
    "english_rows",
    "examples",
]

_WEIGHTS = Path(__file__).resolve().parent / "weights"
ENCODER_PATH: Path = _WEIGHTS / "encoder"
"""The shipped multilingual encoder with its tokenizer."""
LLM_PATH: Path = _WEIGHTS / "llm"
"""The shipped English language model with its tokenizer."""
