"""Each of these fails when a workaround in bridge_ds/compat is no longer needed (others are tested where they work)."""

from __future__ import annotations

import importlib.util
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests import tiny


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


def test_attention_on_a_cpu_runs_in_float32_where_a_bfloat16_llm_is_trained_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same gradient to rounding; without a gradient, and for a float32 model, nothing changes."""
    from bridge_ds.config.schema import LlmConfig, ModelConfig
    from bridge_ds.llm.frozen import load_llm

    real, dtypes = F.scaled_dot_product_attention, []

    def recorded(query: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        output = real(query, *args, **options)
        dtypes.append(output.dtype)
        return output

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    folder, gradients = tiny.make_llm("llama", tmp_path), {}
    mask = torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    for dtype in ("bfloat16", "float32"):
        llm = load_llm(ModelConfig(llm=str(folder), dtype=dtype))
        embeds = torch.randn(2, 6, llm.width, generator=torch.Generator().manual_seed(1)).to(llm.model.dtype)
        dtypes.clear()
        with torch.no_grad():
            llm.logits_at(embeds, torch.tensor([5, 11]), attention_mask=mask)
        assert dtypes == [llm.model.dtype] * 2
        for given in (None, mask):
            dtypes.clear()
            llm.logits_at(embeds.requires_grad_(), torch.tensor([5, 11]), attention_mask=given)[
                0
            ].float().sum().backward()
            assert dtypes == [torch.float32] * 2
        gradients[dtype] = embeds.grad.float()
    assert torch.allclose(gradients["bfloat16"], gradients["float32"], atol=0.05 * float(gradients["float32"].std()))
    dtypes.clear()  # all of it trained, under autocast
    llm = load_llm(ModelConfig(llm=str(folder), dtype="bfloat16"), LlmConfig(trainable=True))
    llm.logits_at(embeds.detach().bfloat16(), torch.tensor([5, 11]))
    assert dtypes == [torch.float32] * 2
