"""Findings follow from measurements alone: each fault has its name, worse is never better, nothing crashes."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge_ds.doctor.diagnose import LIMITS, diagnose
from bridge_ds.doctor.example import SoftToken, WorkedExample
from bridge_ds.doctor.measurements import BASES, Measurements
from bridge_ds.doctor.text import page

HEALTHY = Measurements(
    samples=64, loss_right=0.3, loss_shuffled=2.5, loss_none=4.0, loss_near=1.5, loss_recorded=0.35,
    gap=2.2, gap_error=0.2, near_gap=1.2, near_error=0.2, embedding_norm=2.0, soft_norm=2.8,
    soft_norm_by_position=(2.5, 3.0), end_norm=2.0, variation=0.8, variation_by_position=(0.2, 0.4), mapping_moved=0.9,
    steps=100, fusion="transformer_softmax", layer_weights=(0.6, 0.4), layer_rms=(3.0, 1.0),
)  # fmt: skip
EXAMPLE = WorkedExample("<s>", (SoftToken("▁cat", " dog", 0.3, 1.2),) * 60, "", " News</s>", " News</s>")

FAULTS: dict[str, dict[str, object]] = {
    "not_finite": {"not_finite": ("loss",), "loss_right": math.nan, "gap": math.nan, "soft_norm": math.nan},
    "llm_changed": {"changed": ("llm",)},
    "encoder_tokenizer_changed": {"changed": ("encoder_tokenizer",), "loss_right": 4.0, "gap": 0.0},
    "encoder_vocabulary": {"outside_vocabulary": ("encoder",), "loss_right": None, "gap": None, "soft_norm": None},
    "encoder_weights": {"differing_weights": ("encoder",), "gap": 0.0},
    "targets_cut": {"targets_cut": 1.0, "targets_lost": 0.6, "one_target": True, "gap": 0.0},
    "mapping_untrained": {"mapping_moved": 0.0, "gap": 0.0, "loss_right": 6.0},
    "soft_too_large": {"soft_norm": 280.0, "loss_right": 4.0, "gap": 0.0},
    "soft_too_small": {"soft_norm": 0.001},
    "soft_constant": {"variation": 0.001, "gap": 0.0},
    "dead_tokens": {"variation_by_position": (0.0, 0.0)},
    "source_unused": {"gap": 0.0, "loss_shuffled": 0.3},
    "worse_than_none": {"loss_none": 0.2},
    "above_recorded": {"loss_right": 3.0, "loss_shuffled": 5.2},
}
LOOKS: dict[str, dict[str, object]] = {
    "targets_cut": {"targets_cut": 0.05, "targets_lost": 0.01},
    "dead_tokens": {"variation_by_position": (0.0, 0.4)},
    "source_unused": {"gap": 0.0, "augmented": True},
    "details_unused": {"near_gap": 0.1, "loss_near": 0.4},
    "sources_cut": {"sources_cut": 0.5},
    "prompts_cut": {"prompts_cut": 0.5},
    "unknown_tokens": {"unknown": 0.3},
    "one_layer": {"layer_weights": (0.999, 0.001)},
    "note": {"notes": ("Checkpoint skipped: it is torn",)},
}


def changed(**values: object) -> Measurements:
    return dataclasses.replace(HEALTHY, **values)  # type: ignore[arg-type]


def test_a_healthy_run_has_no_findings() -> None:
    assert diagnose(HEALTHY) == []
    assert diagnose(Measurements(fusion="last_layer", layer_weights=(0.0, 1.0))) == [], "nothing measured, nothing said"


@pytest.mark.parametrize("code", FAULTS)
def test_each_fault_is_named_first(code: str) -> None:
    first, *_ = diagnose(changed(**FAULTS[code]))
    assert (first.code, first.wrong) == (code, True)
    assert first.what.endswith(".") and first.advice.endswith(".")


@pytest.mark.parametrize("code", LOOKS)
def test_what_may_be_meant_is_worth_a_look_and_no_more(code: str) -> None:
    findings = diagnose(changed(**LOOKS[code]))
    assert [(finding.code, finding.wrong) for finding in findings] == [(code, False)]


@given(names=st.lists(st.sampled_from(sorted(FAULTS)), min_size=1, max_size=5, unique=True), looks=st.booleans())
def test_causes_come_before_symptoms_and_wrong_before_the_rest(names: list[str], looks: bool) -> None:
    values: dict[str, object] = dict(LOOKS["unknown_tokens"]) if looks else {}
    for name in names:
        values |= FAULTS[name]
    findings = diagnose(changed(**values))
    assert [f.wrong for f in findings] == sorted((f.wrong for f in findings), reverse=True)
    order = [code for code in FAULTS if code in {f.code for f in findings if f.wrong}]
    groups = {"changed": 1, "vocabulary": 1, "weights": 1, "large": 4, "small": 4, "constant": 5, "dead": 5}
    ranks = [next((g for word, g in groups.items() if word in code), None) for code in order]
    known = [rank for rank in ranks if rank is not None]
    assert known == sorted(known)


@given(size=st.floats(1e-6, 1e6))
def test_the_size_is_wrong_outside_its_limits_only(size: float) -> None:
    codes = {finding.code for finding in diagnose(changed(soft_norm=size * 2.0))}
    near = any(math.isclose(size, limit) for limit in (LIMITS.smallest, LIMITS.largest))
    assert near or bool(codes) == (not LIMITS.smallest <= size <= LIMITS.largest)


@given(gap=st.floats(-5, 5), error=st.floats(0, 3), worse=st.floats(0, 3))
def test_a_smaller_gap_is_never_healthier(gap: float, error: float, worse: float) -> None:
    def unused(value: float) -> bool:
        return any(finding.code == "source_unused" for finding in diagnose(changed(gap=value, gap_error=error)))

    assert unused(gap - worse) or not unused(gap)


NUMBERS = st.one_of(st.none(), st.floats())


@given(
    values=st.fixed_dictionaries(
        {
            name: NUMBERS
            for name in ("loss_right", "loss_shuffled", "loss_none", "loss_near", "loss_recorded", "gap", "gap_error",
                         "near_gap", "near_error", "soft_norm", "embedding_norm", "end_norm", "variation",
                         "mapping_moved")
        }
    ),
    places=st.lists(st.floats(), max_size=4),
    parts=st.sets(st.sampled_from(BASES)),
)  # fmt: skip
def test_any_numbers_make_a_page(values: dict[str, float | None], places: list[float], parts: set[str]) -> None:
    m = changed(**values, variation_by_position=tuple(places), layer_weights=tuple(places), changed=tuple(parts))
    findings = diagnose(m)
    text = page("run", m, findings, EXAMPLE)
    assert all(f.what.split()[0] in text for f in findings)
    assert max(map(len, text.splitlines())) <= 112 and "... 20 more" in text


def test_a_page_says_the_verdict_first() -> None:
    assert page("run", HEALTHY, [], None).startswith("run, 64 training samples: healthy")
    m = changed(**FAULTS["soft_too_large"])
    first, _, third, *_ = page("run", m, diagnose(m), EXAMPLE).splitlines()
    assert "wrong" in first and third.startswith("WRONG  A soft vector is 140 times")
