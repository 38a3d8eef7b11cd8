"""From text to label scores: tokenizers and model behind the one callable that evaluation asks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bridge_ds.bridge import BridgeModel
from bridge_ds.config.schema import Config, DataConfig
from bridge_ds.data.collate import collate
from bridge_ds.data.tokenize import Tokenizers, tokenize_sample
from bridge_ds.evaluation.score import compare
from bridge_ds.llm.score import score_labels
from bridge_ds.tasks import find_tasks
from bridge_ds.tasks.base import Example
from bridge_ds.world import World

__all__ = ["Scorer", "score_run"]


class Scorer:
    """`scorer(examples, labels) -> (scores [B, C], greedy [B, C])`, by the bridge or by the LLM alone."""

    def __init__(
        self,
        model: BridgeModel,
        tokenizers: Tokenizers,
        data: DataConfig,
        device: torch.device,
        *,
        bridge: bool,
        before_batch: Callable[[], None] | None = None,
    ) -> None:
        """Args:
        before_batch: called before each batch, on every rank.
        bridge: True = soft prompt, and the text prompt where the run has one; False = the LLM reads the source itself.
        """
        self.model, self.tokenizers, self.device, self.bridge = model, tokenizers, device, bridge
        self.before_batch = before_batch
        self.data = dataclasses.replace(data, objective="task", augment_prompt=data.augment_prompt or not bridge)

    @torch.no_grad()
    def __call__(self, examples: Sequence[Example], labels: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores of each label for each example, see :func:`bridge_ds.llm.score.score_labels`."""
        if self.before_batch:
            self.before_batch()
        rows = [
            tokenize_sample({"source": example.source, "target": labels[example.label]}, self.tokenizers, self.data)
            for example in examples
        ]
        batch = collate(rows, self.tokenizers.encoder_pad_id, self.tokenizers.pad_id).to(self.device)
        prefix = self.model.prefix(batch, use_bridge=self.bridge)
        scores, greedy = score_labels(self.model.llm, prefix, [self.tokenizers.label_ids(label) for label in labels])
        return scores.cpu(), greedy.cpu()


def score_run(
    model: BridgeModel,
    tokenizers: Tokenizers,
    config: Config,
    world: World,
    device: torch.device,
    before_batch: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Score the bridge and the LLM alone on the run's tasks: the content of evaluation.json (a collective).

    `before_batch` is called before each batch on every rank; what it raises ends the scoring.

    Raises:
        ConfigError: an unknown task or language.
        DataError: test data that cannot be had.
    """
    wanted = config.evaluation
    bridge, llm = (
        Scorer(model, tokenizers, config.data, device, bridge=with_bridge, before_batch=before_batch)
        for with_bridge in (True, False)
    )
    tasks = find_tasks(wanted.tasks)
    return compare(bridge, llm, tasks, wanted.languages, wanted.limit, wanted.batch, world)
