"""The benchmarks give the paper's prompts and labels, and refuse what they do not have."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_ds import testbed
from bridge_ds.errors import ConfigError, DataError
from bridge_ds.tasks import TASKS, Task, find_tasks
from bridge_ds.tasks.xnli import Xnli


@pytest.mark.parametrize("name", TASKS)
def test_every_task_keeps_the_contract(name: str) -> None:
    task = TASKS[name]
    assert isinstance(task, Task) and task.name == name
    assert len(set(task.labels)) == len(task.labels) >= 2
    assert task.chance == pytest.approx(1 / len(task.labels))
    assert task.languages[0] == "en" and len(set(task.languages)) == len(task.languages)


@pytest.mark.parametrize("kind", testbed.TASKS)
def test_testbed_samples_are_parallel_and_balanced(kind: str) -> None:
    task = TASKS[f"testbed_{kind}"]
    english, other = task.examples("en", 30), task.examples(task.languages[1], 30)
    assert [(e.key, e.label) for e in english] == [(e.key, e.label) for e in other]
    counts = [sum(e.label == label for e in english) for label in range(len(task.labels))]
    assert max(counts) - min(counts) <= 1
    for example in english:
        assert example.target == task.labels[example.label]
        assert example.source == example.source.strip() and example.language == "en"
    assert len(task.examples("en", 0)) == 300


def test_an_unknown_task_gets_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"unknown task 'testbed_new'; .* did you mean 'testbed_news'\?"):
        find_tasks(["xnli", "testbed_new"])
    assert [task.name for task in find_tasks(["xnli", "testbed_news"])] == ["xnli", "testbed_news"]


def _clone(folder: Path, rows: dict[str, list[object]]) -> Path:
    """A folder laid out as the hub repository of XNLI, with German alone."""
    import pyarrow
    from pyarrow import parquet

    (folder / "de").mkdir(parents=True)
    parquet.write_table(pyarrow.table(rows), folder / "de" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: de\n  data_files:\n  - split: test\n    path: de/test-*\n---\n"
    )
    return folder


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`datasets` writes what it reads into a cache; not into the user's."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_xnli_rows_become_the_papers_prompts(tmp_path: Path, own_cache: None) -> None:
    rows = {"premise": ["Es regnet. ", "A"], "hypothesis": ["Es ist nass.", "B"], "label": [0, 2]}
    found = Xnli(source=str(_clone(tmp_path / "clone", rows))).examples("de", 0)
    assert [e.source for e in found] == [
        "Premise: Es regnet. Hypothesis: Es ist nass. Label:",
        "Premise: A Hypothesis: B Label:",
    ]
    assert [(e.target, e.label, e.language, e.key) for e in found] == [
        ("Entailment", 0, "de", "xnli-0"),
        ("Contradiction", 2, "de", "xnli-1"),
    ]
    assert len(Xnli(source=str(tmp_path / "clone")).examples("de", 1)) == 1


def test_xnli_refuses_other_languages_and_rows(tmp_path: Path, own_cache: None) -> None:
    with pytest.raises(ConfigError, match="language 'si' is not in XNLI"):
        Xnli().examples("si", 1)
    rows = {"premise": ["A"], "hypothesis": ["B"], "label": [-1]}
    with pytest.raises(DataError, match=r"row 0 has the columns .* label -1"):
        Xnli(source=str(_clone(tmp_path / "clone", rows))).examples("de", 0)


def test_a_hub_out_of_reach_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(DataError, match=r"facebook/xnli \(en, test\) could not be loaded .*no route to host"):
        Xnli().examples("en", 1)
