"""The LLM where all of it is trained: what a frozen one computes, gradients everywhere, a shared weight once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bridge_ds.config.load import load_config
from bridge_ds.config.schema import LlmConfig, ModelConfig
from bridge_ds.errors import ConfigError
from bridge_ds.llm.base import LLM
from bridge_ds.llm.frozen import FrozenLLM, load_llm
from bridge_ds.llm.loss import nll_sum
from tests import tiny

IDS = torch.randint(3, 200, (2, 6), generator=torch.Generator().manual_seed(0))
PLACES = torch.tensor([1, 4, 8])
KINDS = ("llama", "tied", "gpt2", "gemma2")  # the last three share embeddings and head


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("llms")
    found = {kind: tiny.make_llm(kind, root / kind) for kind in KINDS if kind != "tied"}
    return found | {"tied": tiny.make_llm("llama", root / "tied", tie_word_embeddings=True)}


def load(folder: Path, dtype: str = "float32", recompute: bool = False, **options: bool) -> LLM:
    model = ModelConfig(llm=str(folder), dtype=dtype, activation_checkpointing=recompute)
    return load_llm(model, LlmConfig(trainable=True, **options)).train()


def logits(llm: LLM) -> torch.Tensor:
    return llm.logits_at(llm.embed(IDS), PLACES, use_cache=False)[0]


def gradients(llm: LLM) -> dict[str, torch.Tensor]:
    llm.zero_grad()
    nll_sum(logits(llm), torch.tensor([5, 6, 7])).backward()
    return {name: p.grad.clone() for name, p in llm.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_llm_computes_what_a_frozen_one_does_and_all_of_it_has_a_gradient(
    folders: dict[str, Path], kind: str
) -> None:
    frozen = load_llm(ModelConfig(llm=str(folders[kind]), dtype="float32"), LlmConfig())
    assert isinstance(frozen, FrozenLLM) and not frozen.trained and frozen.original
    llm = load(folders[kind])
    assert torch.equal(logits(llm), logits(frozen)) and not llm.original
    found = gradients(llm)
    assert set(found) == llm.trained == {name for name, _ in llm.named_parameters()}
    table, head = llm.model.get_input_embeddings().weight, llm.model.get_output_embeddings().weight
    assert (table is head) == (kind != "llama")
    assert sum(p is table for p in llm.parameters()) == 1  # one parameter, however often it is used
    saving = load(folders[kind], recompute=True)
    assert torch.equal(logits(saving), logits(frozen))
    for name, gradient in gradients(saving).items():
        assert torch.allclose(gradient, found[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("kind", ["llama", "tied"])
def test_without_its_embeddings_a_shared_head_stays_too(folders: dict[str, Path], kind: str) -> None:
    llm = load(folders[kind], train_embeddings=False)
    names = {name for name, _ in llm.named_parameters()}
    assert names - llm.trained == {"model.model.embed_tokens.weight"} and set(gradients(llm)) == llm.trained
    assert ("model.lm_head.weight" in llm.trained) == (kind == "llama")


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_for_products_only_also_in_generate(folders: dict[str, Path], kind: str) -> None:
    llm, exact = load(folders[kind], "bfloat16"), load(folders[kind])
    assert llm.embed(IDS).dtype == logits(llm).dtype == torch.bfloat16
    expected = gradients(exact)
    for name, gradient in gradients(llm).items():
        assert gradient.dtype == torch.float32
        assert (gradient - expected[name]).norm() < 0.08 * expected[name].norm() + 1e-4, name
    llm.eval()
    with torch.no_grad():
        embeds = llm.embed(IDS)
        mask = torch.ones_like(IDS)
        written = llm.model.generate(inputs_embeds=embeds, attention_mask=mask, max_new_tokens=3, do_sample=False)
        first = llm.logits_at(embeds, torch.tensor([5, 11]))[0].argmax(-1)
    assert torch.equal(written[:, 0], first)


def test_dropout_runs_where_it_is_asked_for_and_in_training_only(folders: dict[str, Path]) -> None:
    for recompute in (False, True):
        plain, dropping = (
            load(folders["gpt2"], recompute=recompute),
            load(folders["gpt2"], "float32", recompute, dropout=True),
        )
        assert torch.equal(logits(plain), logits(plain)) and not torch.equal(logits(dropping), logits(dropping))
        assert torch.equal(logits(dropping.eval()), logits(plain))


def test_the_llm_alone_is_refused_once_it_is_trained(folders: dict[str, Path]) -> None:
    llm = load(folders["llama"])
    with llm.without_adapters(False):
        pass
    with pytest.raises(ConfigError, match=r"trained the LLM itself \(llm.trainable\)"), llm.without_adapters():
        pass
    with pytest.raises(ConfigError, match=r"lora.rank is 2 and llm.trainable is true"):
        load_config("testbed", ["lora.rank=2", "llm.trainable=true"])
