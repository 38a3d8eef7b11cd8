"""The wheel in a folder of its own, with no checkout on the path: the command, the shipped files, a training run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bridge_ds.__main__ import COMMANDS, main
from bridge_ds.entry import exit_status
from tests import launch

ROOT = Path(__file__).parents[1]
SOURCES = ("bridge_ds", "ds_configs", "slurm", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what `pip install` puts there, from a wheel built of a copy of the sources; nothing downloaded."""
    root = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, root / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, root / "source" / name)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", str(root), str(root / "source")]
    subprocess.run(build, check=True, timeout=120)
    (wheel,) = root.glob("*.whl")
    target = root / "site"
    subprocess.run([*pip, "install", "--no-deps", "--no-index", "--target", str(target), str(wheel)], check=True)
    shutil.rmtree(root / "source")
    return target


def call(installed: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [str(installed / "bin" / "bridge-ds"), *words]
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_the_wheel_trains_the_testbed_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    assert "usage: bridge-ds COMMAND" in call(installed, tmp_path, "--help").stdout
    settings = {
        "train.steps": 2, "checkpoint.every": 2, "train.global_batch": 4, "data.workers": 0,
        "evaluation.tasks": "[]", "track.uri": "none",
    }  # fmt: skip
    overrides = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    launcher = ["--", f"--master_port={launch.free_port()}"]
    done = call(installed, tmp_path, "train", "--num_gpus", "1", "--ds_config", "zero3.json", *overrides, *launcher)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert (tmp_path / "runs" / "testbed" / "checkpoints" / "step-00000002" / "bridge.safetensors").is_file()

    refused = call(installed, tmp_path, "train", "--ds_config", "nothing.json", "--dry-run")
    assert refused.returncode == 2 and "zero2.json, zero3.json, zero3_hpz.json, zero3_offload.json" in refused.stderr
    assert call(installed, tmp_path, "slurm", "copy", "site").returncode == 0
    for path in (ROOT / "slurm").glob("*.sh"):
        assert (tmp_path / "site" / "slurm" / path.name).read_bytes() == path.read_bytes()
    env = call(installed, tmp_path, "env")
    assert env.returncode == 0 and "testbed" in env.stdout and "zero3.json" in env.stdout


def test_launchers_that_were_changed_are_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = ["slurm", "copy", str(tmp_path)]
    assert main(copy) == 0 and main(copy) == 0
    script = tmp_path / "slurm" / "env.sh"
    script.write_text("mine")
    assert exit_status(lambda: main(copy)) == 2
    assert "launchers that differ (env.sh)" in capsys.readouterr().err
    assert script.read_text() == "mine"
    assert main([*copy, "--overwrite"]) == 0 and script.read_bytes() == (ROOT / "slurm" / "env.sh").read_bytes()


def test_a_command_that_does_not_exist(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evalute"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: no command 'evalute'") and said.endswith("did you mean 'evaluate'?\n")
    assert main([]) == 2 and "usage: bridge-ds" in capsys.readouterr().err
    assert main(["--version"]) == 0 and capsys.readouterr().out.startswith("bridge_ds ")


def test_env_says_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env"]) == 0
    rows = {line.split()[0] for line in capsys.readouterr().out.splitlines()}
    assert {"bridge_ds", "packages", "cpu", "kernels", "recipes", "ds_configs"} <= rows


def test_help_comes_at_once() -> None:
    """No help of ours imports torch or anything as slow; the list of commands is there in 0.3 s."""
    program = f"""
import sys
from bridge_ds.__main__ import main
for name in {[name for name in COMMANDS if name != "harness"]}:  # its options are lm_eval's
    try:
        main([name, "--help"])
    except SystemExit as left:
        assert not left.code, name
slow = {{"torch", "transformers", "deepspeed", "mlflow", "datasets", "matplotlib", "scipy", "pandas"}}
assert not slow & set(sys.modules), slow & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for name in ("train", "pack", "doctor", "convert", "export", "plan", "preflight", "probe", "env", "slurm"):
        assert f"usage: bridge-ds {name}" in done.stdout
    seconds = []
    for _ in range(5):
        begin = time.monotonic()
        subprocess.run([sys.executable, "-m", "bridge_ds", "--help"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
        seconds.append(time.monotonic() - begin)
    assert min(seconds) < 0.3


def test_pack_needs_no_second_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "one", "target": "two"}\n')
    assert main(["pack", "--input", str(tmp_path / "a.jsonl"), "--output", str(tmp_path / "shards")]) == 0
    assert main(["pack", "verify", str(tmp_path / "shards")]) == 0
    assert "are as they were indexed" in capsys.readouterr().out
    for words, example in (
        (["pack"], "\n  bridge-ds pack --input train.jsonl --output shards/\n"),
        (["pack", "index"], "DIR"),
    ):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        assert example in capsys.readouterr().out


def test_launcher_options_and_trainer_options() -> None:
    from bridge_ds.commands.train import split

    assert split(["--recipe", "a"]) == (["--recipe", "a"], [])
    words = ["--num_gpus", "2", "--set", "train.lr=1", "--", "--hostfile", "hosts"]
    assert split(words) == (["--set", "train.lr=1"], ["--hostfile", "hosts", "--num_gpus=2"])
    assert split(["--num_accelerators=3"]) == ([], ["--num_gpus=3"])


def test_env_lists_the_extras_of_setup() -> None:
    from bridge_ds.commands.env import _EXTRAS

    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    extras = setup[setup.index("extras_require") : setup.index("entry_points")]
    assert set(re.findall(r'^ {8}"(\w+)": \[', extras, re.MULTILINE)) - {"test"} == set(_EXTRAS)
