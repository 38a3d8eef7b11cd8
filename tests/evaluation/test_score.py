"""Every sample counts once, on one process and on several, and all ranks run the model equally often."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bridge_ds.errors import ConfigError, DataError
from bridge_ds.evaluation.jobs import ScoringJob, blocks_of
from bridge_ds.evaluation.score import compare, write_evaluation
from bridge_ds.evaluation.store import Answers
from bridge_ds.metrics import read_results
from bridge_ds.tasks.base import Example

from .fakes import FakeSystem, FakeTask, evaluate, is_right, run_rank, stores


def _expected(task: FakeTask, limit: int = 0) -> dict[str, dict[str, float]]:
    found = {}
    for language in task.languages:
        answers = [is_right(example) for example in task.examples(language, limit)]
        n = len(answers)
        likely = sum(a for a, _ in answers) / n
        found[language] = {
            "acc": likely, "exact_match": sum(b for _, b in answers) / n, "n": n, "acc_norm_tokens": likely
        }  # fmt: skip
    return found


@pytest.mark.parametrize("batch", [1, 2, 3, 32])
def test_one_process_counts_every_sample_once(batch: int) -> None:
    task, system = FakeTask(), FakeSystem()
    found = evaluate(system, [task], batch=batch)
    assert found == {"fake": _expected(task)}
    assert all(system.calls) and max(map(len, system.calls)) <= batch
    assert sorted(key for call in system.calls for key in call) == sorted(
        e.key for language in task.languages for e in task.examples(language, 0)
    )


@pytest.mark.parametrize("size", [1, 2, 4, 32])
def test_blocks_hold_like_lengths_and_do_not_change_when_the_first_are_done(size: int) -> None:
    job = ScoringJob(FakeTask(), "yy", FakeTask().examples("yy", 0))
    blocks = blocks_of(0, job, size)
    lengths = [len(example.source) for block in blocks for example in block.examples]
    assert lengths == sorted(lengths, reverse=True) and len(lengths) == 10
    done = {example.key for block in blocks[:2] for example in block.examples}
    assert blocks_of(0, job, size, done) == blocks[2:]


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_several_processes_agree_with_one(tmp_path: Path, size: int) -> None:
    alone = compare(FakeSystem(), FakeSystem(), [FakeTask()], batch=2, stores=stores(tmp_path / "alone"))
    torch.multiprocessing.spawn(run_rank, args=(size, str(tmp_path)), nprocs=size)
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(size)]
    assert all(rank["found"] == alone for rank in seen)
    assert alone["bridge"] == {"fake": _expected(FakeTask())}
    # What one rank finds wrong in its samples is raised on all of them, before any of that turn runs a model.
    refused = {(tmp_path / f"refused{rank}").read_text() for rank in range(size)}
    assert len(refused) == 1 and refused.pop().startswith("DataError after ")
    # As many calls on every rank: 4 + 1 + 5 blocks.
    assert {len(rank["calls"]) for rank in seen} == {-(-10 // size)}
    assert files(tmp_path / "evaluation") == files(tmp_path / "alone")
    # An error while loading on the main rank alone ends every rank; none waits forever.
    assert [(tmp_path / f"error{rank}").read_text() for rank in range(size)] == ["DataError"] * size


def files(folder: Path) -> dict[str, str]:
    """What an evaluation left."""
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_compare_scores_both_on_the_same_samples(tmp_path: Path) -> None:
    bridge, llm, task = FakeSystem(), FakeSystem(), FakeTask()
    found = compare(bridge, llm, [task], languages=["en", "yy"], limit=4, batch=3)
    assert bridge.calls == llm.calls
    assert found["bridge"] == found["llm"] and set(found["bridge"]["fake"]) == {"en", "yy"}
    assert found["bridge"]["fake"]["yy"]["n"] == 4 and found["chance"] == {"fake": pytest.approx(1 / 3)}
    write_evaluation(tmp_path / "run" / "evaluation.json", found, "step-00000001")
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == found | {"checkpoint": "step-00000001"}
    assert read_results(tmp_path / "run") == (found, "step-00000001")
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["evaluation.json"]


def test_a_score_that_is_no_number_is_wrong() -> None:
    class Broken(FakeSystem):
        def __call__(self, examples: list, task: FakeTask) -> Answers:  # type: ignore[override]
            answers = super().__call__(examples, task)
            nothing = (float("nan"),) * 3
            return Answers([dataclasses.replace(p, scores=nothing, exact_match=False) for p in answers.predictions])

    assert evaluate(Broken(), [FakeTask()])["fake"]["en"]["acc"] == 0


def test_a_system_that_forgets_samples_is_refused() -> None:
    class Forgetful(FakeSystem):
        def __call__(self, examples: list, task: FakeTask) -> Answers:  # type: ignore[override]
            return Answers([])

    with pytest.raises(ValueError, match="0 predictions for 7 samples"):
        evaluate(Forgetful(), [FakeTask()])


def test_languages_and_data_that_are_not_there() -> None:
    system = FakeSystem()
    with pytest.raises(ConfigError, match="has 'zz', which no task has; expected some of en, xx, yy"):
        evaluate(system, [FakeTask()], ["en", "zz"])
    other = FakeTask(name="other", sizes={"qq": 3})
    with pytest.raises(ConfigError, match="task other has none of the languages en"):
        evaluate(system, [FakeTask(), other], ["en"])
    with pytest.raises(DataError, match="no test samples in en"):
        evaluate(system, [FakeTask(sizes={"en": 0})])
    assert system.calls == []


def test_the_progress_bar_counts_tokens_with_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(FakeSystem):
        def count_tokens(self, examples: Sequence[Example]) -> list[int]:
            return [len(example.source) for example in examples]

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    evaluate(Counting(), [FakeTask(sizes={"en": 5})], batch=2)  # sources of 5, 4, 3, 2 and 1 characters
    assert "17.0/17.0" in terminal.getvalue() and "token/s" in terminal.getvalue()
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    evaluate(FakeSystem(), [FakeTask(sizes={"en": 5})], batch=2)
    assert "5.00/5.00" in terminal.getvalue() and "sample/s" in terminal.getvalue()
