"""Answers written here, by the LLM in transformers: one batch after the other, each row ending by itself.

Letters: B rows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from bridge_ds.generate.pipeline import Pipeline, mixed_seed
from bridge_ds.serve.schema import Sampling
from bridge_ds.serve.texts import Texts
from bridge_ds.serve.work import Row

__all__ = ["LocalWriter"]


class _Reading(StoppingCriteria):
    """Hands each step's tokens to their rows and ends the rows that have their last token, a stop, or no reader.

    transformers asks it once a step, before a streamer would be told (which on GPUs is a step later).
    """

    def __init__(self, rows: Sequence[Row], texts: Texts) -> None:
        self.rows, self.texts = rows, texts

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:  # type: ignore[override]
        for row, token in zip(self.rows, input_ids[:, -1].tolist(), strict=True):
            row.add(token, self.texts.ends, self.texts.decoder(row))
        return torch.tensor([row.ended for row in self.rows], dtype=torch.bool, device=input_ids.device)


class LocalWriter:
    """Both base models and the bridge, in this process; used by the scheduler's thread alone."""

    def __init__(self, answerer: Pipeline, texts: Texts) -> None:
        self.answerer, self.texts = answerer, texts

    @torch.no_grad()
    def start(self, rows: Sequence[Row], done: Callable[[int], None]) -> None:
        """Write the answers of one batch; returns when all are written.

        Args:
            rows: see :func:`bridge_ds.serve.waiting.choose`.
            done: called with how many are at their end.
        """
        try:
            sampling = rows[0].sampling
            if sampling.temperature:
                # As python -m bridge_ds.generate --seed; without a seed as chance has it.
                seed = sampling.seed
                torch.manual_seed(mixed_seed(seed) if seed is not None else int(torch.seed()) >> 1)
            features = self.answerer.processor.collate([row.ids for row in rows])
            self.answerer.model.generate(
                **features,
                **_options(sampling),
                max_new_tokens=max(row.most for row in rows),
                stopping_criteria=StoppingCriteriaList([_Reading(rows, self.texts)]),
            )
            for row in rows:
                if not row.ended:  # the LLM had fewer places than its config says
                    row.reason = "length"
                    row.finish(self.texts.decoder(row))
        finally:
            done(len(rows))


def _options(sampling: Sampling) -> dict[str, Any]:
    if not sampling.temperature:
        return {"do_sample": False}
    return {
        "do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k,
    }  # fmt: skip
