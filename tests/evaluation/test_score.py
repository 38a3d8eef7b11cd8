"""Every sample counts once, on one process and on several, and all ranks run the model equally often."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bridge_ds.errors import ConfigError, DataError
from bridge_ds.evaluation.score import compare, evaluate, write_evaluation
from bridge_ds.world import World

from .fakes import FakeSystem, FakeTask, is_right, run_rank


def _expected(task: FakeTask, limit: int = 0) -> dict[str, dict[str, float]]:
    found = {}
    for language in task.languages:
        answers = [is_right(example) for example in task.examples(language, limit)]
        n = len(answers)
        found[language] = {
            "likelihood": sum(a for a, _ in answers) / n,
            "exact": sum(b for _, b in answers) / n,
            "n": n,
        }
    return found


@pytest.mark.parametrize("batch", [1, 2, 3, 32])
def test_one_process_counts_every_sample_once(batch: int) -> None:
    task, system = FakeTask(), FakeSystem()
    found = evaluate(system, [task], batch=batch, progress=False)
    assert found == {"fake": _expected(task)}
    assert all(system.calls) and max(map(len, system.calls)) <= batch
    assert sorted(key for call in system.calls for key in call) == sorted(
        e.key for language in task.languages for e in task.examples(language, 0)
    )


@pytest.mark.parametrize("size", [2, 3, 8])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_ranks_have_equal_calls_and_share_the_samples(size: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without a process group each rank returns its own counts; their sum must be those of one process.
    task, counted, shapes = FakeTask(), [], []
    monkeypatch.setattr(
        "bridge_ds.evaluation.score._sum_over_ranks", lambda counts: counted.append(counts) or counts + 1
    )
    for rank in range(size):
        system = FakeSystem()
        monkeypatch.setattr("bridge_ds.evaluation.score._load", lambda tasks, *_: _jobs(tasks[0]))
        evaluate(system, [task], batch=batch, world=World(rank=rank, size=size), progress=False)
        shapes.append([len(call) for call in system.calls])
    assert all(shape == shapes[0] for shape in shapes) and all(min(shape) >= 1 for shape in shapes)
    total = sum(counted)
    expected = [[round(s["likelihood"] * s["n"]), round(s["exact"] * s["n"]), s["n"]] for s in _expected(task).values()]
    assert total.tolist() == expected


def _jobs(task: FakeTask) -> list:
    from bridge_ds.evaluation.score import _job

    return [_job(task, language, 0) for language in task.languages]


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(run_rank, args=(2, str(tmp_path)), nprocs=2)
    seen = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert seen[0]["found"] == seen[1]["found"] == {"fake": _expected(FakeTask())}
    assert [len(call) for call in seen[0]["calls"]] == [len(call) for call in seen[1]["calls"]]
    # An error while loading on the main rank alone ends every rank; none waits for ever.
    assert [(tmp_path / f"error{rank}").read_text() for rank in range(2)] == ["DataError", "DataError"]


def test_compare_scores_both_on_the_same_samples(tmp_path: Path) -> None:
    bridge, llm, task = FakeSystem(), FakeSystem(), FakeTask()
    found = compare(bridge, llm, [task], languages=["en", "yy"], limit=4, batch=3, progress=False)
    assert bridge.calls == llm.calls
    assert found["bridge"] == found["llm"] and set(found["bridge"]["fake"]) == {"en", "yy"}
    assert found["bridge"]["fake"]["yy"]["n"] == 4 and found["chance"] == {"fake": pytest.approx(1 / 3)}
    write_evaluation(tmp_path / "run" / "evaluation.json", found)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == found
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["evaluation.json"]


def test_a_score_that_is_no_number_is_wrong() -> None:
    def broken(examples: list, labels: tuple[str, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (len(examples), len(labels))
        return torch.full(shape, torch.nan), torch.zeros(shape, dtype=torch.bool)

    assert evaluate(broken, [FakeTask()], progress=False)["fake"]["en"]["likelihood"] == 0


def test_a_scorer_of_the_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(7, 3\) twice"):
        evaluate(lambda e, _: (torch.zeros(len(e), 2), torch.zeros(len(e), 2)), [FakeTask()], progress=False)


def test_languages_and_data_that_are_not_there() -> None:
    system = FakeSystem()
    with pytest.raises(ConfigError, match="has 'zz', which no task has; expected some of en, xx, yy"):
        evaluate(system, [FakeTask()], ["en", "zz"], progress=False)
    other = FakeTask(name="other", sizes={"qq": 3})
    with pytest.raises(ConfigError, match="task other has none of the languages en"):
        evaluate(system, [FakeTask(), other], ["en"], progress=False)
    with pytest.raises(DataError, match="no test samples in en"):
        evaluate(system, [FakeTask(sizes={"en": 0})], progress=False)
    assert system.calls == []
