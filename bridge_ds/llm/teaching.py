"""Self-teaching: the frozen LLM, which reads the English text itself, teaches itself behind the soft prompt.

At each token of the answer the LLM alone gives a distribution over the vocabulary; the bridge is trained so that the
same LLM gives the same one where it reads the soft prompt in place of the text: KL(alone || bridge) at a temperature T,
times T^2 (arXiv 1503.02531). With a translation as the source it is FILTER's self-teaching loss (arXiv 2009.05166);
with the same text, an LLM distilled into itself behind an encoder (arXiv 2406.12739). No label is needed.

Dimensions: N tokens of the answers in the micro-batch, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Teaching", "divergence_sum"]

_CHUNK = 1 << 24
"""Most elements in float32 at a time (64 MiB)."""


@dataclass(frozen=True)
class Teaching:
    """The loss of a run with self-teaching."""

    weight: float = 1.0
    """Of the divergence."""
    temperature: float = 1.0
    """T of both distributions."""
    predicts: bool = False
    """The task's loss is added to it."""

    def loss(self, nll: torch.Tensor, kl: torch.Tensor) -> torch.Tensor:
        """What is minimized, from the sums of -log p and of the divergence (nats, scalars)."""
        taught = self.weight * self.temperature**2 * kl
        return nll + taught if self.predicts else taught


def divergence_sum(logits_NV: torch.Tensor, taught_NV: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum over positions of KL(softmax(taught / T) || softmax(logits / T)) in nats, float32, a scalar.

    Both are made float32 some rows at a time. Of size N x V only the gradient of the logits is kept, in their dtype;
    `taught_NV` gets none and may be freed after the call.
    """
    return _Divergence.apply(logits_NV, taught_NV, temperature)  # type: ignore[no-any-return, no-untyped-call]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: torch.Tensor, taught_NV: torch.Tensor, temperature: float) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=logits_NV.device)
        wanted = ctx.needs_input_grad[0]
        gradient_NV = torch.empty_like(logits_NV) if wanted else None
        for start, rows in _chunks(*logits_NV.shape):
            here = slice(start, start + rows)
            log_p = (taught_NV[here].float() / temperature).log_softmax(-1)
            log_q = (logits_NV[here].float() / temperature).log_softmax(-1)
            p, q = log_p.exp(), log_q.exp()
            # Of sums that are 1 the difference is nothing but the rounding of both softmaxes, which it takes out.
            total += (p * (log_p - log_q) - p + q).sum()
            if gradient_NV is not None:
                gradient_NV[here] = (q - p) / temperature
        if wanted:
            ctx.save_for_backward(gradient_NV)
        return total

    @staticmethod
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (gradient_NV,) = ctx.saved_tensors
        return gradient_NV * outputs[0].to(gradient_NV.dtype), None, None


def _chunks(rows: int, width: int) -> Sequence[tuple[int, int]]:
    """(first row, rows) of each part."""
    most = max(1, _CHUNK // max(1, width))
    return [(start, min(most, rows - start)) for start in range(0, rows, most)]
