"""One epoch, killed again and again and continued on other numbers of ranks: every sample is trained on once."""

from __future__ import annotations

import json
import random
import time
from collections import defaultdict
from pathlib import Path

import pytest

from bridge_ds.config.schema import ModelConfig
from bridge_ds.data.loading.tokenize import load_tokenizers
from bridge_ds.data.packing.write import pack_rows
from tests import launch
from tests.data.conftest import task_rows
from tests.engine.test_bad_input import settings

pytestmark = pytest.mark.slow

STEPS, BATCH = 24, 12
WORLDS = (3, 1, 2, 4, 3, 2)


def _steps(run: Path) -> int:
    path = run / "metrics.jsonl"
    return path.read_text().count("\n") if path.is_file() else 0


def _kill_at_random(job: launch.ForkedJob, run: Path, step: int, pause: float) -> None:
    deadline = time.monotonic() + 120
    while _steps(run) < step:
        assert time.monotonic() < deadline, job.kill().text[-4000:]
        time.sleep(0.005)
    time.sleep(pause)
    print(f"killed after step {_steps(run)}, {pause:.3f} s after step {step}")
    assert -9 in job.kill().codes


def test_killed_five_times_the_union_of_trained_samples_is_the_epoch(
    zygote: launch.Zygote, small_run: list[str], models: dict[str, Path], tmp_path: Path
) -> None:
    rows = task_rows(STEPS * BATCH)
    pack_rows(rows, tmp_path / "data", samples_per_shard=50)
    run = tmp_path / "run"
    arguments = [*small_run, *settings(
        run__output=run, data__shards=tmp_path / "data", data__workers=2, data__shuffle_shards=2, train__steps=STEPS,
        train__global_batch=BATCH, train__micro_batch=1, checkpoint__every=2, data__max_source_tokens=200,
    )]  # fmt: skip
    draw = random.Random(0)
    for attempt, world in enumerate(WORLDS):
        env = {"RECORD": str(tmp_path / f"trained-{attempt}")}
        job = zygote.start(arguments, world, tmp_path / f"logs-{attempt}", env)
        if attempt < len(WORLDS) - 1:
            _kill_at_random(job, run, 4 * attempt + draw.randint(2, 4), draw.uniform(0, 0.2))
        else:
            launch.succeed(job.wait(180))

    tokenizers = load_tokenizers(ModelConfig(encoder=str(models["encoder"]), llm=str(models["llm"])))
    ids = {tuple(tokenizers.source_ids(str(row["source"]))): number for number, row in enumerate(rows)}
    assert len(ids) == len(rows)
    last: dict[int, list[int]] = {}
    repeated = 0
    for attempt, world in enumerate(WORLDS):
        done: dict[int, list[int]] = defaultdict(list)
        ranks: dict[int, int] = defaultdict(int)
        for rank in range(world):
            record = tmp_path / f"trained-{attempt}.{rank}"
            for line in record.read_text().splitlines() if record.is_file() else []:
                step = json.loads(line)
                done[step["step"]] += [ids[tuple(row)] for row in step["rows"]]
                ranks[step["step"]] += 1
        for step, numbers in done.items():
            if ranks[step] == world:
                assert sorted(last.get(step, numbers)) == sorted(numbers), (
                    "a step that is repeated has the same samples"
                )
                repeated += step in last
                last[step] = numbers
    assert sorted(last) == list(range(1, STEPS + 1))
    assert sorted(number for numbers in last.values() for number in numbers) == list(range(len(rows)))
    print(f"{repeated} steps were done again after a kill")
