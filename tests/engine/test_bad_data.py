"""Data that lie, met by real runs on two ranks: named, exit status 2 on both, and nothing trained on them."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.data.packing.index_folder import index_folder
from bridge_ds.data.shards.index import load_index
from tests import launch
from tests.data.http_server import serve
from tests.data.test_foreign import write
from tests.engine.test_bad_input import fails, settings, torn

pytestmark = pytest.mark.slow


def steps_of(run: Path) -> list[dict[str, Any]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _truncate(folder: Path) -> None:
    # At a member boundary, where tarfile and webdataset see nothing wrong.
    cut = int(load_index(folder).table(1)["offset"][30]) - 512
    with (folder / "shard-000001.tar").open("r+b") as file:
        file.truncate(cut)


def _append(name: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        member = tarfile.TarInfo(name)
        member.type, member.linkname = kind, "/etc/passwd"
        with tarfile.open(folder / "shard-000001.tar", "a") as tar:
            tar.addfile(member, io.BytesIO())

    return change


CASES: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "truncated": (_truncate, ["shard-000001.tar", "index says", "it was truncated"]),
    "missing": (lambda f: (f / "shard-000001.tar").unlink(), ["shard-000001.tar is missing"]),
    "version": (lambda f: (f / "index.json").write_text('{"version": 1}'), ["version 1", "bridge-ds pack index DIR"]),
    "pickle": (_append("x.pkl"), ["shard-000001.tar", "'x.pkl', a pickle"]),
    "symlink": (_append("x.json", tarfile.SYMTYPE), ["shard-000001.tar", "'x.json', a symlink"]),
    "absolute": (_append("/x.json"), ["shard-000001.tar", "'/x.json', a path outside"]),
    "key twice": (_append("000000060.json"), ["shard-000001.tar", "two samples of the key '000000060'"]),
}


@pytest.mark.parametrize("name", CASES)
def test_tars_that_are_not_what_was_indexed(
    zygote: launch.Zygote, small_run: list[str], shards: Path, tmp_path: Path, name: str
) -> None:
    change, words = CASES[name]
    more = settings(data__shards=torn(shards, tmp_path / "data", change), run__output=tmp_path / "run")
    fails(zygote.start([*small_run, *more], 2, tmp_path / "logs").wait(120), *words)
    # Some are found before the first step, others when the shard is first opened: no sample of it has been used.
    good = {number for number in range(150) if not 50 <= number < 100}
    assert all(
        set(numbers) <= good for numbers in trained_numbers(tmp_path / "run", shards, len(steps_of(tmp_path / "run")))
    )


def trained_numbers(run: Path, shards: Path, steps: int) -> list[list[int]]:
    """Sample numbers of the first steps of a run, from its own config."""
    if not steps:
        return []
    from bridge_ds.config.load import load_config
    from bridge_ds.data.loading.corpus import open_corpus
    from bridge_ds.data.loading.plan import StepPlan
    from bridge_ds.world import World

    config = load_config(str(run / "config.yaml"), [f"data.shards={shards}"])
    plan = StepPlan(config, open_corpus(config.data, config.run.seed, World()))
    return [plan.rows(step).numbers.tolist() for step in range(1, steps + 1)]


def test_a_shard_that_changes_under_a_running_job(
    zygote: launch.Zygote, small_run: list[str], shards: Path, tmp_path: Path
) -> None:
    data = torn(shards, tmp_path / "data", lambda folder: None)
    more = settings(data__shards=data, run__output=tmp_path / "run", train__steps=4000, data__prefetch=1)
    job = zygote.start([*small_run, *more], 2, tmp_path / "logs")
    deadline = time.monotonic() + 120
    while len(steps_of(tmp_path / "run")) < 3:
        assert time.monotonic() < deadline, job.kill().text[-4000:]
        time.sleep(0.05)
    table = load_index(shards).table(1)
    with (data / "shard-000001.tar").open("r+b") as file:
        for offset in table["offset"].tolist():
            file.seek(offset + 12)
            file.write(b"#")
    fails(job.wait(120), "shard-000001.tar", "checksum", "changed after indexing")


def test_bad_samples_are_counted_and_stop_the_run_past_the_budget(
    zygote: launch.Zygote, small_run: list[str], tmp_path: Path
) -> None:
    good = [{"__key__": f"{i:03d}", "json": {"source": "the cat sat", "target": "good day"}} for i in range(60)]
    for number, content in ((7, b"{"), (21, {"source": "a"}), (33, {"source": "a", "target": " "}),
                            (40, {"source": "a" * 500, "target": "b"})):  # fmt: skip
        good[number]["json"] = content
    write(tmp_path / "data" / "x.tar", good)
    index_folder(tmp_path / "data")
    # One row a micro-batch, so that a bad one leaves a micro-batch without any target.
    more = settings(
        data__shards=tmp_path / "data", data__max_characters=100, train__micro_batch=1, train__global_batch=4
    )
    more += settings(train__steps=15, checkpoint__every=5)
    strict = settings(run__output=tmp_path / "strict")
    outcome = zygote.start([*small_run, *more, *strict], 2, tmp_path / "logs").wait(120)
    fails(outcome, "(key '0", "of shard x.tar", "data.max_bad_samples")
    bad = {7, 21, 33, 40}
    assert not any(
        bad & set(numbers)
        for numbers in trained_numbers(tmp_path / "strict", tmp_path / "data", len(steps_of(tmp_path / "strict")))
    )

    allowed = settings(run__output=tmp_path / "run", data__max_bad_samples=4)
    outcome = launch.succeed(zygote.start([*small_run, *more, *allowed], 2, tmp_path / "logs2").wait(120))
    last = steps_of(tmp_path / "run")[-1]
    assert last["bad_samples"] == {"malformed": 1, "missing": 1, "empty": 1, "too_long": 1}
    assert outcome.outputs[0].count("left out of step") == 4
    state = json.loads((tmp_path / "run" / "checkpoints" / "step-00000015" / "state.json").read_text())
    assert state["bad_samples"] == last["bad_samples"]
    # The count goes on after a resume: a fifth, in the second epoch, is one too many.
    longer = settings(run__output=tmp_path / "run", data__max_bad_samples=4, train__steps=40)
    fails(zygote.start([*small_run, *more, *longer], 2, tmp_path / "logs3").wait(120), "bad samples so far: ")


def test_training_over_http_goes_on_or_stops_with_a_clear_error(
    zygote: launch.Zygote, small_run: list[str], shards: Path, tmp_path: Path
) -> None:
    local = settings(run__output=tmp_path / "local", train__steps=6)
    launch.succeed(zygote.start([*small_run, *local], 1, tmp_path / "logs0").wait(120))
    with serve(shards) as (url, faults):
        faults.next = {f"shard-00000{n}.tar": [kind] for n, kind in enumerate(("half", "drop", "short"))}
        web = settings(data__shards=url, data__cache_dir=tmp_path / "cache", train__steps=6)
        run = settings(run__output=tmp_path / "web")
        launch.succeed(zygote.start([*small_run, *web, *run], 2, tmp_path / "logs1").wait(120))
        assert [s["ids_hash"] for s in steps_of(tmp_path / "web")] == [
            s["ids_hash"] for s in steps_of(tmp_path / "local")
        ]
        assert [faults.served[f"shard-00000{n}.tar"] for n in range(3)] == [2, 2, 2]

        shutil.rmtree(tmp_path / "cache")
        faults.always = "short"
        run = settings(run__output=tmp_path / "short")
        outcome = zygote.start([*small_run, *web, *run], 2, tmp_path / "logs2").wait(120)
        fails(outcome, "could not be fetched in 5 attempts", "bytes came, the index says")
        assert not steps_of(tmp_path / "short")
