"""Runs that cannot be compared: one clear sentence and exit status 2."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from bridge_ds.entry import exit_status
from bridge_ds.errors import DataError
from bridge_ds.evaluation.__main__ import main
from bridge_ds.evaluation.predictions import Prediction, read_index, read_predictions
from bridge_ds.metrics import CHOICE_METRICS
from bridge_ds.report.choose import study_advice
from bridge_ds.report.study import read_study

from .studies import FUSIONS, edit_index, rewrite, write_run, write_study

SMALL = {"xnli": ("en", "sw"), "mgsm": ("en",)}


def _no_predictions(root: Path) -> None:
    shutil.rmtree(root / "last_layer-1" / "evaluation")
    (root / "last_layer-1" / "evaluation.json").write_text("{}")


def _missing_language(root: Path) -> None:
    write_run(root / "global_softmax-0", "global_softmax", 0, 12, SMALL | {"xnli": ("en",)})


def _further_task(root: Path) -> None:
    write_run(root / "global_softmax-0", "global_softmax", 0, 12, SMALL | {"belebele": ("sin_Sinh",)})


def _other_samples(root: Path) -> None:
    rewrite(root / "global_softmax-1", "xnli", "sw", lambda row: replace(row, key=row.key.replace("-3", "-99")))


def _fewer_samples(root: Path) -> None:
    rewrite(root / "global_softmax-1", "xnli", "sw", lambda row: row if row.key != "xnli-3" else None)


def _twice(root: Path) -> None:
    rewrite(root / "global_softmax-1", "xnli", "sw", lambda row: replace(row, key=row.key.replace("-4", "-3")))


def _other_source(root: Path) -> None:
    rewrite(root / "global_softmax-1", "mgsm", "en", lambda row: replace(row, source=row.source + "!"))


def _other_labels(root: Path) -> None:
    path = root / "global_softmax-0" / "evaluation" / "bridge" / "index.json"
    values = json.loads(path.read_text())
    values["tasks"]["xnli"]["labels"] = ["yes", "maybe", "no"]
    path.write_text(json.dumps(values))


def _missing_seed(root: Path) -> None:
    shutil.rmtree(root / "global_softmax-1")


def _seed_twice(root: Path) -> None:
    shutil.copytree(root / "global_softmax-1", root / "global_softmax-1b")


def _short_scores(root: Path) -> None:
    rewrite(root / "global_softmax-1", "xnli", "en", lambda row: replace(row, scores=row.scores[:2]))


def _no_file(root: Path) -> None:
    (root / "global_softmax-1" / "evaluation" / "bridge" / "xnli" / "sw.jsonl").unlink()


def _torn_line(root: Path) -> None:
    path = root / "global_softmax-1" / "evaluation" / "bridge" / "xnli" / "sw.jsonl"
    path.write_text(path.read_text()[:-40] + "\n")


def _llm_lacks(root: Path) -> None:
    for run in root.iterdir():
        edit_index(run, "llm", tasks={})


def _other_answer(root: Path) -> None:
    rewrite(root / "last_layer-0", "mgsm", "en", lambda row: replace(row, answer="7"))


def _other_settings(root: Path) -> None:
    path = root / "last_layer-0" / "evaluation" / "bridge" / "index.json"
    tasks = json.loads(path.read_text())["tasks"]
    tasks["xnli"]["identities"]["sw"] = "1" * 64
    edit_index(root / "last_layer-0", "bridge", tasks=tasks)


def _of_a_finetuned_llm(root: Path) -> None:
    (root / "last_layer-0" / "evaluation" / "bridge").rename(root / "last_layer-0" / "evaluation" / "finetuned")


def _llm_of_its_own_and_one_without(root: Path) -> None:
    rewrite(root / "last_layer-1", "mgsm", "en", lambda row: replace(row, text="8"), system="llm")
    shutil.rmtree(root / "global_softmax-0" / "evaluation" / "llm")


CASES: list[tuple[Callable[[Path], None], str]] = [
    (_no_predictions, "last_layer-1 holds no predictions; expected .* bridge-ds evaluate --run "),
    (_missing_language, "was not scored on xnli in sw, .* score it with bridge-ds evaluate --run "),
    (_further_task, "was not scored on belebele, "),
    (_other_samples, "share 11 of 12 and 12 samples of xnli in sw; expected the same samples; "),
    (_fewer_samples, "sw.jsonl has 11 predictions; expected 12; score the run again"),
    (_twice, "sw.jsonl has two predictions of one key; "),
    (_other_source, "have another source or label for mgsm-0 of mgsm in en; "),
    (_other_labels, "on a xnli of other labels"),
    (_missing_seed, "has the seeds 0, 1, global_softmax has 0|global_softmax has the seeds 0, last_layer has 0, 1; "),
    (_seed_twice, "are both global_softmax with seed 1; expected one run per seed"),
    (_short_scores, "en.jsonl line 1 has 2 scores and label .; expected a score for each of 3 choices"),
    (_no_file, "sw.jsonl cannot be read"),
    (_torn_line, "sw.jsonl line 12 is no prediction: it is not readable as JSON "),
    (
        lambda root: edit_index(root / "last_layer-0", "bridge", format=7),
        "has format 7; expected 1 or 2; score the run again",
    ),
    (lambda root: edit_index(root / "last_layer-0", "bridge", tasks=3), "index.json has tasks 3; expected an object"),
    (_llm_lacks, "llm was not scored on xnli, "),
    (_other_answer, "have another right answer or other choices for mgsm-0 of mgsm in en; "),
    (_other_settings, "bridge was scored on xnli in sw with other settings or another checkpoint than in the rest; "),
    (_of_a_finetuned_llm, "last_layer-0 is of an LLM that was trained without a bridge; "),
    (_llm_of_its_own_and_one_without, "global_softmax-0 has no answers of the LLM alone .* those of other runs differ"),
]


@pytest.mark.parametrize(("harm", "told"), CASES, ids=lambda value: getattr(value, "__name__", None))
def test_runs_that_cannot_be_compared(
    harm: Callable[[Path], None], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_study(tmp_path, seeds=(0, 1), samples=12, tasks=SMALL)
    harm(tmp_path)
    words = ["report", *sorted(str(path) for path in tmp_path.iterdir()), "--output", str(tmp_path / "report")]
    assert exit_status(lambda: main(words)) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    import re

    assert re.search(told, said), said
    assert not (tmp_path / "report").exists()


def test_what_the_command_line_gets_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_study(tmp_path, seeds=(0,), samples=8, tasks=SMALL)
    folders = [str(path) for path in tmp_path.iterdir()]
    rewrite(tmp_path / "last_layer-0", "xnli", "en", lambda row: replace(row, null=()))
    for arguments, told in (
        ([str(tmp_path / "nothing")], "there is no folder"),
        ([*folders, "--baseline", "best"], "none of the runs is of 'best', the baseline; found LLM alone, "),
        (
            [*folders, "--scores", "calibrated"],
            "do not hold what acc_mutual_info needs; found acc, acc_norm_tokens; choose",
        ),
    ):
        words = ["report", *arguments, "--output", str(tmp_path / "report")]
        assert exit_status(lambda words=words: main(words)) == 2
        assert told in capsys.readouterr().err


def test_without_a_baseline_last_layer_is_it_or_the_first_run(tmp_path: Path) -> None:
    texts = [str(path) for path in write_study(tmp_path, seeds=(0,), samples=10, tasks=SMALL)]
    others = [text for text in texts if "last_layer" not in text][::-1]
    assert read_study(texts).baseline == "last_layer"
    study = read_study([others[0], f"mine={others[1]}"])
    assert study.baseline == Path(others[0]).name.rpartition("-")[0] and study.rivals == ["mine"]


def test_some_of_the_tasks_that_runs_were_scored_on(tmp_path: Path) -> None:
    """An evaluation of a run that exists adds to what it was scored on before."""
    texts = [str(path) for path in write_study(tmp_path, seeds=(0,), samples=8, tasks=SMALL)]
    _further_task(tmp_path)
    write_run(tmp_path / "last_layer-0", "last_layer", 0, 12, {"mgsm": ("en",), "xnli": ("ar",)})
    write_run(tmp_path / "transformer_softmax-0", "transformer_softmax", 0, 12, {"mgsm": ("en",)})
    study = read_study(texts, tasks=("mgsm",))
    assert list(study.tasks) == ["mgsm"] and len(study.systems) == 4 and list(study.questions) == [("mgsm", "en")]
    with pytest.raises(DataError, match=r"--tasks has 'xnli', and .*transformer_softmax-0.* has mgsm; expected some"):
        read_study(texts, tasks=("xnli",))


def test_samples_in_another_order_are_paired_by_key(tmp_path: Path) -> None:
    runs = write_study(tmp_path, seeds=(0,), samples=10, tasks=SMALL)
    before = read_study([str(run) for run in runs], "last_layer")
    path = runs[1] / "evaluation" / "bridge" / "xnli" / "sw.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    after = read_study([str(run) for run in runs], "last_layer")
    one, two = (study.systems["global_softmax"].answers["xnli", "sw"] for study in (before, after))
    assert one.chosen.keys() == two.chosen.keys() == set(CHOICE_METRICS)
    assert all((one.chosen[metric] == two.chosen[metric]).all() for metric in CHOICE_METRICS)
    assert (one.margins_RN == two.margins_RN).all()


def test_names_of_ones_own_and_seeds_in_order(tmp_path: Path) -> None:
    for seed in (2, 0, 1):
        write_run(tmp_path / f"a-{seed}", "transformer_softmax", seed, 6, SMALL)
        write_run(tmp_path / f"b={seed}", "transformer_softmax", seed, 6, SMALL, rate=0.2)
    texts = [f"plain={tmp_path / f'a-{seed}'}" for seed in (2, 0, 1)]
    study = read_study([*texts, *(str(tmp_path / f"b={seed}") for seed in (1, 2, 0))], "transformer_softmax")
    assert list(study.systems) == ["LLM alone", "transformer_softmax", "plain"] and study.rivals == ["plain"]
    assert [system.seeds for system in study.systems.values()] == [[0], [0, 1, 2], [0, 1, 2]]


def test_what_the_study_holds_is_what_the_files_say(tmp_path: Path) -> None:
    runs = write_study(tmp_path, seeds=(0, 1), samples=15)
    study = read_study([str(run) for run in runs], "last_layer")
    for name, system in study.systems.items():
        for row, run in enumerate(system.runs):
            assert read_index(run.predictions).name == name
            for (task, language), answers in system.answers.items():
                found = list(read_predictions(run.predictions, task, language))
                assert set(answers.chosen) == set(CHOICE_METRICS[: 2 if task == "mgsm" else 3])
                assert set(answers.right) == {*answers.chosen, "exact_match"}
                for metric, right in answers.right.items():
                    assert right[row].tolist() == [prediction.correct(metric) for prediction in found]


def _on_other_llm(folder: Path, shift: int) -> None:
    """As if the LLM of this run answered some of the samples otherwise."""
    for task, languages in SMALL.items():
        for language in languages:
            rewrite(folder, task, language, lambda row: _turned(row, shift), system="llm")


def _turned(row: Prediction, shift: int) -> Prediction:
    if int(row.key.rpartition("-")[2]) % 5 or row.label < 0:
        return row
    return replace(row, scores=row.scores[shift:] + row.scores[:shift])


def test_every_bridge_is_compared_with_its_own_llm_alone(tmp_path: Path) -> None:
    """Where the LLM was taught in each run: its answers are paired by seed, whatever the order of the runs."""
    runs = write_study(tmp_path, seeds=(0, 1), samples=20, tasks=SMALL)
    for run in runs:
        _on_other_llm(run, shift=int(run.name[-1]))
    for texts in ([str(run) for run in runs], [str(run) for run in reversed(runs)]):
        study = read_study(texts)
        assert study.systems["LLM alone"].seeds == [0, 1]
        assert set(study.alone) == {"last_layer", "global_softmax", "transformer_softmax"}
        assert set(study.alone.values()) == {"LLM alone"}
        alone = study.systems["LLM alone"].answers["xnli", "en"].right["acc"]
        for seed in (0, 1):
            found = read_predictions(tmp_path / f"last_layer-{seed}" / "evaluation" / "llm", "xnli", "en")
            assert alone[seed].tolist() == [row.correct() for row in found]
    (shown,) = {study_advice(study, "acc")[name]["tasks"]["xnli"]["en"].get("llm") for name in study.alone}
    assert shown == pytest.approx(alone.mean())


def test_what_the_llm_alone_was_scored_on_besides_is_left_out(tmp_path: Path) -> None:
    """As an evaluation of another checkpoint leaves it: the bridge's languages begin anew, the LLM's stay."""
    runs = write_study(tmp_path, seeds=(0,), samples=10, tasks=SMALL)
    for run in runs:
        tasks = json.loads((run / "evaluation" / "bridge" / "index.json").read_text())["tasks"]
        edit_index(run, "bridge", tasks={"mgsm": tasks["mgsm"]})
    study = read_study([str(run) for run in runs])
    assert list(study.questions) == [("mgsm", "en")] and len(study.systems) == 4


def test_bridges_on_two_llms_have_an_llm_alone_each(tmp_path: Path) -> None:
    runs = write_study(tmp_path, seeds=(0, 1), samples=20, tasks=SMALL)
    for run in runs:
        _on_other_llm(run, shift=run.name.startswith("last_layer"))
    study = read_study([str(run) for run in runs])
    assert study.alone == {name: f"LLM alone, {name}" for name in FUSIONS}
    one, two = (study.systems[f"LLM alone, {name}"].answers["xnli", "sw"] for name in ("last_layer", "global_softmax"))
    assert (one.right["acc"] != two.right["acc"]).any()
    assert study.rivals == ["global_softmax", "transformer_softmax"]


def test_one_llm_beside_several_encoders_is_one(tmp_path: Path) -> None:
    """Its lines say how many tokens the source has for the run's encoder, which is no answer."""
    runs = write_study(tmp_path, seeds=(0,), samples=20, tasks=SMALL)
    for task, languages in SMALL.items():
        for language in languages:
            rewrite(runs[0], task, language, lambda row: replace(row, source_tokens=99, unknown=3), system="llm")
    study = read_study([str(run) for run in runs])
    assert set(study.alone.values()) == {"LLM alone"} and study.systems["LLM alone"].seeds == [0]


def test_answers_that_end_early_are_of_the_same_llm_or_refused(tmp_path: Path) -> None:
    runs = write_study(tmp_path, seeds=(0,), samples=20, tasks=SMALL)
    first, *rest = SMALL["xnli"]
    path = runs[0] / "evaluation" / "llm" / "index.json"
    tasks = json.loads(path.read_text())["tasks"]
    tasks["xnli"]["samples"] = {first: tasks["xnli"]["samples"][first]}
    edit_index(runs[0], "llm", tasks={"xnli": tasks["xnli"]})
    assert rest and set(read_study([str(run) for run in runs]).alone.values()) == {"LLM alone"}
    rewrite(runs[0], "xnli", first, lambda row: _turned(row, 1), system="llm")
    with pytest.raises(DataError, match=f"{runs[0].name} has no answers of the LLM alone to all that was scored"):
        read_study([str(run) for run in runs])
