"""Generated recipes, overrides, DeepSpeed files and options: the right result, or one sentence and status 2.

BRIDGE_DS_FUZZ multiplies the number of cases (default 1); a failure prints its seed and its case.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import random
import resource
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from annotated_types import Ge, Gt, Le, Lt

from bridge_ds.config import ds_file, zero
from bridge_ds.config.build import check
from bridge_ds.config.ds_models import check_with_deepspeed
from bridge_ds.config.effect import idle
from bridge_ds.config.load import RECIPES, flatten, load_config, load_run_config, save_config, to_dict
from bridge_ds.config.schema import Config, metadata
from bridge_ds.entry import exit_status
from bridge_ds.errors import BridgeError, ConfigError, LaunchError
from bridge_ds.plan.job import layout
from bridge_ds.train import main as train

FACTOR = float(os.environ.get("BRIDGE_DS_FUZZ", "1"))
SEED = 17
KEYS = list(flatten(Config()))
LONGEST = 600
BOMB = "".join(f"k{n}: &k{n} [{', '.join(['x' if n == 0 else f'*k{n - 1}'] * 9)}]\n" for n in range(9))
SCALARS = [
    "2001-99-99", "!!timestamp 2001-99-99", "!!int abc", "!!int 5", "!!float x", "!!bool q", "!!binary '*'",
    "!!python/object/apply:os.system [x]", "!!python/name:os.system", "!!omap [a: 1]", "9" * 5000, "-" + "9" * 400,
    "1e999", ".inf", "-.inf", ".nan", "9223372036854775807", "9223372036854775808", "-1", "0", "1", "2", "5", "1e18",
    "1000000000", "1.5", "0.5", "1e-320", "true", "no", "~", "null", "", '"\\0"', '"\\ud800"', '"\\U00110000"',
    "[" * 50 + "]" * 50, "[" * 5000, "{a: " * 30 + "1" + "}" * 30, "&a [*a]", "&a {b: *a}", "*x", "[1, 2]", "[a, b]",
    "[]", "{}", "{a: b}", "{1: 2}", "{null: 1}", "{[a]: 1}", "{xnli: {source: x, fields: {a: [1]}}}",
    '{xnli: {fields: {"\\0": b}}}', '{"\\ud800": {}}', "~/x", "~nobody_/x", "$HOME/x", "$NOPE", "${", "a" * 300,
    "a/" * 3000, "x" * 200_000, "0x10", "1_000", "１２", "\u2028", "\x85", "\ufeffx", "\x07", "{<<: {a: 1}}", "{<<: 3}",
    "!foo x", "!!map [a]", "!!null [a]", "%x", "'unclosed", "never", "auto", "xnli", "https://x/" + "a" * 5000,
]  # fmt: skip
SIGNS = "ab \n\t'\"#:-[]{},&*!|>%@`\\~=/.é猫\u200b😀\x7f\x1b\u2028\x85\r\ufeff?"


def cases(many: int) -> Iterator[tuple[int, random.Random]]:
    """A generator of its own for each case, so that one of them can be run alone."""
    for number in range(int(many * FACTOR)):
        yield number, random.Random(SEED * 1_000_003 + number)


@contextlib.contextmanager
def watched(number: int, case: Any) -> Iterator[None]:
    """What one case may take, and what it may raise."""
    began = time.monotonic()
    try:
        yield
        assert time.monotonic() - began < 10, "slow"
    except BaseException:
        print(f"seed {SEED}, case {number}: {str(case)[:2000]!r}")
        raise


def one_sentence(error: BridgeError) -> None:
    assert len(str(error)) <= LONGEST and str(error).isprintable(), str(error)


def within(loc: tuple[str | int, ...], value: Any) -> bool:
    """Whether a value is what the page of all settings says."""
    of = metadata(loc)
    if value is None:
        return True
    if isinstance(value, dict):
        return all(text.isascii() or text.encode() for text in value)
    if isinstance(value, list | tuple):
        return all(within((*loc, 0), item) for item in value)
    if isinstance(value, str):
        return "\0" not in value and bool(value.encode() or True)
    if isinstance(value, bool):
        return True
    return all(
        not (isinstance(bound, Ge) and not value >= bound.ge)  # type: ignore[operator]
        and not (isinstance(bound, Gt) and not value > bound.gt)  # type: ignore[operator]
        and not (isinstance(bound, Le) and not value <= bound.le)  # type: ignore[operator]
        and not (isinstance(bound, Lt) and not value < bound.lt)  # type: ignore[operator]
        for bound in of
    )


def use(recipe: str, overrides: list[str], folder: Path) -> bool:
    """Load, check, resolve and record a config; whether it was accepted."""
    try:
        config = load_config(recipe, overrides)
    except ConfigError as error:
        one_sentence(error)
        return False
    save_config(config, folder / "config.yaml")
    assert load_run_config(folder) == config
    check(config)
    json.dumps(to_dict(config), allow_nan=False)
    for key, value in flatten(config).items():
        assert within(tuple(key.split(".")), value), (key, value)
    idle(config)
    try:
        zero.accumulation(zero.resolve_micro_batch(config, 3), 3)
    except LaunchError as error:
        one_sentence(error)
    return True


def odd(draw: random.Random) -> str:
    kind = draw.random()
    if kind < 0.7:
        return draw.choice(SCALARS)
    if kind < 0.8:
        return str(draw.randint(-(10 ** draw.randint(0, 30)), 10 ** draw.randint(0, 30)))
    if kind < 0.9:
        return "[" + ", ".join(draw.choice(SCALARS) for _ in range(draw.randint(0, 4))) + "]"
    return "".join(
        chr(draw.choice([draw.randint(0, 255), draw.randint(0, 0xFFFF)])) for _ in range(draw.randint(0, 20))
    )


def likely(draw: random.Random, loc: tuple[str | int, ...]) -> Any:
    """A value of the right type, often at a bound."""
    of = metadata(loc)
    inner = typing.get_args(of[0])
    if typing.get_origin(of[0]) is typing.Literal:
        return draw.choice(inner)
    if typing.get_origin(of[0]) is tuple:
        many = draw.randint(0, 3) if inner[-1] is ... else len(inner)
        return [likely(draw, (*loc, 0)) for _ in range(many)]
    if typing.get_origin(of[0]) is dict:
        return {}
    if of[0] is bool:
        return draw.random() < 0.5
    if of[0] is str:
        return "".join(draw.choice(SIGNS) for _ in range(draw.randint(0, 12)))
    least = max(getattr(bound, "ge", getattr(bound, "gt", 0)) for bound in of[1:])
    most = min(getattr(bound, "le", getattr(bound, "lt", 10**30)) for bound in of[1:])
    value = draw.choice([least, most, least + 1, most - 1, most * 2, least - 1, draw.uniform(least, min(most, 1000))])
    return of[0](value)


def test_2000_config_values(tmp_path: Path) -> None:
    recipe, accepted = tmp_path / "recipe.yaml", 0
    for number, draw in cases(2000):
        kind, overrides, text = draw.random(), [], ""
        if kind < 0.3:
            overrides = [f"{draw.choice(KEYS)}={odd(draw)}" for _ in range(draw.choice([1, 1, 2]))]
        elif kind < 0.65:
            pairs = [key.split(".") for key in draw.sample(KEYS, draw.choice([1, 1, 2]))]
            text = "".join(f"{part}:\n  {key}: {odd(draw)}\n" for part, key in pairs)
            text = draw.choice([BOMB, "1: 2\n", "[a]: b\n", "base: recipe\n"]) + text if draw.random() < 0.1 else text
        elif kind < 0.75:
            signs = list((RECIPES / "testbed.yaml").read_text(encoding="utf-8"))
            for _ in range(draw.randint(1, 6)):
                at = draw.randrange(len(signs))
                signs[at] = draw.choice(["", chr(draw.randint(0, 255)), "[", "{", "&a ", "*a ", "\n", "  ", ":", "!!"])
            text = "".join(signs)
        else:
            values: dict[str, Any] = {}
            for key in draw.sample(KEYS, draw.choice([1, 1, 3, 10])):
                part, name = key.split(".")
                values.setdefault(part, {})[name] = likely(draw, (part, name))
            text = json.dumps(values)
        recipe.write_bytes(text.encode("utf-8", "surrogatepass"))
        with watched(number, (text, overrides)):
            accepted += use(str(recipe) if text else "testbed", overrides, tmp_path)
    assert accepted > 100 * FACTOR
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 6 * 2**20, "kilobytes"


def test_the_command_answers_with_status_0_or_2(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    for number, draw in cases(60):
        values: dict[str, Any] = {}
        for key in draw.sample(KEYS, 3):
            part, name = key.split(".")
            values.setdefault(part, {})[name] = likely(draw, (part, name))
        recipe.write_text(json.dumps(values), encoding="utf-8")
        said = io.StringIO()
        command = ["--dry-run", "--recipe", str(recipe), "--set", f"{draw.choice(KEYS)}={odd(draw)}"]
        with watched(number, (values, command)), contextlib.redirect_stdout(io.StringIO()):
            with contextlib.redirect_stderr(said):
                status = exit_status(lambda command=command: train(command))
            assert status in (0, 2) and "Traceback" not in said.getvalue(), said.getvalue()


VALUES: list[Any] = [
    None, True, False, 0, 1, 2, 3, -1, 1.0, 1.5, 5e8, 1e30, 1e300, float("inf"), float("nan"), 2**63, 10**400,
    "", "auto", "node", "cpu", "nvme", "none", "fp32", "bf16", "yes", "1", "\0", "\ud800", "a" * 10_000, [], [1], ["a"],
    {}, {"enabled": True}, {"device": "cpu"}, {"device": "nvme"}, {"device": "nvme", "nvme_path": "/x"}, {"a": 1},
    {"throughput": {"enabled": False}}, {"throughput": 3}, 10**10, 10**11,
]  # fmt: skip


def damaged(draw: random.Random, values: dict[str, Any], zero_keys: list[str]) -> bytes:
    """A shipped file with other values, as text with other faults."""
    top = [*ds_file._TAKEN, *ds_file._UNREAD, *ds_file._ELSEWHERE, *zero._OURS, *zero._REMOVED, "steps_per_prin", "\0"]
    for _ in range(draw.choice([1, 1, 1, 2])):
        kind, value, inner = draw.random(), copy.deepcopy(draw.choice(VALUES)), values["zero_optimization"]
        if not isinstance(inner, dict) or kind < 0.3:
            values[draw.choice(top)] = value
        elif kind < 0.8:
            inner[draw.choice(zero_keys)] = value
        elif kind < 0.9:
            values[section] = (
                {draw.choice(list(ds_file._INSIDE[section])): value}
                if (section := draw.choice(list(ds_file._INSIDE)))
                else {}
            )
        else:
            offload = {"device": draw.choice(["cpu", "none"]), draw.choice(["pin_memory", "ratio", "nvme_pat"]): value}
            inner[draw.choice(["offload_param", "offload_optimizer"])] = offload
    text = json.dumps(values)
    kind = draw.random()
    if kind < 0.85:
        return text.encode()
    if kind < 0.95:
        faults: list[Callable[[], bytes]] = [
            lambda: ("\ufeff" + text).encode(), lambda: text.encode("utf-16"), lambda: b"[" * 100_000,
            lambda: text.replace('"zero', '//\n"zero', 1).encode(), lambda: text.replace("{", '{"stage": 3,').encode(),
        ]  # fmt: skip
        return draw.choice(faults)()
    raw = bytearray(text.encode())
    raw[draw.randrange(len(raw))] = draw.randrange(256)
    return bytes(raw)


def test_500_deepspeed_files(tmp_path: Path) -> None:
    from bridge_ds.compat.deepspeed import import_deepspeed

    import_deepspeed()
    from deepspeed.runtime.config import DeepSpeedConfig
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    zero_keys = [field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()] + ["stage3_live"]
    shipped = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(zero.SHIPPED.glob("*.json"))]
    path, accepted = tmp_path / "ds.json", 0
    config = zero.resolve_micro_batch(load_config("testbed", [f"run.ds_config={path}"]), 1)
    for number, draw in cases(500):
        raw = damaged(draw, copy.deepcopy(draw.choice(shipped)), zero_keys)
        path.write_bytes(raw)
        with watched(number, raw):
            try:
                values = zero.read_ds_config(str(path))
                layout(values)  # the planner reads it without DeepSpeed
                ds_file.without_effect(values)
                values = zero.resolve_hpz(values, 4, draw.choice([2, 4]))
                check_with_deepspeed(config, values, 1)
            except BridgeError as error:
                one_sentence(error)
                continue
            DeepSpeedConfig(zero.engine_config(config, zero.fill_sizes(values, 1000), 1))
            DeepSpeedConfig(zero.shard_config(config, values))
            json.dumps(values, allow_nan=False)
            accepted += 1
    assert accepted > 10 * FACTOR


NUMBERS = ["-1", "0", "1e9", "9" * 5000, "nan", "inf", "-inf", "1e400", "", " ", "x" * 5000, "1.5", "１", str(10**30)]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("evaluation", ["--limit", "--batch"]),
        ("generate", ["--batch", "--max-new-tokens", "--temperature", "--top-p", "--top-k", "--beams", "--seed"]),
        ("serve", ["--port", "--batch", "--queue", "--max-tokens", "--max-body", "--at-once"]),
        ("doctor", ["--samples"]),
        ("plan", ["--nodes", "--gpus", "--gpu-gib", "--lora", "--global-batch", "--source-tokens", "--network-share"]),
        ("pack", ["--shard-size", "--samples-per-shard", "--limit", "--shuffle"]),
        ("preflight", ["--ranks", "--nodes", "--gpu-gib"]),
    ],
)
def test_options_take_finite_numbers_within_bounds(command: str, options: list[str]) -> None:
    import importlib

    names = {"evaluation": "evaluation.__main__", "generate": "generate.__main__", "serve": "serve.__main__"}
    module = importlib.import_module(f"bridge_ds.{names.get(command, f'commands.{command}')}")
    needed = {"doctor": ["/nowhere"], "plan": ["--encoder", "mt5-xl"], "preflight": ["--recipe", "none"]}
    rest = needed.get(command, ["--output", "/nowhere/x"] if command == "pack" else ["--run", "/nowhere"])
    # These are refused before torch is imported.
    rest += {"generate": ["--input", "without --output"], "serve": ["--host", "0.0.0.0"]}.get(command, [])
    refused = 0
    for option in options:
        for text in [*NUMBERS, "\0", "\udcff"]:
            said, out = io.StringIO(), io.StringIO()
            with watched(0, (option, text)), contextlib.redirect_stderr(said), contextlib.redirect_stdout(out):
                words = [*rest, f"{option}={text}"]
                status = exit_status(lambda words=words: module.main(words))
                assert status in (0, 1, 2) and "Traceback" not in said.getvalue(), (status, said.getvalue())
                last = said.getvalue().strip().splitlines()[-1:]
                assert all(len(line) <= LONGEST for line in last), last
                refused += f"argument {option}" in said.getvalue() or "an argument is" in said.getvalue()
    assert refused >= len(options) * 8
