"""The studies: what they run, what they do not repeat, and that their reports come out; training is stood in for."""

from __future__ import annotations

import csv
import json
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from bridge_ds.commands import answers
from bridge_ds.entry import exit_status
from bridge_ds.errors import TrainingError
from bridge_ds.evaluation.predictions import read_predictions
from bridge_ds.testbed import english_rows
from tests.report.studies import FUSIONS, write_run
from tests.tiny import make_encoder, make_llm
from tools.bench import study_extras, study_forms, study_real, study_testbed
from tools.bench.study import Job, OutOfTime, Processes, Runs, run_jobs
from tools.bench.testbed_rows import read

Call = tuple[str, list[str], tuple[str, ...]]
"""Of `Runs.train`: name of the run folder, settings, arguments."""


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Calls of `Runs.train`, which writes predictions as the main job does, or the LLM of stage 0."""
    calls: list[Call] = []

    def train(runs: Runs, folder: Path, settings: Sequence[str], *arguments: str) -> None:
        calls.append((folder.name, list(settings), arguments))
        given = dict(text.split("=", 1) for text in settings)
        if arguments:
            (folder / "llm").mkdir(parents=True)
            (folder / "llm" / "config.json").write_text("{}")
            return
        languages = given.get("evaluation.languages")
        task, codes = (
            ("sib200", languages.strip("[]").split(",")) if languages else ("testbed_news", ["en", "qaa", "qab"])
        )
        fusion = given.get("fusion.name", "last_layer")
        write_run(folder, fusion, int(given["run.seed"]), 10, {task: codes}, FUSIONS.get(fusion, 0.6))
        counted = {
            system: {task: {code: shares(folder / "evaluation" / system, task, code) for code in codes}}
            for system in ("bridge", "llm")
        }
        (folder / "evaluation.json").write_text(json.dumps(counted | {"chance": {task: 0.2}}))

    def shares(folder: Path, task: str, code: str) -> dict[str, float]:
        right = [p.correct() for p in read_predictions(folder, task, code)]
        return {"acc": sum(right) / len(right), "n": len(right)}

    monkeypatch.setattr(Runs, "train", train)
    return calls


def test_it_trains_every_arm_and_reports(trained: list[Call], tmp_path: Path) -> None:
    assert study_testbed.main(["--quick", "--output", str(tmp_path), "--jobs", "2", "--set", "train.lr=1e-3"]) == 0
    assert {name for name, *_ in trained} == {f"{arm.folder}-{seed}" for arm in study_testbed.ARMS for seed in range(2)}
    settings = {name: settings for name, settings, _ in trained}["transformer_softmax-rms-1"]
    common = [f"data.shards={tmp_path / 'shards'}", *study_testbed.QUICK, "train.lr=1e-3"]
    assert settings[:-1] == ["run.seed=1", *common, "fusion.name=transformer_softmax", "fusion.state_norm=rms"]
    # The LLM alone has answered in one of the runs before.
    assert settings[-1] == f"evaluation.llm_from={tmp_path / 'last_layer-0'}"
    results = json.loads((tmp_path / "report" / "report.json").read_text())
    assert results["systems"] == ["LLM alone", *(arm.name for arm in study_testbed.ARMS)]
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [(row["system"], row["seed"]) for row in rows] == [
        (a.name, f"{n}") for a in study_testbed.ARMS for n in (0, 1)
    ]
    for row in rows:
        found = results["tasks"]["testbed_news"]["accuracy"][row["system"]]
        assert float(row["news English"]) == pytest.approx(100 * found["en"]["seeds"][int(row["seed"])], abs=0.051)
        unseen = fmean(found[code]["seeds"][int(row["seed"])] for code in ("qaa", "qab"))
        assert float(row["news unseen"]) == pytest.approx(100 * unseen, abs=0.051)
    assert results["seeds"] == [0, 1] and (tmp_path / "report" / "report.html").is_file()

    del trained[:]
    assert study_testbed.main(["--seeds", "3", "--output", str(tmp_path)]) == 0
    assert {settings[0] for _, settings, _ in trained} == {"run.seed=2"}  # the others are not repeated


def test_the_study_of_extras_makes_what_its_arms_read(
    trained: list[Call], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--quick", "--output", str(tmp_path), "--jobs", "1", "--arms"]
    assert study_extras.main([*command, "mix_qaa", "own"]) == 0
    found = {name: settings for name, settings, _ in trained}
    assert set(found) == {f"{arm}-{seed}" for arm in ("task", "mix_qaa", "own") for seed in (0, 1)}
    assert found["mix_qaa-1"][-2] == f"data.mix_words={tmp_path / 'words-qaa.tsv'}"
    assert found["own-0"][-3:-1] == ["data.objective=self_teaching", f"data.shards={tmp_path / 'own'}"]
    # bridge-ds answers: the testbed's LLM knows the tasks in English.
    answered = [json.loads(line) for line in (tmp_path / "answered.jsonl").read_text().splitlines()]
    labelled = list(english_rows(len(answered)))
    assert [row["source"] for row in answered] == [row["source"] for row in labelled]
    assert sum(a["answer"] == b["target"] for a, b in zip(answered, labelled, strict=True)) > 0.95 * len(answered)
    results = json.loads((tmp_path / "report" / "report.json").read_text())
    assert results["systems"] == ["LLM alone", "task", "mix_qaa", "own"]
    rows = read(tmp_path / "languages.csv")
    assert [row["system"] for row in rows] == ["LLM alone", "task", "task", "mix_qaa", "mix_qaa", "own", "own"]
    assert exit_status(lambda: study_extras.main([*command, "else"])) == 2
    assert "--arms has 'else'; expected some of task, mix_all" in capsys.readouterr().err

    (tmp_path / "texts.jsonl").write_text('{"source": " "}\n')
    given = ["--input", str(tmp_path / "texts.jsonl"), "--output", str(tmp_path / "none.jsonl")]
    assert exit_status(lambda: answers.main(given)) == 2
    assert "texts.jsonl line 1: ' ' is no text; expected one" in capsys.readouterr().err


@pytest.fixture
def taught(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, str]]]:
    """Calls of `study_forms.finetune`: recipe and settings. It writes the LLM's folder."""
    calls: list[tuple[str, dict[str, str]]] = []

    def finetune(recipe: str, values: Sequence[str]) -> None:
        calls.append((recipe, dict(value.split("=", 1) for value in values)))
        folder = Path(calls[-1][1]["run.output"]) / "llm"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")

    monkeypatch.setattr(study_forms, "finetune", finetune)
    return calls


def test_the_study_of_forms_on_the_testbed(
    trained: list[Call], taught: list[tuple[str, dict[str, str]]], tmp_path: Path
) -> None:
    command = [
        "--quick",
        "--output",
        str(tmp_path),
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--arms",
        "layers-only",
        "replay-gate",
    ]
    assert study_forms.main(command) == 0
    (recipe, settings), llm = taught[0], f"model.llm={tmp_path / 'knows' / 'llm'}"
    assert recipe == "testbed" and settings["data.shards"] == str(tmp_path / "both")
    found = {name: settings for name, settings, _ in trained}
    assert set(found) == {"soft-0", "layers-only-0", "replay-gate-0"}
    assert found["layers-only-0"][-4:-1] == [llm, "injection.form=every_layer", "injection.soft_prompt=false"]
    assert found["replay-gate-0"][-6:-1] == [
        llm, "data.augment_prompt=true", "data.augment_cipher=1", "data.replay=0.25", "injection.form=gated_prompt",
    ]  # fmt: skip
    rows = {row["system"]: row for row in read(tmp_path / "languages.csv")}
    whole = ["soft", "soft, by language", "layers-only", "layers-only, by language", "replay-gate"]
    assert list(rows) == ["LLM alone", *whole]
    # A bridge that is never significantly worse always answers.
    assert rows["soft, by language"]["others"] == rows["soft"]["others"]

    assert study_forms.main(command) == 0
    assert len(taught) == 1 and len(trained) == 3  # nothing is done again


def test_the_study_of_forms_on_sib200(
    trained: list[Call], taught: list[tuple[str, dict[str, str]]], tmp_path: Path
) -> None:
    data, output = real(tmp_path / "data"), tmp_path / "study"
    command = f"--data sib200 --source {data} --encoder E --llm L --output {output} --jobs 1".split()
    assert study_forms.main([*command, "--seeds", "1", "--arms", "text"]) == 0
    (recipe, settings), own = taught[0], dict(text.split("=", 1) for text in trained[-1][1])
    assert recipe == "sib200_small" and settings["data.shards"] == own["data.shards"] == str(output / "shards")
    assert settings["model.llm"] == "L" and settings["run.output"] == str(output / "stage0")
    assert own["model.llm"] == str(output / "stage0" / "llm") and own["model.encoder"] == "E"
    assert own["evaluation.languages"] == "[en,fr,am,ha,si,sw,ta]" and own["data.augment_prompt"] == "true"
    rows = {row["system"]: row for row in read(output / "languages.csv")}
    assert list(rows) == ["LLM alone", "soft", "soft, by language", "text"]
    scores = json.loads((output / "text-0" / "evaluation.json").read_text())["bridge"]["sib200"]
    assert rows["text"]["known"] == pytest.approx(100 * scores["fr"]["acc"], abs=0.001)
    assert rows["text"]["others"] == pytest.approx(
        100 * fmean(scores[c]["acc"] for c in ("am", "ha", "si", "sw", "ta"))
    )

    del taught[:]
    assert study_forms.main([*command, "--seeds", "2", "--taught", "T", "--arms", "text"]) == 0
    assert not taught and f"model.llm={Path('T').resolve()}" in trained[-1][1]


def test_it_reports_whole_seeds_only(trained: list[Call], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "last_layer-0", "last_layer", 0, 10, {"testbed_news": ("en",)})
    assert exit_status(lambda: study_testbed.main(["--report-only", "--output", str(tmp_path)])) == 2
    assert "holds no seed that all of 5 arms were scored with" in capfd.readouterr().err
    assert trained == []


def test_a_run_without_predictions_is_scored(
    trained: list[Call], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "last_layer-0"
    folder.mkdir()
    (folder / "evaluation.json").write_text("{}")
    commands: list[Sequence[str]] = []
    monkeypatch.setattr(Processes, "run", lambda _, command, log: commands.append(command))
    Runs(tmp_path, study_testbed.ARMS, [0]).prepare(study_testbed.ARMS[0], 0)
    assert trained == [] and commands == [["-m", "bridge_ds.evaluation", "--run", str(folder)]]


def test_a_run_that_fails_is_named_with_its_last_words(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "run.log"
    program = (
        "import os, sys; print('no luck', os.environ['MASTER_PORT'], os.environ['A']); "
        "sys.exit(3 if os.environ['OMP_NUM_THREADS'] == '2' else 0)"
    )
    with pytest.raises(
        TrainingError, match=r"-c ended with status 3 \(no luck \d+ b; all it said is in .*\); expected 0"
    ):
        Processes(2, (("A", "b"),)).run(["-c", program], log)
    assert 0 < Processes(1, (("A", "b"),)).run(["-c", program], log) < 60
    first, second = (int(line.split()[2]) for line in log.read_text().splitlines())
    assert 20_000 <= first < second < 32_768  # ports of their own


def test_a_run_ends_when_the_time_is_over(tmp_path: Path) -> None:
    program = "import signal, sys, time; signal.signal(15, lambda *_: sys.exit('saved')); time.sleep(60)"
    began = time.monotonic()
    with pytest.raises(OutOfTime):
        Processes(until=began + 1.5).run(["-c", program], tmp_path / "run.log")
    assert time.monotonic() - began < 20
    assert (tmp_path / "run.log").read_text() == "saved\n"


def test_jobs_run_when_what_they_need_is_done() -> None:
    order: list[str] = []

    def job(name: str, *needs: str, error: Exception | None = None) -> Job:
        def action() -> None:
            order.append(name)
            if error:
                raise error

        return Job(name, action, needs)

    jobs = [job("c", "b"), job("b", "a"), job("a"), job("d", error=TrainingError("d broke")), job("e", "d")]
    jobs.append(job("f", error=OutOfTime()))
    done = run_jobs(jobs, 1)
    assert order == ["a", "b", "c", "d", "f"]
    assert done.failed == ["d broke"] and done.left == ["f", "e"]
    assert run_jobs(jobs, 4, until=time.monotonic()).left == [job.name for job in jobs]


def real(folder: Path) -> Path:
    """Local data as the release has it: English alone."""
    folder.mkdir()
    head = "index_id\tcategory\ttext\n"
    for split, label in (("train", "travel"), ("dev", "sports"), ("test", "health")):
        (folder / f"eng_Latn.{split}.tsv").write_text(f"{head}7\t{label}\tIt is far.\n8\tpolitics\t{split} speaks.\n")
    return folder


def test_the_real_study(trained: list[Call], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output, data = tmp_path / "study", real(tmp_path / "data")
    packed = tmp_path / "packed.tar.xz"
    options = ["--encoder", "E", "--llm", "L", "--data", str(data), "--languages", "en,si,sw", "--seeds", "2"]
    more = ["--set", "train.steps=7", "--stage0-set", "lora.rank=4", "--archive", str(packed)]
    assert study_real.main(["--output", str(output), *options, *more]) == 0
    names = [name for name, *_ in trained]
    # One at a time: stage 0, then the first run on each LLM, in which the LLM alone answers too.
    assert names[:3] == ["stage0", "last_layer-0", "last_layer-raw-0"] and len(names) == 13
    by_name = {name: settings for name, settings, _ in trained}
    shards, alone = f"data.shards={output / 'shards'}", "llm.finetune=false"
    stage0 = ["model.llm=L", shards, alone, "lora.rank=4", "evaluation.tasks=[]"]
    assert trained[0] == ("stage0", stage0, ("--finetune",))
    assert by_name["layer_attention-1"] == [
        "run.seed=1", "model.encoder=E", f"evaluation.data.sib200.source={data}", "evaluation.languages=[en,si,sw]",
        shards, alone, "train.steps=7", "fusion.name=layer_attention", f"model.llm={output / 'stage0' / 'llm'}",
        f"evaluation.llm_from={output / 'last_layer-0'}",
    ]  # fmt: skip
    raw = by_name["transformer_softmax-raw-0"]
    assert "model.llm=L" in raw and raw[-1] == f"evaluation.llm_from={output / 'last_layer-raw-0'}"
    assert not any(text.startswith("evaluation.llm_from") for text in by_name["last_layer-0"])

    rows = list(csv.DictReader((output / "results.csv").open()))
    assert [(row["llm"], row["system"], row["seed"]) for row in rows[:3]] == [
        ("taught", "LLM alone", ""), ("taught", "last_layer", "0"), ("taught", "last_layer", "1"),
    ]  # fmt: skip
    assert len(rows) == 14 and rows[9]["llm"] == "raw"
    assert not (output / "report").exists()
    table = capfd.readouterr().out.partition("| LLM | system | en | si | sw | 2 languages |")[2]
    assert table.count("| taught |") == 5 and table.count("| raw |") == 3

    # Reports are made of the archive alone; what the LLM alone answered is in it once for each LLM.
    del trained[:]
    with tarfile.open(packed) as tar:
        names = tar.getnames()
        assert not any(".tar" in name or name.endswith(".safetensors") for name in names)
        links = [member for member in tar if member.islnk() and "/llm/sib200/" in member.name]
        assert len(links) == 3 * (12 - 1)
        tar.extractall(tmp_path / "again", filter="data")
    assert study_real.main(["--report-only", "--seeds", "2", "--output", str(tmp_path / "again")]) == 0
    assert trained == [] and capfd.readouterr().out.endswith(table)
    assert (tmp_path / "again" / "results.csv").read_text() == (output / "results.csv").read_text()
    for report, start in (("report", 1), ("report-raw", 10)):
        found = json.loads((tmp_path / "again" / report / "report.json").read_text())["tasks"]["sib200"]["accuracy"][
            "last_layer"
        ]
        for row in rows[start : start + 2]:
            wanted = {code: 100 * found[code]["seeds"][int(row["seed"])] for code in ("en", "si", "sw")}
            assert {code: float(row[code]) for code in wanted} == pytest.approx(wanted, abs=0.051)
            assert float(row["others"]) == pytest.approx((wanted["si"] + wanted["sw"]) / 2, abs=0.051)


@pytest.mark.slow
def test_the_quick_study_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_encoder("bert", tmp_path / "e")
    make_llm("llama", tmp_path / "l")
    data = real(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    options = ["--encoder", "e", "--llm", "l", "--taught", "l", "--data", "data", "--languages", "en", "--seeds", "1"]
    more = ["--set", "data.max_source_tokens=64", "--set", "model.dtype=float32", "--set", "fusion.feedforward=8"]
    assert study_real.main(["--quick", "--output", "study", *options, *more]) == 0
    rows = list(csv.DictReader((tmp_path / "study" / "results.csv").open()))
    assert [row["system"] for row in rows] == ["LLM alone", "last_layer", "transformer_softmax"]
    assert all(row["n"] == "2" and 0 <= float(row["en"]) <= 100 for row in rows)
    assert all(float(row["seconds"]) > 0 and row["machine"] for row in rows[1:])
    assert str(data) in (tmp_path / "study" / "last_layer-0" / "config.yaml").read_text()


def test_the_real_study_reports_nothing_of_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert exit_status(lambda: study_real.main(["--report-only", "--output", str(tmp_path)])) == 2
    assert "holds no seed that all arms were scored with" in capfd.readouterr().err


def test_the_search_reads_english_validation_alone(
    trained: list[Call], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = real(tmp_path / "data")
    options = ["--output", str(tmp_path), "--encoder", "E", "--llm", "L", "--data", str(data), "--search"]
    assert study_real.main([*options, "--set", "train.lr=1"]) == 0
    lines = (tmp_path / "english_validation" / "en.jsonl").read_text().splitlines()
    assert [(row["category"], row["text"]) for row in map(json.loads, lines)] == [
        ("sports", "It is far."), ("politics", "dev speaks."),
    ]  # fmt: skip
    assert len(trained) == len(study_real.SEARCH)
    for name, settings, _ in trained:
        given = dict(text.split("=", 1) for text in settings)
        assert given["evaluation.data.sib200.source"] == str(tmp_path / "english_validation"), name
        assert (given["evaluation.languages"], given["model.llm"]) == ("[en]", "L")
    assert dict(text.split("=", 1) for text in trained[1][1])["train.lr"] == "3e-4"  # the search's own wins
    found = json.loads((tmp_path / "search-raw.json").read_text())["found"]
    assert {each["name"] for each in found} == set(study_real.SEARCH)
    ranks: list[Any] = [(-each["acc"], each["loss"]) for each in found]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]
    one = next(each for each in found if each["name"] == "slow fusion")
    evaluation = json.loads((tmp_path / "search-raw" / "slow_fusion-0" / "evaluation.json").read_text())
    assert one["acc"] == pytest.approx(100 * evaluation["bridge"]["sib200"]["en"]["acc"]) and one["n"] == 10
    assert capfd.readouterr().out.splitlines()[-len(found)].startswith(found[0]["name"])
