"""Trained biases of a frozen LLM (`lora.bias`): peft's are the reference; float32, left out, merged."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from bridge_ds.config.load import load_config
from bridge_ds.config.schema import LoraConfig
from bridge_ds.errors import ConfigError
from bridge_ds.llm.frozen import FrozenLLM
from bridge_ds.llm.lora import add_lora, merge_lora
from tests import tiny

KINDS = [("qwen2", "all"), ("qwen2", "lora_only"), ("gpt2", "all"), ("gpt2", "lora_only")]
TARGETS = {"qwen2": ("q_proj", "up_proj"), "gpt2": ("c_attn",)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llms")
    return {kind: tiny.make_llm(kind, root / kind) for kind in ("qwen2", "gpt2", "llama")}


def loaded(folder: Path, dtype: torch.dtype) -> Any:
    """With biases that are not zero, as trained models have them."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    torch.manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.requires_grad_(False)


def with_biases(folder: Path, kind: str, bias: str, dtype: torch.dtype = torch.float32) -> FrozenLLM:
    llm = FrozenLLM(loaded(folder, dtype))
    add_lora(llm, LoraConfig(rank=2, alpha=4, bias=bias, targets=TARGETS[kind]), 0)
    return llm


def move(llm: FrozenLLM) -> None:
    """As if trained a little."""
    torch.manual_seed(6)
    with torch.no_grad():
        for name, parameter in llm.named_parameters():
            if name in llm.trained:
                parameter.add_(0.2 * torch.randn_like(parameter))


def logits(model: Any) -> torch.Tensor:
    return model(input_ids=torch.tensor([[5, 6, 7, 9]])).logits


def ours(name: str) -> str:
    """Our name of one of peft's parameters."""
    return "model." + (name[: -len("bias")] + "trained_bias" if name.endswith("bias") else name)


@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_the_trained_biases_are_pefts_with_their_gradients(folders: dict[str, Path], kind: str, bias: str) -> None:
    llm = with_biases(folders[kind], kind, bias)
    plain = loaded(folders[kind], torch.float32)
    config = peft.LoraConfig(
        r=2, lora_alpha=4, bias=bias, target_modules=list(TARGETS[kind]), task_type="CAUSAL_LM"
    )  # fmt: skip
    peft.inject_adapter_in_model(config, plain)
    theirs = {ours(name): p for name, p in plain.named_parameters() if p.requires_grad}
    mine = {name: p for name, p in llm.named_parameters() if p.requires_grad}
    assert mine.keys() == theirs.keys() == llm.trained
    assert any("trained_bias" in name for name in mine)
    move(llm)
    with torch.no_grad():
        for name, parameter in theirs.items():
            parameter.copy_(mine[name])
    found, expected = logits(llm.model), logits(plain)
    assert torch.allclose(found, expected, atol=1e-6)
    upstream = torch.randn_like(found)
    (found * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for name, parameter in theirs.items():
        assert parameter.grad is not None and mine[name].grad is not None, name
        assert torch.allclose(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "bias"), KINDS)
def test_trained_biases_are_float32_are_left_out_and_merge_exactly(
    folders: dict[str, Path], kind: str, bias: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    plain = loaded(folders[kind], dtype)
    frozen = {name: p.clone() for name, p in plain.named_parameters()}
    llm = with_biases(folders[kind], kind, bias, dtype)
    assert {p.dtype for name, p in llm.named_parameters() if name in llm.trained} == {torch.float32}
    with torch.no_grad():
        before = logits(plain)
        assert torch.equal(logits(llm.model), before), "nothing is trained yet"
        move(llm)
        after = logits(llm.model)
        assert not torch.allclose(after, before, atol=0.05)
        with llm.without_adapters():
            assert torch.equal(logits(llm.model), before)
        assert torch.equal(logits(llm.model), after)

        biases = {name: p.clone() for name, p in llm.named_parameters() if "trained_bias" in name}
        merged = merge_lora(llm)
        assert torch.allclose(logits(merged), after, atol=1e-5 if dtype == torch.float32 else 0.2)
        merged.save_pretrained(tmp_path)
        again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert torch.equal(logits(again), logits(merged))
    values = dict(again.named_parameters())
    assert values.keys() == frozen.keys() and not llm.trained
    for name, value in biases.items():
        own = name.removeprefix("model.").replace(".base_layer.", ".").replace("trained_bias", "bias")
        assert torch.equal(values[own], value.to(dtype)), name


def test_an_llm_without_the_biases_that_are_to_be_trained_is_refused(folders: dict[str, Path]) -> None:
    for bias, kind, targets in (
        ("all", "llama", ()), ("lora_only", "llama", ()), ("lora_only", "qwen2", ("up_proj",)),
    ):  # fmt: skip
        llm = FrozenLLM(loaded(folders[kind], torch.float32))
        with pytest.raises(ConfigError, match=f"lora.bias is {bias}, and the LLM has no"):
            add_lora(llm, LoraConfig(rank=2, bias=bias, targets=targets), 0)
    with pytest.raises(ConfigError, match=r"lora\.bias is all and lora.rank 0"):
        load_config("testbed", ["lora.bias=all"])


def with_adapter(folder: Path, adapter: Path) -> Path:
    """The model's folder with an adapter that changes what it writes."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    config = peft.LoraConfig(r=2, init_lora_weights=False, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained(adapter)
    shutil.copytree(folder, adapter, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))
    return adapter


def test_an_llm_with_an_adapter_of_its_own_is_refused_and_not_replaced(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    llm = FrozenLLM(loaded(with_adapter(folders["llama"], tmp_path / "adapted"), torch.float32))
    before = logits(llm.model)
    assert not torch.equal(before, logits(loaded(folders["llama"], torch.float32)))
    with pytest.raises(ConfigError, match=r"lora\.rank is 2, and the folder of the LLM holds an adapter"):
        add_lora(llm, LoraConfig(rank=2), 0)
    assert torch.equal(logits(llm.model), before)
