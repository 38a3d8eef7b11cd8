"""score_choices against the likelihood of each choice after its own prefix, computed alone and without a cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge_ds.config.schema import ModelConfig
from bridge_ds.inference.greedy import decode_greedily
from bridge_ds.inference.score import score_choices
from bridge_ds.llm.frozen import FrozenLLM, load_llm
from bridge_ds.llm.splice import Segment, splice
from tests import tiny

ids = st.integers(3, 40)
choices = st.lists(st.lists(ids, max_size=5), max_size=4)
rows = st.lists(st.tuples(st.lists(ids, min_size=1, max_size=7), choices), min_size=1, max_size=4)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FrozenLLM:
    folder = tiny.make_llm(request.param, tmp_path_factory.mktemp("llm") / "llm")
    return load_llm(ModelConfig(llm=str(folder), dtype="float32"))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=rows)
def test_each_choice_is_scored_as_it_is_alone(llm: FrozenLLM, rows: list[tuple[list[int], list[list[int]]]]) -> None:
    longest = max(len(prefix) for prefix, _ in rows)
    padded = torch.tensor([[*prefix, *[0] * (longest - len(prefix))] for prefix, _ in rows])
    mask = torch.arange(longest) < torch.tensor([[len(prefix)] for prefix, _ in rows])
    with torch.no_grad():
        together = splice([Segment(llm.embed(padded), mask.long())], side="left")
        scores, greedy, *_ = score_choices(llm, together, [own for _, own in rows])
        flat = [(prefix, choice) for prefix, own in rows for choice in own]
        assert len(scores) == len(greedy) == len(flat)
        for (prefix, choice), score, exact in zip(flat, scores, greedy, strict=True):
            whole = torch.tensor([prefix + choice])
            logits = llm.model(inputs_embeds=llm.embed(whole)).logits[0, len(prefix) - 1 : -1].float()
            log_p = logits.log_softmax(-1)[range(len(choice)), choice] if choice else torch.zeros(0)
            assert float(score) == pytest.approx(float(log_p.sum()), abs=1e-4)
            if choice:
                best, chosen = logits.max(-1).values, logits[range(len(choice)), choice]
                if ((best - chosen == 0) | (best - chosen > 1e-4)).all():  # no near tie
                    assert bool(exact) == bool((best == chosen).all())
            else:
                assert bool(exact)


def test_a_rank_whose_choices_have_one_token_runs_the_model_as_often_as_the_others(llm: FrozenLLM) -> None:
    """Without end tokens choices may be one token on one rank and two on another: under ZeRO-3 both must run twice."""
    calls: list[int] = []
    handle = llm.model.register_forward_hook(lambda *_: calls.append(1))
    prefix = splice([Segment(llm.embed(torch.tensor([[3, 4, 5], [6, 7, 8]])), torch.ones(2, 3).long())], side="left")
    choices = [[[9], [10]], [[11]]]
    alone = score_choices(llm, prefix, choices)
    assert len(calls) == 1
    among = score_choices(llm, prefix, choices, lambda _: True)
    handle.remove()
    assert len(calls) == 3 and llm.behavior.beside and among.read
    written = decode_greedily(llm, prefix, (), 3)
    assert decode_greedily(llm, prefix, (), 3, read=among.read) == written
    assert torch.allclose(alone[0], among[0], atol=1e-5) and torch.equal(alone[1], among[1]) and alone[2] == among[2]
