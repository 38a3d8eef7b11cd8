"""What is scored: languages whose predictions could not be written are refused before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge_ds.config.load import load_config
from bridge_ds.errors import ConfigError
from bridge_ds.evaluation.jobs import wanted
from bridge_ds.evaluation.score import compare
from bridge_ds.evaluation.store import check_evaluation
from bridge_ds.tasks import tasks_of

from .fakes import FakeSystem, FakeTask, stores

NO_NAMES = ("Dari/Persian", "fa\\prs", "..", "/etc", "x" * 201, "ය" * 70)


@pytest.mark.parametrize("code", NO_NAMES)
def test_a_language_that_names_no_file_is_refused_before_anything_is_asked(tmp_path: Path, code: str) -> None:
    task, system = FakeTask(sizes={"en": 2, code: 2}), FakeSystem()
    with pytest.raises(ConfigError, match=r"^task fake has the language .*; expected what can name the file of its "):
        compare(system, None, [task], stores=stores(tmp_path))
    assert system.calls == [] and list(tmp_path.iterdir()) == []
    # Only what is to be scored needs a name.
    assert wanted([task], ["en"]) == [(task, "en")]


def test_the_longest_language_that_is_taken_is_written(tmp_path: Path) -> None:
    task = FakeTask(sizes={"N'Ko (Guinea)": 1, "x" * 200: 1})
    compare(FakeSystem(), FakeSystem(), [task], stores=stores(tmp_path))
    assert {path.stem for path in (tmp_path / "bridge" / "fake").iterdir()} == set(task.sizes)


@pytest.mark.parametrize("by", ["a column", "the settings"])
def test_training_refuses_it_before_it_starts(tmp_path: Path, by: str) -> None:
    (tmp_path / "test.csv").write_text("text,topic,lang\na,0,Dari/Persian\nb,1,English\n", encoding="utf-8")
    values = {
        "source": tmp_path, "prompt": "News: {text} Topic:", "labels": "{0: Business, 1: Sports}",
        "fields": "{label: topic, language: lang}",
    }  # fmt: skip
    if by == "the settings":
        values["languages"] = "{en: English, fa/prs: Dari/Persian}"
    settings = [f"tasks.mine.{key}={value}" for key, value in values.items()] + ["evaluation.tasks=[mine]"]
    code = "Dari/Persian" if by == "a column" else "fa/prs"
    with pytest.raises(ConfigError, match=rf"^task mine has the language '{code}'; .*tasks.mine.languages, such as"):
        check_evaluation(load_config("testbed", settings))
    # What the sentence advises.
    config = load_config("testbed", [*settings, "tasks.mine.languages={en: English, prs: Dari/Persian}"])
    check_evaluation(config)
    assert [example.source for example in tasks_of(config)[0].examples("prs", 0)] == ["News: a Topic:"]
