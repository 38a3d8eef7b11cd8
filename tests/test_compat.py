"""Each of these fails when a workaround in bridge_ds/compat is no longer needed (others are tested where they work)."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path

import torch


def test_deepspeed_imports_mlflow() -> None:
    spec = importlib.util.find_spec("deepspeed")
    assert spec and spec.origin
    assert "import mlflow" in (Path(spec.origin).parent / "autotuning" / "autotuner.py").read_text(encoding="utf-8")


def test_torch_has_no_public_function_for_the_timeout_of_a_group() -> None:
    public = [name for name in dir(torch.distributed) if "timeout" in name and not name.startswith("_")]
    assert not [name for name in public if callable(getattr(torch.distributed, name))]


def test_transformers_recomputes_in_training_mode_only() -> None:
    from transformers.modeling_layers import GradientCheckpointingLayer

    assert "self.gradient_checkpointing and self.training" in inspect.getsource(GradientCheckpointingLayer)
