"""The training loop that both pretraining runs share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["optimize"]


def optimize(
    parameters: list[Any],
    loss_at: Callable[[int], dict[str, Any]],
    steps: int,
    peak_lr: float,
    weight_decay: float,
    title: str,
) -> list[dict[str, float]]:
    """AdamW with a cosine schedule and 5 % warm-up; returns the named losses, averaged over each tenth of the run.

    Args:
        parameters: The tensors to train. Matrices decay, vectors (norms, biases) do not.
        loss_at: From the step to its named losses; their sum is minimized.
        steps: Optimizer steps.
        peak_lr: Learning rate at the end of the warm-up.
        weight_decay: AdamW's decoupled decay.
        title: Shown at the progress bar.
    """
    import torch
    from tqdm import tqdm

    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=peak_lr, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / warmup, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))),
    )
    history: list[dict[str, float]] = []
    window: list[dict[str, float]] = []
    for step in (progress := tqdm(range(steps), desc=title, mininterval=5.0)):
        losses = loss_at(step)
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        window.append({name: float(value.detach()) for name, value in losses.items()})
        if (step + 1) % max(1, steps // 10) == 0:
            history.append(
                {"step": step + 1}
                | {name: round(sum(entry[name] for entry in window) / len(window), 4) for name in losses}
            )
            progress.set_postfix({name: value for name, value in history[-1].items() if name != "step"})
            window = []
    return history
