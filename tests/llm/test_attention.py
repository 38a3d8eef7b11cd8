"""What stands beside the text of an attention layer is attended to as the text itself is, in every family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Gemma4ForCausalLM, Gemma4TextConfig, LlamaConfig, LlamaForCausalLM

from bridge_ds.errors import ConfigError
from bridge_ds.injection.base import Injected
from bridge_ds.llm.attention import AttentionLayers, recorded
from tests import tiny

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3", "olmo2", "olmo3", "opt")


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tiny.make_llm(request.param, tmp_path_factory.mktemp("attending") / request.param)
    found = AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if "norm" in name:  # as trained: at 1 a norm in the wrong place could go unseen
                parameter.copy_(torch.linspace(0.5, 1.5, parameter.numel()).view_as(parameter))
    return found


class OtherLayout(LlamaForCausalLM):
    """Its keys go through something that is no norm of theirs."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        for layer in self.model.layers:
            layer.self_attn.k_norm = nn.LayerNorm(5)


def test_a_layout_that_is_not_known_is_refused_before_training() -> None:
    model = OtherLayout(LlamaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2))
    AttentionLayers(model)
    told = "OtherLayout makes its keys and values of k_proj and v_proj in a way that is not known here; expected"
    with pytest.raises(ConfigError, match=told):
        AttentionLayers(model, projects=True)


def test_layers_without_values_of_their_own_are_refused() -> None:
    config = Gemma4TextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, head_dim=16,
        num_key_value_heads=1, global_head_dim=16, num_global_key_value_heads=1, attention_k_eq_v=True,
        layer_types=["sliding_attention", "full_attention"], hidden_size_per_layer_input=0, num_kv_shared_layers=0,
        vocab_size_per_layer_input=64,
    )  # fmt: skip
    model = Gemma4ForCausalLM(config)
    with pytest.raises(ConfigError, match="Gemma4ForCausalLM has no k_proj and v_proj in its attention"):
        AttentionLayers(model, projects=True)
    assert len(AttentionLayers(model, (0,), projects=True)) == 1


def inputs_of(module: nn.Module, found: list[torch.Tensor]) -> Any:
    return module.register_forward_pre_hook(lambda _, given: found.append(given[0].detach()))


def test_vectors_are_projected_as_the_layer_projects_its_text(model: Any) -> None:
    """At position 0, where rotation changes nothing."""
    layers = AttentionLayers(model, projects=True)
    given: list[torch.Tensor] = []
    hooks = [inputs_of(module.k_proj, given) for module in layers.modules]
    with torch.no_grad(), recorded(layers.modules) as expected:
        model(input_ids=torch.tensor([[9], [17]]), use_cache=False)
    for hook in hooks:
        hook.remove()
    count = len(layers)
    injected = Injected(torch.ones(count), torch.ones(2, 1), [(x, x) for x in given], projected=False)
    for place, (module, pair) in enumerate(zip(layers.modules, expected, strict=True)):
        found = injected.pair(place, module, given[0].device)
        torch.testing.assert_close(found[0], pair[0], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found[1], pair[1], rtol=1e-6, atol=1e-6)


def test_a_layers_own_keys_and_values_beside_it_double_what_the_last_token_gets(model: Any) -> None:
    ids = torch.arange(9, 15)[None]
    layers = AttentionLayers(model, (0,))
    (module,) = layers.modules
    outputs: list[torch.Tensor] = []
    hook = inputs_of(getattr(module, "o_proj", None) or module.out_proj, outputs)
    with torch.no_grad():
        with recorded(layers.modules) as own:
            model(input_ids=ids, use_cache=False)
        layers.set(Injected(torch.ones(1), torch.ones(1, ids.shape[1]), own, projected=True))
        model(input_ids=ids, use_cache=False)
    layers.set(None)
    hook.remove()
    alone, beside = outputs
    torch.testing.assert_close(beside[:, -1], 2 * alone[:, -1], rtol=1e-5, atol=1e-6)
