"""What `bridge-ds preflight` checks."""

from __future__ import annotations

import argparse
import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from bridge_ds.config import zero
from bridge_ds.config.schema import Config
from bridge_ds.errors import LaunchError
from bridge_ds.first_stage import FirstStage

__all__ = ["Subject"]


@dataclass
class Subject:
    """What is checked; the checks fill it in order."""

    options: argparse.Namespace
    config: Config = dataclasses.field(default_factory=Config)
    bases: dict[str, Any] = dataclasses.field(default_factory=dict)
    """transformers configs of the base models whose check passed."""
    step: int | None = None
    """Of the checkpoint that the run goes on from; None = there is none."""
    first: FirstStage | None = None
    """What comes before it, or came (llm.finetune); None = nothing."""

    @property
    def ranks(self) -> int:
        """Processes of the job."""
        return int(self.options.ranks)

    @property
    def gpus(self) -> int:
        """GPUs of a node.

        Raises:
            LaunchError: the nodes do not divide the ranks.
        """
        nodes = self.options.nodes or int(os.environ.get("SLURM_JOB_NUM_NODES", "1"))
        if self.ranks % nodes:
            raise LaunchError(
                f"{self.ranks} ranks do not divide over {nodes} nodes; expected as many on each; change --ranks or "
                "--nodes (without it: the Slurm job's)."
            )
        return self.ranks // nodes

    @property
    def ds_values(self) -> dict[str, Any]:
        """The DeepSpeed file for these nodes."""
        return zero.resolve_hpz(zero.read_ds_config(self.config.run.ds_config), self.ranks, self.gpus)
