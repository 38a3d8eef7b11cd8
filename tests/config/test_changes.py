"""What a change of each setting means for a run that goes on."""

from __future__ import annotations

import dataclasses

import pytest

from bridge_ds.config.changes import (
    changes,
    file_changes,
    refuse_changed,
    refuse_other_bridge,
    refuse_unlike,
    with_places,
)
from bridge_ds.config.load import flatten, load_config, overridden
from bridge_ds.config.schema import KINDS, Config
from bridge_ds.config.schema.fields import FUNCTION, NEITHER, ORDER, TRAINING
from bridge_ds.data.loading.plan import order_of
from bridge_ds.errors import CheckpointError, ConfigError, LaunchError

NAMED = ["fusion.state_norm=rms", "data.augment_prompt=true", "model.dtype=bfloat16", "data.max_source_tokens=9"]
TOLD = ["train.lr=1", "train.betas=0.5,0.5", "train.schedule=linear", "train.max_grad_norm=2", "fusion.dropout=0.2"]


def test_every_setting_has_a_kind() -> None:
    missing = [key for key in flatten(Config()) if key not in KINDS]
    assert not missing, (
        f"{missing} in bridge_ds/config/schema have no kind: add one to the annotation of each, FUNCTION "
        "if a trained bridge computes or reads something else with another value, TRAINING if it only decides how the "
        "weights come about, ORDER if it decides which sample is at a step, NEITHER for places, speed and recording"
    )
    assert set(KINDS) == set(flatten(Config())), "a kind of a setting that is gone"
    assert set(KINDS.values()) == {FUNCTION, TRAINING, ORDER, NEITHER}


@pytest.mark.parametrize("key", [key for key, kind in KINDS.items() if kind == ORDER])
def test_a_setting_that_decides_the_order_is_in_the_state(key: str) -> None:
    windows = ["data.length_window=4"]
    old = load_config("testbed", windows)
    new = load_config("testbed", [*windows, f"{key}={2 * flatten(old)[key] or 1}"])
    assert order_of(new) != order_of(old)


def test_what_changes_the_function_is_refused_unless_named_and_the_rest_is_told() -> None:
    old = load_config("testbed")
    new = load_config("testbed", [*NAMED, *TOLD, "run.output=x", "data.workers=9", "model.llm=x", "track.every=9"])
    found = changes(old, new)
    assert {change.key for change in found} == {text.partition("=")[0] for text in [*NAMED, *TOLD]}
    names = [text.partition("=")[0] for text in NAMED]
    with pytest.raises(CheckpointError) as refused:
        refuse_changed(found, [], "step", 5)
    assert all(name in str(refused.value) for name in names) and "train.lr" not in str(refused.value)
    with pytest.raises(CheckpointError, match="state_norm 'none'"):
        refuse_changed(found, [name for name in names if name != "fusion.state_norm"], "step", 5)
    refuse_changed(found, names, "step", 5)
    with pytest.raises(CheckpointError, match=r"raise train\.steps"):
        refuse_changed(found, names, "step", 0)
    told = [change for change in found if not change.in_function]
    refuse_changed(told, [], "step", 0)
    assert [str(change) for change in told][:2] == ["fusion.dropout 0.1 -> 0.2", "train.lr 0.003 -> 1.0"]


def test_the_deepspeed_file_is_compared_by_its_content() -> None:
    old = {"zero_optimization": {"stage": 3, "reduce_bucket_size": 10}, "steps_per_print": 1}
    new = {"zero_optimization": {"stage": 2, "reduce_bucket_size": 10, "overlap_comm": True}, "steps_per_print": 1}
    assert file_changes(old, old) == []
    assert [str(change) for change in file_changes(old, new)] == [
        "run.ds_config.zero_optimization.stage 3 -> 2",
        "run.ds_config.zero_optimization.overlap_comm None -> True",
    ]
    assert not any(change.in_function for change in file_changes(old, new))


def test_names_that_may_change_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'fusion\.state_norm'"):
        load_config("testbed", ["run.allow_changes=fusion.state_nrom"])
    with pytest.raises(ConfigError, match=r"run\.allow_changes is 'run\.seed'"):
        load_config("testbed", ["run.allow_changes=run.seed"])


@pytest.mark.parametrize(
    ("before", "after", "refused"),
    [
        ([], ["fusion.state_norm=rms"], True),
        ([], ["fusion.heads=2"], True),
        (["mapping.kind=mlp"], ["mapping.kind=mlp_gelu"], True),
        (["lora.rank=4"], ["lora.rank=4", "lora.alpha=32"], True),
        ([], ["lora.rank=4", "lora.alpha=32"], False),
        ([], ["data.augment_prompt=true", "data.max_source_tokens=100", "train.lr=1"], False),
        ([], ["fusion.state_norm=rms", "run.allow_changes=fusion.state_norm"], False),
    ],
)
def test_a_run_that_begins_with_anothers_weights_has_its_bridge(
    before: list[str], after: list[str], refused: bool
) -> None:
    old, new = load_config("testbed", before), load_config("testbed", after)
    if refused:
        with pytest.raises(CheckpointError, match=r"run\.start_from leads to"):
            refuse_other_bridge(old, new, "step")
    else:
        found = refuse_other_bridge(old, new, "step")
        assert all(change.in_function for change in found) and found == [c for c in changes(old, new) if c.in_function]


def test_a_checkpoint_is_used_with_its_own_function_and_training_and_with_the_places_of_now() -> None:
    trained = load_config("testbed", ["run.seed=3"])
    now = overridden(trained, [*NAMED, *TOLD, "model.llm=moved", "evaluation.limit=3", "run.output=moved"])
    used = with_places(trained, now)
    assert (used.model.llm, used.evaluation.limit, used.run.output) == ("moved", 3, "moved")
    assert changes(trained, used) == []
    assert dataclasses.asdict(used)["fusion"] == dataclasses.asdict(trained)["fusion"]


def test_ranks_with_other_settings_are_refused_and_files_of_a_node_are_not() -> None:
    ours, file = load_config("testbed"), {"zero_optimization": {"stage": 2}}
    own = ("shards=/disk1/shards", "stage_dir=/disk1", "cache_dir=/disk1/urls", "states_cache=/disk1/cache")
    own_disk = load_config("testbed", [f"data.{setting}" for setting in own])
    refuse_unlike([(ours, file)])
    mixed = [
        (load_config("testbed", [f"data.mixture=[{folder}/a=1, {folder}/b={weight}]"]), file)
        for folder, weight in (("/disk0", 2), ("/disk1", 2), ("/disk0", 3))
    ]
    refuse_unlike(mixed[:2])
    with pytest.raises(LaunchError, match=r"rank 2 was started with data\.mixture"):
        refuse_unlike(mixed)
    refuse_unlike([(ours, file), (own_disk, dict(file)), (ours, file)])
    for key, value in {"model.llm": "run/finetune/llm", "run.output": "elsewhere", "checkpoint.every": 7}.items():
        with pytest.raises(LaunchError, match=f"rank 2 was started with {key} {value!r}"):
            refuse_unlike([(ours, file), (ours, file), (load_config("testbed", [f"{key}={value}"]), file)])
    with pytest.raises(LaunchError, match=r"rank 1 .*run\.ds_config\.zero_optimization\.stage 3, rank 0 with 2"):
        refuse_unlike([(ours, file), (ours, {"zero_optimization": {"stage": 3}})])
