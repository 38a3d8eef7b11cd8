"""Every setting has bounds, and what no setting can be is one sentence before anything heavy is imported."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from pathlib import Path

import pytest
import torch
from annotated_types import Ge, Gt, Le, Lt

from bridge_ds.cli import Parser, positive
from bridge_ds.config.build import bounds, from_dict
from bridge_ds.config.ds_file import read_by_engine, without_effect
from bridge_ds.config.ds_models import check_kernels, check_with_deepspeed
from bridge_ds.config.load import load_config, load_run_config, save_config
from bridge_ds.config.schema import SECTIONS, Config, TaskConfig, TaskDataConfig, metadata
from bridge_ds.config.text import parse
from bridge_ds.config.zero import engine_config, read_ds_config, resolve_micro_batch, shard_config
from bridge_ds.entry import exit_status
from bridge_ds.errors import ConfigError
from bridge_ds.train import main as train

LEAVES = [(name, field.name) for name, section in SECTIONS.items() for field in dataclasses.fields(section)]
LEAVES += [("evaluation", "data", "TASK", field.name) for field in dataclasses.fields(TaskDataConfig)]
LEAVES += [("tasks", "TASK", field.name) for field in dataclasses.fields(TaskConfig)]


def inner(loc: tuple[str | int, ...]) -> tuple[typing.Any, ...]:
    """Type and annotations of a field, or of the elements of a list or mapping."""
    of = metadata(loc)
    if typing.get_origin(of[0]) is tuple:
        return inner((*loc, 0))
    return inner((*loc, "NAME")) if typing.get_origin(of[0]) is dict and loc[-1] != "data" else of


@pytest.mark.parametrize("loc", LEAVES, ids=".".join)
def test_every_number_has_a_least_and_a_most_and_every_text_is_one_that_files_hold(loc: tuple[str, ...]) -> None:
    of = inner(loc)
    if of[0] in (int, float):
        assert any(isinstance(bound, Ge | Gt) for bound in of) or loc == ("run", "hang_seconds"), of
        assert any(isinstance(bound, Le | Lt) for bound in of) and bounds(of), of
        least = min(getattr(bound, "ge", getattr(bound, "gt", 0)) for bound in of[1:])
        most = min(getattr(bound, "le", getattr(bound, "lt", float("inf"))) for bound in of[1:])
        for wrong in (least - 1, most * 2 + 1, float("inf"), float("nan"), 10**400):
            value: typing.Any = [wrong, wrong] if loc[1] == "betas" else wrong
            for part in reversed(loc):
                value = {part: value}
            with pytest.raises(ConfigError):
                from_dict(value)
    elif of[0] is str:
        for wrong in ("a\0b", "a\ud800b", "a" * 100_001):
            outer = metadata(loc)[0]
            value = [wrong] if typing.get_origin(outer) is tuple else wrong
            value = {"premise": wrong} if typing.get_origin(outer) is dict else value
            for part in reversed(loc):
                value = {part: value}
            with pytest.raises(ConfigError, match=r"NUL|not UTF-8|at most"):
                from_dict(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("data.workers=1000", "data.workers is 1000; expected from 0 to 128"),
        ("fusion.feedforward=1e18", "fusion.feedforward is 1e18; expected from 1 to 262,144"),
        ("checkpoint.keep_last=1e10", "expected from 0 to 1,000,000,000"),
        ("run.seed=9223372036854775808", "expected from 0 to 9,223,372,036,854,775,807"),
        ("run.hang_seconds=.inf", "run.hang_seconds is .inf; expected a finite number"),
        ("data.cache_gib=.nan", "data.cache_gib is .nan; expected a finite number"),
        ("train.steps=" + "9" * 5000, "(5,002 characters)"),
        ("run.output=" + "a" * 256, "expected names of at most 255 bytes"),
        ("run.output=\0", "with the character NUL at position 1"),
        ("track.name=\udcff", "not UTF-8 at position 1"),
        (
            'evaluation.data={xnli: {fields: {"\\0": b}}}',
            "evaluation.data.xnli.fields has the key '\\x00', with the character NUL",
        ),
        ('evaluation.data={"x\\0": {source: f}}', "evaluation.data has the key 'x\\x00', with the character NUL"),
        ("mapping.head_width=4096 & mapping.heads=1024", "mapping.heads 1024 x mapping.head_width 4096 is more than"),
        ("data.length_window=1000000 & train.global_batch=1000", "samples, whose lengths are all in memory"),
        (".".join("a" * 5000) + "=1", "is not of the form part.key=value"),
        ("run.allow_changes=x", "expected one of model.dtype"),
        ("train.lr=[" * 3000, "train.lr is"),
    ],
)
def test_settings_that_no_run_could_use(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config("testbed", text.split(" & "))
    assert words in str(caught.value) and len(str(caught.value)) <= 600 and str(caught.value).isprintable()


def test_the_largest_seed_is_one_that_torch_takes() -> None:
    import torch

    seed = load_config("testbed", ["run.seed=9223372036854775807"]).run.seed
    torch.manual_seed(((seed * 1_000_003 + 10**9) * 65_537 + 10**6) % 2**63)
    torch.manual_seed(seed)


def test_a_seed_of_64_bits_trains(tmp_path: Path) -> None:
    import numpy as np

    from bridge_ds.data.sampling.order import permute

    assert sorted(permute(np.arange(10), 10, 2**63 - 1, 3)) == list(range(10))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: &a [*a]", "leads back to the value that it is in"),
        (
            "".join(f"k{n}: &k{n} [{', '.join([f'*k{n - 1}' if n else 'x'] * 9)}]\n" for n in range(9)),
            "more than 100,000",
        ),
        ("[" * 1000, "nested more than 20 deep"),
        ("a: !!binary aGk=", "has no use here"),
        ("a: !!timestamp 2001-99-99", "has no use here"),
        ("a: !!python/object/apply:os.system [x]", "has no use here"),
        ('a: "\\U00110000"', "not in range"),
        ("? [a]\n: b", "unhashable"),
        ("null: b", "the key None is not text"),
        ("a: 1\n'a': 2", "given twice"),
    ],
)
def test_yaml_that_no_recipe_needs(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_config(str(tmp_path / "r.yaml"))
    assert len(str(caught.value)) <= 600


def test_scalars_with_a_tag_are_read_by_the_schema() -> None:
    assert parse("a: !!int abc\nb: !!float '1'\n1: 2001-99-99\n<<: {c: d}") == {
        "a": "abc", "b": "1", "1": "2001-99-99", "c": "d"
    }  # fmt: skip


def test_recipes_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"#" * (2**20 + 1))
    (tmp_path / "binary").write_bytes(bytes(range(256)))
    (tmp_path / "folder").mkdir()
    for n in range(30):
        (tmp_path / f"{n}.yaml").write_text(f"base: {n + 1}.yaml\n")
    (tmp_path / "30.yaml").write_text("")
    for name, words in (
        (str(tmp_path / "pipe"), "is a pipe or a device"), ("/dev/zero", "is a pipe or a device"),
        (str(tmp_path / "large"), "larger than 1 MiB"), (str(tmp_path / "binary"), "UTF-16|not UTF-8"),
        (str(tmp_path / "folder"), "no recipe"), ("a" * 5000, "no recipe"), ("\0", "no recipe"),
        ("/proc/self/mem", "cannot be read"), (str(tmp_path / "0.yaml"), "a base that has a base, 20 times"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words) as caught:
            load_config(name)
        assert len(str(caught.value)) <= 600
        if name.startswith("/"):
            (tmp_path / "ds.yaml").write_text("")
            with pytest.raises(ConfigError):
                read_ds_config(name)


@pytest.mark.parametrize("text", ["\x85", "a\u2028b", "\ufeffx", "a\r\nb", " \n x: #", "\x7f\x1b", "😀"])
def test_a_recorded_text_is_read_back_as_it_was(tmp_path: Path, text: str) -> None:
    config = from_dict({"track": {"name": text}})
    save_config(config, tmp_path / "config.yaml")
    assert load_run_config(tmp_path) == config


ZERO = {"stage": 3}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"step_per_print": 1}, "'step_per_print', which DeepSpeed does not know; did you mean steps_per_print?"),
        ({"steps_per_print": 0}, "steps_per_print = 0; expected a whole number from 1"),
        ({"wall_clock_breakdown": "yes"}, "wall_clock_breakdown = 'yes'; expected true or false"),
        ({"communication_data_type": "fp8"}, "expected one of fp32, fp16, bf16"),
        ({"tensorboard": {"enabled": True}}, "sets tensorboard, which has no use here, for track.to"),
        ({"tensorboard": {"output_path": "x"}}, "sets tensorboard, which has no use here"),
        ({"gradient_predivide_factor": True}, "sets gradient_predivide_factor"),
        ({"_comment": "ours"}, "'_comment', which DeepSpeed does not know; expected keys such as"),
        ({"zero_optimization": ZERO | {"cpu_offload": True}}, "sets zero_optimization.cpu_offload"),
        ({"tensor_parallel": {"autotp_size": 2}}, "sets tensor_parallel, which has no use here"),
        ({"fp16": {}, "bf16": {}}, "set model.dtype"),
        ({"aio": {"block_size": "x"}}, "aio.block_size = 'x'; expected a whole number"),
        ({"zero_optimization": [1]}, "zero_optimization = [1]; expected an object"),
        ({"zero_optimization": ZERO | {"stage": 3.0}}, "stage = 3.0; expected 2 or 3"),
        ({"zero_optimization": ZERO | {"stage": True}}, "stage = True; expected 2 or 3"),
        ({"zero_optimization": ZERO | {"reduce_bucket_size": 1e18}}, "at most 10,000,000,000"),
        ({"zero_optimization": ZERO | {"sub_group_size": float("nan")}}, "sub_group_size = nan"),
        ({"zero_optimization": ZERO | {"overlap_com": True}}, "did you mean overlap_comm?"),
        ({"zero_optimization": ZERO | {"max_live_parameters": 5}}, "did you mean stage3_max_live_parameters?"),
        ({"zero_optimization": ZERO | {"overlap_comm": "true"}}, "overlap_comm = 'true'; expected true or false"),
        ({"zero_optimization": ZERO | {"offload_param": {"device": "disk"}}}, "expected one of none, cpu, nvme"),
        ({"zero_optimization": ZERO | {"offload_param": {"device": "nvme"}}}, "no nvme_path"),
        ({"zero_optimization": ZERO | {"offload_param": "cpu"}}, "offload_param = 'cpu'; expected an object"),
        ({"zero_optimization": ZERO | {"offload_param": {"pin": 1}}}, "offload_param.pin, which deepspeed"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "expected stage 3"),
        ({"zero_optimization": ZERO | {"offload_optimizer": {"device": "cpu"}}}, "zero_force_ds_cpu_optimizer"),
        ({"timers": {"throughputs": {}}}, "expected timers.throughput alone"),
    ],
)
def test_deepspeed_files_that_name_the_key(tmp_path: Path, values: dict[str, object], words: str) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": ZERO} | values))
    config = resolve_micro_batch(load_config("testbed", [f"run.ds_config={path}"]), 1)
    with pytest.raises(ConfigError) as caught:
        check_with_deepspeed(config, read_ds_config(str(path)), 1)
    assert words in str(caught.value) and str(caught.value).startswith(str(path)) and len(str(caught.value)) <= 600


@pytest.mark.parametrize("name", ["zero2.json", "zero3.json", "zero3_offload.json"])
def test_shipped_deepspeed_files_are_those_that_deepspeed_reads(name: str) -> None:
    check_with_deepspeed(resolve_micro_batch(load_config("testbed"), 1), read_ds_config(name), 1)


def test_keys_that_are_off_are_taken_and_kept_from_deepspeed(tmp_path: Path) -> None:
    """As the files of DeepSpeedExamples and others write them; `steps_per_print` may be null."""
    off = {"enabled": False, "max_out_tokens": 512}
    path = tmp_path / "ds.json"
    values = {
        "zero_optimization": ZERO | {"cpu_offload": False},
        "hybrid_engine": off,
        "tensorboard": {},
        "wandb": None,
    }
    values |= {"prescale_gradients": False, "gradient_predivide_factor": 1.0, "steps_per_print": None}
    values |= {"data_types": {"grad_accum_dtype": "fp32"}, "tensor_parallel": {"autotp_size": 1}}
    path.write_text(json.dumps(values))
    values, config = read_ds_config(str(path)), resolve_micro_batch(load_config("testbed"), 1)
    check_with_deepspeed(config, values, 1)
    assert read_by_engine(values) == {"zero_optimization": ZERO, "steps_per_print": None}


@pytest.mark.skipif(torch.cuda.is_available(), reason="a machine without a GPU")
def test_kernels_that_this_machine_lacks_are_not_blamed_on_a_model(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": ZERO | {"zero_quantized_weights": True}}))
    config = resolve_micro_batch(load_config("testbed", [f"run.ds_config={path}"]), 1)
    values = read_ds_config(str(path))
    check_with_deepspeed(config, values, 1)  # on a login node there is no GPU either
    with pytest.raises(ConfigError, match=r"zero_quantized_weights, whose kernel deepspeed .* cannot load here"):
        check_kernels(config, values)
    check_kernels(config, read_ds_config("zero3_offload.json"))


def test_keys_without_effect_are_told_and_kept_from_deepspeed(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2, "stage3_max_live_parameters": 1}, "compile": {}}))
    values, config = read_ds_config(str(path)), resolve_micro_batch(Config(), 1)
    assert without_effect(values) == [
        "compile of the DeepSpeed file has no effect, as the engine is not compiled.",
        "stage3_max_live_parameters of the DeepSpeed file has no effect, as its stage is 2.",
    ]
    assert "compile" not in engine_config(config, values, 1) | shard_config(config, values)


def test_a_refusal_of_deepspeed_comes_before_the_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"zero_optimization": ZERO | {"overlap_comm": 3}}))
    command = ["--ds_config", str(path), "--set", f"run.output={tmp_path}/run", "--set", "run.stop_signals=[]"]
    for more in (["--dry-run"], ["--set", "model.encoder=/nowhere"]):
        assert exit_status(lambda more=more: train([*command, *more])) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said == f"error: {path} has zero_optimization.overlap_comm = 3; expected true or false."
    assert not (tmp_path / "run").exists()


def test_options_are_cut_and_hold_text(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="x")
    parser.add_argument("--number", type=positive(int, most=10))
    assert parser.parse_args(["--number", "10"]).number == 10
    for text, words in (
        ("11", "11 is more than 10"), ("0", "0 is not above 0"), ("9" * 5000, "invalid int value"),
        ("nan", "invalid int value"), ("\0", "with the character NUL"), ("\udcff", "not UTF-8"),
    ):  # fmt: skip
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--number", text])
        said = capsys.readouterr().err.splitlines()[-1]
        assert words in said and len(said) < 600
