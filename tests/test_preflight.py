"""Preflight: green for what would run, red with a remedy for what would not."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from bridge_ds.entry import exit_status
from tests import made

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def preflight() -> ModuleType:
    spec = importlib.util.spec_from_file_location("preflight", ROOT / "tools" / "preflight.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up by name.
    sys.modules["preflight"] = module
    spec.loader.exec_module(module)
    return module


def arguments(small_run: list[str], run: Path, *more: str) -> list[str]:
    return [*small_run, *(part for setting in (f"run.output={run}", *more) for part in ("--set", setting))]


def test_green(preflight: ModuleType, small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = arguments(small_run, tmp_path / "run")
    assert preflight.main([*settings, "--ranks", "2", "--hashes", "--gpu-gib", "80"]) == 0
    said = capsys.readouterr().out
    assert said.rstrip().endswith("preflight: green") and "RED" not in said and said.count("\n") < 40
    assert "8 = 2 rows x 2 ranks x 2 micro-batches" in said and "sha256 compared" in said
    assert list((tmp_path / "run").iterdir()) == []
    assert preflight.main([*arguments(small_run, tmp_path / "llm"), "--finetune"]) == 0
    assert re.search(r"ok  encoder +none", capsys.readouterr().out)


def test_a_run_that_would_not_go_on_is_red_and_a_link_is_followed(
    preflight: ModuleType, small_run: list[str], models: dict[str, Path], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = [value for value in small_run if "=" in value]
    run = made.make_run(tmp_path / "run", base)
    assert exit_status(lambda: preflight.main(arguments(small_run, run, "fusion.state_norm=rms"))) == 2
    assert "was trained with fusion.state_norm 'none'; this start has 'rms'" in capsys.readouterr().err
    more = ("run.start_from=" + str(run), "mapping.kind=mlp")
    assert exit_status(lambda: preflight.main(arguments(small_run, tmp_path / "next", *more))) == 2
    assert "run.start_from leads to" in capsys.readouterr().err
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "run")
    assert preflight.main(arguments(small_run, tmp_path / "link")) == 0
    assert (tmp_path / "disk" / "run").is_dir() and (tmp_path / "link").is_symlink()
    assert preflight.main(arguments(small_run, run)) == 0
    assert "continuing from" in capsys.readouterr().out


def test_red(
    preflight: ModuleType, small_run: list[str], models: dict[str, Path], shards: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    cut = tmp_path / "cut"
    shutil.copytree(models["encoder"], cut)
    weights = cut / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    changed = tmp_path / "changed"
    shutil.copytree(shards, changed)
    tar = sorted(changed.glob("*.tar"))[0]
    tar.write_bytes(tar.read_bytes().replace(b'"target"', b'"tarGet"', 1))
    (tmp_path / "file").write_text("")
    alone = ("model.llm=none", "data.objective=align", "lora.rank=2")
    cases = {
        "typo": (["train.step=3"], [], "did you mean 'train.steps'"),
        "first stage": (
            ["llm.finetune=true", "llm.finetune_settings=[train.step=3]"],
            [],
            "did you mean 'train.steps'",
        ),
        "dictionary": (["data.mix_words=missing.tsv"], [], "missing.tsv cannot be read"),
        "task": (["evaluation.tasks=[nosuch]"], [], "evaluation.tasks"),
        "tracker": (["track.to=[nosuch]"], [], "track.to"),
        "scores": (["evaluation.tasks=[testbed_news]", "evaluation.llm_from=runs/none"], [], "runs/none"),
        "batch": (["train.global_batch=6"], [], "start 1, 3 ranks"),
        "share": (["train.global_batch=7", "train.micro_batch=0"], [], "train.global_batch 7"),
        "deepspeed": (["run.ds_config=nothing.json"], [], "no DeepSpeed config"),
        "weights": ([f"model.encoder={cut}"], [], "download it again"),
        "shards": ([f"data.shards={changed}"], ["--hashes"], "copy it again"),
        "few": (["train.global_batch=256"], [], "at least one global batch"),
        "output": ([f"run.output={tmp_path}/file/run"], [], "cannot be written"),
        "memory": ([], ["--gpu-gib", "1"], "lower train.micro_batch"),
        "heads": (["fusion.name=transformer_softmax", "fusion.heads=7"], [], "expected a divisor"),
        "updates": (["lora.rank=2", "lora.targets=[c_attn]"], [], "lora.targets ['c_attn'] do not fit the LLM"),
        "biases": (["lora.rank=2", "lora.bias=all"], [], "the LLM has no bias at all"),
        "layers": ([*alone, "adapt.layers=[1, 99]"], [], "adapt.layers is [1, 99] and the encoder has"),
        "encoder": ([*alone, "lora.targets=[q_proj]"], [], "lora.targets ['q_proj'] do not fit the encoder"),
    }
    for name, (settings, options, words) in cases.items():
        asked = [*arguments(small_run, tmp_path / "run", *settings), "--ranks", "2", *options]
        assert exit_status(lambda asked=asked: preflight.main(asked)) == 2, name
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and words in said.err, (name, said.err)
        assert " RED " in said.out and "green" not in said.out


def test_what_llm_finetune_does_first_is_planned_too(
    preflight: ModuleType, small_run: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = "llm.finetune_settings=[llm.trainable=true, train.micro_batch=4, data.max_prompt_tokens=4096]"
    asked = [*arguments(small_run, tmp_path / "run", "llm.finetune=true", wide), "--ranks", "2", "--gpu-gib"]
    assert preflight.main([*asked, "80"]) == 0
    said = capsys.readouterr().out
    ((bridge, first),) = re.findall(r"([\d.]+) GiB for the bridge and ([\d.]+) GiB for what comes first", said)
    assert float(first) > float(bridge)
    between = (float(bridge) + float(first)) / 2
    assert exit_status(lambda: preflight.main([*asked, f"{between}"])) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: teaching the LLM first (llm.finetune) needs {first} GiB a rank"), said
    assert "the bridge " + bridge in said


def test_nodes_divide_the_ranks(preflight: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status(lambda: preflight.main(["--nodes", "3", "--ranks", "16"])) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: 16 ranks do not divide over 3 nodes") and said.err.count("\n") == 1
    assert said.out == ""
    for wrong in (["--nodes", "0"], ["--ranks", "-2"], ["--gpu-gib", "0"]):
        with pytest.raises(SystemExit) as left:
            preflight.main(wrong)
        assert left.value.code == 2 and "above 0" in capsys.readouterr().err


@pytest.mark.parametrize(("offline", "cached"), [(True, False), (False, False), (False, True)])
def test_a_hub_that_cannot_be_asked_is_said_at_once(
    offline: bool, cached: bool, small_run: list[str], models: dict[str, Path], tmp_path: Path
) -> None:
    names = {"encoder": "google/mt5-xl", "llm": "some/llm"}
    for which, name in names.items() if cached else ():
        folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(models[which], folder / "snapshots" / ("0" * 40))
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # refuses every connection
        env = {key: value for key, value in os.environ.items() if key not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
        env |= {"HF_HOME": str(tmp_path), "HF_ENDPOINT": f"http://127.0.0.1:{taken.getsockname()[1]}"}
        env |= {"HF_HUB_OFFLINE": "1"} if offline else {}
        settings = arguments(small_run, tmp_path / "run", *(f"model.{which}={name}" for which, name in names.items()))
        begin = time.monotonic()
        call = [sys.executable, "tools/preflight.py", *settings]
        done = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)
    assert time.monotonic() - begin < 60  # mostly imports; each retried file would take half a minute
    if cached:
        assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
        return
    assert done.returncode == 2
    why = "HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE is set" if offline else "does not answer (["
    assert done.stderr.startswith("error: model.encoder 'google/mt5-xl' cannot be found: there is no such folder in ")
    assert "the hub's cache does not hold it, and " in done.stderr
    assert why in done.stderr and done.stderr.count("\n") == 1
    assert " RED  tokenizers " in done.stdout and "  ok  output" in done.stdout


def test_versions_are_one_line(preflight: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert preflight.main(["--versions"]) == 0
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and '"deepspeed"' in said
