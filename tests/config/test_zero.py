"""What a DeepSpeed file leaves open: ranks of a node, and how far ahead is gathered."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from bridge_ds.compat.deepspeed import hpz_group_is_reused
from bridge_ds.config.load import load_config
from bridge_ds.config.zero import accumulation, fill_sizes, gather_sizes, hpz_size, read_ds_config, resolve_hpz
from bridge_ds.errors import ConfigError, LaunchError
from bridge_ds.plan.shapes import LLMS


def hpz(size: object) -> dict[str, object]:
    return {"zero_optimization": {"stage": 3, "zero_hpz_partition_size": size}}


def test_the_second_copy_is_held_by_a_node() -> None:
    shipped = read_ds_config("zero3_hpz.json")
    sizes = {(32, 8): 8, (32, 4): 4, (4, 2): 2}
    for (ranks, local), size in sizes.items():
        assert hpz_size(resolve_hpz(shipped, ranks, local)) == size
    # One node, or one rank a node: DeepSpeed's 1, which is none.
    assert hpz_size(resolve_hpz(shipped, 8, 8)) == hpz_size(resolve_hpz(shipped, 4, 1)) == 1
    # A number in the file wins over the nodes.
    assert hpz_size(resolve_hpz(hpz(4), 32, 8)) == 4
    plain = read_ds_config("zero3.json")
    assert resolve_hpz(plain, 32, 8) == plain and hpz_size(plain) == 1


@pytest.mark.parametrize(
    ("size", "ranks", "local", "words"),
    [("node", 12, 8, '"node", here 8, which does not divide 12 ranks; .*(2, 3, 4, 6)'), (8, 4, 4, "is 8, .*4 ranks")],
)
def test_a_size_that_does_not_divide_the_ranks(size: object, ranks: int, local: int, words: str) -> None:
    with pytest.raises(LaunchError, match=words):
        resolve_hpz(hpz(size), ranks, local)


def test_a_share_that_is_no_whole_number_is_refused_whoever_asks_first() -> None:
    config = load_config("testbed", ["train.global_batch=32", "train.micro_batch=0"])
    assert accumulation(config, 2) == 1
    with pytest.raises(LaunchError, match="32"):
        accumulation(config, 3)


@pytest.mark.parametrize("size", [0, "8", True, 1.5, "nodes"])
def test_a_size_that_is_none(size: object, tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps(hpz(size)))
    with pytest.raises(ConfigError, match='expected 1 or more, or "node" for the ranks of a node'):
        read_ds_config(str(path))


def test_what_may_stay_open_is_said_where_auto_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    for key, words in (("stage3_max_live_parameters", "leave it out"), ("zero_hpz_partition_size", '"node"')):
        path.write_text(json.dumps({"zero_optimization": {"stage": 3, key: "auto"}}))
        with pytest.raises(ConfigError, match=words):
            read_ds_config(str(path))


def test_sizes_come_from_a_layer_and_a_number_in_the_file_wins() -> None:
    layer = LLMS["llama-3.1-70b"].layer
    assert list(gather_sizes(layer).values()) == [855_654_400, 2_566_963_200, 855_654_400]
    shipped = read_ds_config("zero3.json")
    assert fill_sizes(shipped, layer)["zero_optimization"] == gather_sizes(layer) | shipped["zero_optimization"]
    mine = {"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 7}}
    filled = fill_sizes(mine, layer)["zero_optimization"]
    assert (filled["stage3_max_live_parameters"], filled["stage3_prefetch_bucket_size"]) == (7, layer)
    assert fill_sizes(read_ds_config("zero2.json"), layer) == read_ds_config("zero2.json")


def test_deepspeeds_code_is_the_one_that_is_mended() -> None:
    """Fails when DeepSpeed has changed: see :func:`bridge_ds.compat.reuse_hpz_group`."""
    from deepspeed.runtime.zero.partition_parameters import Init
    from deepspeed.utils import groups

    init, create = inspect.getsource(Init.__init__), inspect.getsource(groups._create_zero_param_parallel_group)
    assert not hpz_group_is_reused(init, create)
    # As in deepspeedai/DeepSpeed#8361, and in a way that nobody knows.
    before = "        if _ds_config is not None and _ds_config.zero_config.zero_hpz_partition_size > 1"
    assert before in init
    fixed = init.replace(before, f"        there = groups._get_zero_param_intra_parallel_group()\n{before}")
    assert hpz_group_is_reused(fixed, create)
    for other in (create.replace("(group_size)", "(group_size, ranks)"), create.replace("already initialized", "here")):
        with pytest.raises(LaunchError, match=r"install deepspeed 0\.19\.8, or use zero3\.json"):
            hpz_group_is_reused(init, other)
