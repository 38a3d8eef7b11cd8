"""Every class of LLM that transformers has either works behind a bridge, exactly, or is refused before it is loaded."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from bridge_ds.config.schema import ModelConfig
from bridge_ds.errors import ConfigError
from bridge_ds.inference.greedy import decode_greedily
from bridge_ds.inference.score import score_choices
from bridge_ds.llm.frozen import FrozenLLM, load_llm
from bridge_ds.llm.splice import Segment, Spliced, splice
from bridge_ds.llm.support import Behavior, behavior_of, check_llm
from bridge_ds.llm.tiny_copy import llm_class, tiny_copy
from tests import tiny

CAUSAL = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING)
SHARED = "llama", "gpt2", "gemma2", "gemma3"
"""Families whose cache is shared by the choices of a sample."""
ANEW = "lfm2", "bamba", "mamba", "mamba2", "jamba", "falcon_h1"
"""Families whose cache is not."""
SETTINGS: dict[str, dict[str, Any]] = {
    "lfm2": {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "bamba": {"attn_layer_indices": [1]},
}
"""Of a config, where its defaults have no layer of one of the kinds that the published models have."""
REFUSED = {
    "gemma3n_text": "reads its token ids beside the embeddings",
    "gemma4_text": "cannot be run on embeddings without token ids",
    "bert": "lets a position attend to later ones",
    "bart": "is an encoder with a decoder",
    "cpmant": "takes no embeddings",
    "rwkv": "generates otherwise in a batch",
    "recurrent_gemma": "generates otherwise in a batch",
    "openai-gpt": "does not generate after embeddings",
}
LONG = bool(os.environ.get("BRIDGE_DS_LONG"))


def known(names: Any) -> list[str]:
    """Those that this version of transformers has."""
    return [name for name in names if name in CAUSAL]


@pytest.fixture(autouse=True)
def no_deprecated_name_of_the_cache() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(past_key_values|cache_params).*")
        yield


def llm_of(family: str) -> FrozenLLM:
    config = CONFIG_MAPPING[family](**SETTINGS.get(family, {}))
    behavior = behavior_of(family, config)
    llm = FrozenLLM(tiny_copy(*llm_class(config, family)))
    llm.behavior = behavior
    return llm


def likelihood(llm: FrozenLLM, embeds: torch.Tensor, ids: list[int]) -> tuple[float, torch.Tensor]:
    """Of ids after a prefix [X, H], alone and without a cache, and the logits."""
    whole = torch.cat([embeds[None], llm.embed(torch.tensor([ids]))], dim=1)
    logits = llm.model(inputs_embeds=whole.clone(), use_cache=False).logits[0, len(embeds) - 1 :].float()
    return float(logits[:-1].log_softmax(-1)[range(len(ids)), ids].sum()), logits


def compare(llm: FrozenLLM) -> None:
    """Scores, greedy decoding and gradients of a padded batch with each row alone."""
    draw = torch.Generator().manual_seed(3)
    ids = torch.randint(8, 100, (2, 7), generator=draw)
    soft = torch.randn(2, 4, llm.width, generator=draw) * llm.embed(ids).std()
    mask = torch.tensor([[1] * 4, [0, 0, 1, 1]])
    rows = [torch.cat([soft[row][mask[row].bool()], llm.embed(ids[row])]) for row in (0, 1)]
    prefix: Spliced = splice([Segment(soft, mask), Segment(llm.embed(ids), torch.ones_like(ids))], side="left")
    choices = [[[11, 12, 13], [14]], [[15, 16], [17, 18, 19], [20]]]
    with torch.no_grad():
        scored = score_choices(llm, prefix, choices)
        found = scored.log_p.tolist()
        alone = [likelihood(llm, rows[row], choice)[0] for row, own in enumerate(choices) for choice in own]
        assert found == pytest.approx(alone, abs=2e-2, rel=1e-3)
        written = decode_greedily(llm, prefix, (), 4)
        assert bool(scored.read) == llm.behavior.beside
        if scored.read:  # after the choices, which are in the cache too, and for some rows
            assert decode_greedily(llm, prefix.rows([1]), (), 4, read=scored.read.rows([1])) == written[1:]
        for row, answer in zip(rows, written, strict=True):
            logits = likelihood(llm, row, answer)[1][:-1]
            chosen = logits[range(4), answer]
            assert (logits.max(-1).values - chosen).max() < 1e-2, "greedy is the argmax without a cache"
    given = rows[0][None].clone().requires_grad_()
    llm.logits_at(given * 1.0, torch.arange(3), use_cache=False)[0].logsumexp(-1).sum().backward()
    assert given.grad is not None and given.grad[0, 0].abs().sum() > 0


@pytest.mark.parametrize("family", known(SHARED + ANEW))
def test_a_family_that_is_accepted_scores_and_writes_as_it_does_alone(family: str) -> None:
    llm = llm_of(family)
    assert llm.behavior.reuse == (family in SHARED)
    assert llm.behavior.beside == (family in ("llama", "gpt2"))  # the others have layers with a window
    compare(llm)
    llm.behavior = Behavior(steps=False, reuse=False)  # what is done of a class that nothing is known of
    compare(llm)


@pytest.mark.parametrize("family", known(REFUSED))
def test_a_family_that_does_not_fit_is_refused_with_the_reason(family: str) -> None:
    with pytest.raises(ConfigError, match=f"model.llm 'some/model' .*{REFUSED[family]}.*expected a decoder-only"):
        check_llm("some/model", CONFIG_MAPPING[family]())


def test_a_random_number_drawn_after_a_check_is_what_it_was_before() -> None:
    torch.manual_seed(4)
    expected = torch.rand(1)
    torch.manual_seed(4)
    check_llm("x", CONFIG_MAPPING["mistral"](num_hidden_layers=3))
    assert torch.equal(torch.rand(1), expected)


def test_loading_an_llm_refuses_it_before_its_weights_are_read(tmp_path: Path) -> None:
    CONFIG_MAPPING["bert"]().save_pretrained(tmp_path)  # and no weights at all
    with pytest.raises(ConfigError, match="lets a position attend to later ones"):
        load_llm(ModelConfig(llm=str(tmp_path), dtype="float32"))
    plain = load_llm(ModelConfig(llm=str(tiny.make_llm("llama", tmp_path / "llama")), dtype="float32"))
    assert plain.behavior.reuse and plain.behavior.steps


@pytest.mark.skipif(not LONG, reason="minutes: BRIDGE_DS_LONG=1")
@pytest.mark.parametrize("family", sorted(CAUSAL))
def test_every_family_of_transformers_works_or_is_refused(family: str) -> None:
    try:
        config = CONFIG_MAPPING[family]()
        kind, text = llm_class(config, family)
    except Exception as error:
        pytest.skip(f"its default config is none: {error}")
    try:
        check_llm(family, config)
    except ConfigError:
        return
    try:
        tiny_copy(kind, text)(input_ids=torch.full((1, 4), 9))
    except Exception as error:
        pytest.skip(f"there is no tiny copy of it: {error}")
    compare(llm_of(family))
