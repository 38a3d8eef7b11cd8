"""Predictions on disk: in order, whole lines, taken up after a kill at any place, thrown away when of another model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge_ds.errors import DataError, LaunchError
from bridge_ds.evaluation.predictions import read_index, read_predictions
from bridge_ds.evaluation.score import compare
from bridge_ds.evaluation.store import llm_of
from bridge_ds.report.choose import scored_cells

from .fakes import FakeSystem, FakeTask, stores
from .test_score import files


def _run(folder: Path, stop_after: int = 0, identity: str = "one", **more: object) -> list[list[str]]:
    bridge = FakeSystem(stop_after)
    options = {"batch": 2} | more
    compare(bridge, FakeSystem(), [FakeTask()], stores=stores(folder, identity), **options)  # type: ignore[arg-type]
    return bridge.calls


def test_a_line_a_sample_in_the_tasks_order(tmp_path: Path) -> None:
    _run(tmp_path)
    index = read_index(tmp_path / "bridge")
    assert (index.system, index.name, index.seed, index.checkpoint) == ("bridge", "some_fusion", 3, "step-00000001")
    task = index.tasks["fake"]
    assert (task.kind, task.labels, task.samples) == ("labels", ("a", "b", "c"), {"en": 7, "xx": 1, "yy": 10})
    assert task.layer_weights == {code: pytest.approx([0.25, 0.75]) for code in ("en", "xx", "yy")}
    for language in ("en", "xx", "yy"):
        keys = [p.key for p in read_predictions(tmp_path / "bridge", "fake", language)]
        assert keys == [example.key for example in FakeTask().examples(language, 0)]
    names = {path.name for path in (tmp_path / "bridge").rglob("*") if path.is_file()}
    assert names == {".lock", "index.json", "en.jsonl", "xx.jsonl", "yy.jsonl"}


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_killed_evaluation_goes_on(tmp_path: Path, stop: int) -> None:
    _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "killed", stop_after=stop)
    assert len(_run(tmp_path / "killed")) == 10 - stop
    assert files(tmp_path / "killed") == files(tmp_path / "whole")
    # Nothing is left to take up: the next one scores anew, and finds the same.
    assert len(_run(tmp_path / "killed")) == 10
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_the_order_of_languages_does_not_depend_on_which_was_first(tmp_path: Path) -> None:
    for languages in (["yy"], ["en"], ["xx"]):
        _run(tmp_path / "apart", languages=languages)
    _run(tmp_path / "whole")
    assert files(tmp_path / "apart") == files(tmp_path / "whole")


@pytest.mark.parametrize("cut", [1, 40, 300])
def test_a_torn_line_is_scored_again(tmp_path: Path, cut: int) -> None:
    _run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path / "killed", stop_after=3)
    part = tmp_path / "killed" / "bridge" / "fake" / ".en.part"
    part.write_bytes(part.read_bytes()[:-cut])
    assert len(_run(tmp_path / "killed")) == 8
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_what_is_done_is_not_scored_again_whatever_the_batch(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, stop_after=3)
    first = {key for call in _blocks(tmp_path) for key in call}
    calls = _run(tmp_path, batch=5)
    again = [key for call in calls for key in call]
    assert len(first) == 6 and not first & set(again) and len(again) == 12


def _blocks(folder: Path) -> list[list[str]]:
    """Keys of the blocks in the part file."""
    _, *lines = (folder / "bridge" / "fake" / ".en.part").read_text().splitlines()
    return [[json.loads(text)["key"] for text in json.loads(line)["predictions"]] for line in lines]


def test_work_of_another_model_or_other_samples_is_thrown_away(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, stop_after=3)
    assert len(_run(tmp_path, identity="two")) == 10
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, stop_after=3)
    part = tmp_path / "bridge" / "fake" / ".en.part"
    part.write_text(part.read_text().replace('\\"source\\": \\"', '\\"source\\": \\"another '))
    assert len(_run(tmp_path)) == 10
    with pytest.raises(KeyboardInterrupt):
        _run(tmp_path, stop_after=3)
    part.write_text(part.read_text().replace('["a", "b", "c"]', '["a", "b", "d"]', 1))  # the task's labels
    assert len(_run(tmp_path)) == 10


def test_languages_of_one_checkpoint_gather_in_the_index(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    _run(tmp_path, languages=["en"])
    _run(tmp_path, languages=["yy"])
    _run(tmp_path, languages=["yy"])
    assert caplog.messages == []
    _run(tmp_path, languages=["yy"], limit=3)
    lost = "fake in yy: the predictions of 3 samples replace those of 10 that were there (evaluation.limit)."
    assert len(caplog.messages) == 2 and all(text.endswith(lost) for text in caplog.messages)
    assert read_index(tmp_path / "bridge").tasks["fake"].samples == {"en": 7, "yy": 3}
    index = tmp_path / "bridge" / "index.json"
    index.write_text(index.read_text().replace("step-00000001", "step-00000009"))
    _run(tmp_path, languages=["xx"])
    assert read_index(tmp_path / "bridge").tasks["fake"].samples == {"xx": 1}


def test_answers_of_the_llm_alone_are_taken_from_another_run(tmp_path: Path) -> None:
    other, llm = tmp_path / "other", FakeSystem()
    _run(other)

    def again(name: str, identity: str = "one", task: FakeTask | None = None, **more: object) -> list[list[str]]:
        llm.calls.clear()
        found = stores(tmp_path / name, identity, other / "llm")
        results = compare(FakeSystem(), llm, [task or FakeTask()], stores=found, batch=2, **more)  # type: ignore[arg-type]
        assert {code: line["n"] for code, line in results["llm"]["fake"].items()} == (
            {"en": 7, "xx": 1, "yy": 10} if not more else {"en": 3, "xx": 1, "yy": 3}
        )
        return list(llm.calls)

    assert again("same") == []
    index = "llm/index.json"  # the fake LLM has layer weights, which a real one has not and which are not taken
    assert files(tmp_path / "same") | {index: ""} == files(other) | {index: ""}
    assert len(again("settings", identity="two")) == 10  # other settings: made again
    # A task of the user's own with one more label, and with other choices.
    assert len(again("labels", task=FakeTask(labels=("a", "b", "c", "d")))) == 10
    assert len(again("choices", task=FakeTask(choices=("a", "b", "c")))) == 10
    assert again("fewer", limit=3) == []  # some of theirs


def test_an_llm_that_is_gone_is_left_out_where_the_other_run_has_no_answers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run that trained the LLM cannot ask it as it was; what the other run has counts, the rest is named."""
    other, llm = tmp_path / "other", FakeSystem()
    _run(other, languages=["en"])

    def results(name: str, identity: str = "one") -> dict[str, Any]:
        found = stores(tmp_path / name, identity, other / "llm")
        return compare(FakeSystem(), llm, [FakeTask()], stores=found, llm_is_there=False)

    found = results("partly")
    assert list(found["llm"]["fake"]) == ["en"] and set(found["bridge"]["fake"]) == {"en", "xx", "yy"}
    assert "the LLM alone is left out for fake in xx, fake in yy: the run of evaluation.llm_from has no answers" in (
        capsys.readouterr().out
    )
    cells = scored_cells(_as_run(tmp_path, "partly"), found)
    assert list(cells) == [("fake", "en")]
    assert "llm" not in results("none", identity="two") and llm.calls == []


def _as_run(root: Path, name: str) -> Path:
    """A run folder with these predictions."""
    (root / f"{name}-run").mkdir()
    (root / name).rename(root / f"{name}-run" / "evaluation")
    return root / f"{name}-run"


def test_a_run_that_was_not_scored_has_no_answers_to_take(tmp_path: Path) -> None:
    assert llm_of("") is None
    with pytest.raises(DataError, match=r"index\.json cannot be read .* score the run"):
        llm_of(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("a file")
    with pytest.raises(LaunchError, match="cannot be written"):
        _run(tmp_path)


def test_answers_of_another_llm_under_the_same_name_are_not_taken_up() -> None:
    from bridge_ds.config.load import load_config
    from bridge_ds.evaluation.scoring import _stores

    config, base = load_config("testbed", []), {"llm": "1", "llm_tokenizer": "2", "encoder": "3"}

    def identities(**changed: str) -> list[str]:
        return [store._identity for store in _stores(config, None, "step-1", base | changed)]

    assert identities() == identities()
    assert all(one != other for one, other in zip(identities(), identities(llm="9"), strict=True))
    bridge, llm = zip(identities(), identities(encoder="9"), strict=True)
    assert bridge[0] != bridge[1] and llm[0] == llm[1], "the LLM alone does not read the encoder"
