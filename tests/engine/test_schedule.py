"""The learning rate as a function of the step."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.config.schema import TrainConfig
from bridge_ds.engine.schedule import learning_rate, set_learning_rate


@given(st.integers(1, 500), st.floats(0, 1), st.sampled_from(["cosine", "linear", "constant"]))
def test_it_rises_to_the_peak_and_never_exceeds_it(steps: int, warmup: float, schedule: str) -> None:
    config = TrainConfig(steps=steps, warmup_ratio=warmup, schedule=schedule, lr=2.0)
    rates = [learning_rate(config, step) for step in range(1, steps + 1)]
    top = round(warmup * steps)
    assert all(0 < rate <= 2.0 + 1e-12 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert max(rates) == pytest.approx(2.0)


def test_known_values() -> None:
    config = TrainConfig(steps=10, warmup_ratio=0.2, schedule="linear", lr=1.0)
    assert [learning_rate(config, step) for step in (1, 2, 3, 7)] == pytest.approx([0.5, 1.0, 1.0, 0.5])
    cosine = TrainConfig(steps=10, warmup_ratio=0.0, lr=1.0)
    assert learning_rate(cosine, 6) == pytest.approx(0.5)
    assert learning_rate(TrainConfig(steps=10, warmup_ratio=0.0, schedule="constant", lr=1.0), 10) == 1.0


def test_each_group_has_its_share() -> None:
    groups = [{"lr": 0.0, "lr_scale": 1.0}, {"lr": 0.0, "lr_scale": 0.25}]
    set_learning_rate(groups, 0.4)
    assert [group["lr"] for group in groups] == [0.4, 0.1]
